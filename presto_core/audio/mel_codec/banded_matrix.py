"""Products with mel filters without their zeros: a matrix whose non-zero elements lie around a diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_COLUMNS = 128
SUM_ROWS = 192  # that MKL adds up at a time on CPUs with AVX-512: the same groups give the bits of one product there
LEAST_COLUMNS = 32  # below, MKL adds up in another order


class BandedMatrix:
    """A matrix [M, N] held as groups of columns, each with the rows between its first and last non-zero element.

    Mel filters overlap their two neighbours only: of 1025 x 160 elements, 98 % are zeros that a product would multiply.
    """

    def __init__(self, matrix: Tensor, *, group_columns: int = GROUP_COLUMNS) -> None:
        self.groups = [_cut_rows(columns) for columns in matrix.split(group_columns, dim=1)]

    def apply_to(self, rows: Tensor) -> Tensor:
        """[..., M] -> rows @ matrix, [..., N]."""
        return torch.cat([rows[..., span] @ block for span, block in self.groups], dim=-1)

    def to(self, device: torch.device | str) -> BandedMatrix:
        self.groups = [(span, block.to(device)) for span, block in self.groups]
        return self


def _cut_rows(columns: Tensor) -> tuple[slice, Tensor]:
    """The rows of a group of columns that hold its non-zero elements, and these; one row if there are none."""
    filled = columns.ne(0).any(1).nonzero()[:, 0]
    span = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 1)
    return span, columns[span].contiguous()


class TallBandedMatrix:
    """A matrix [M, N] of many rows held as groups of `SUM_ROWS` rows, each with its columns that are not zero.

    A `BandedMatrix` would add up a column's elements in another order than one product does; this one does not.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.groups = _cut_columns(matrix)

    def apply_to(self, rows: Tensor) -> Tensor:
        """[..., M] -> rows @ matrix, [..., N]; on a GPU in one launch."""
        if self.matrix.device.type != "cpu":
            return rows @ self.matrix
        total = rows.new_zeros(*rows.shape[:-1], self.matrix.shape[1])
        for span, columns, block in self.groups:
            total[..., columns].add_(rows[..., span] @ block)
        return total

    def to(self, device: torch.device | str) -> TallBandedMatrix:
        self.matrix = self.matrix.to(device)
        return self


def _cut_columns(matrix: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """The row span, column span and elements of each group of rows that has any."""
    groups = []
    for start in range(0, len(matrix), SUM_ROWS):
        rows = matrix[start : start + SUM_ROWS]
        filled = rows.ne(0).any(0).nonzero()[:, 0]
        if len(filled):
            # whole vectors of 16 columns
            stop = min(-(-(int(filled[-1]) + 1) // 16) * 16, matrix.shape[1])
            columns = slice(max(min(int(filled[0]) // 16 * 16, stop - LEAST_COLUMNS), 0), stop)
            groups.append((slice(start, start + len(rows)), columns, rows[:, columns].contiguous()))
    return groups
