"""Products with mel filters without their zeros: a matrix whose non-zero elements lie around a diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_COLUMNS = 128


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
