"""What a row of the table of metrics holds. Read without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

from presto_core.metrics.embedding_sets import EmbeddingSets

MetricGroup = Literal["quality", "prompt", "audio", "cost"]
MetricFamily = Literal["", "kernel", "neighbors", "frechet"]


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: in reports, validations, sweeps, search and Python.
        title: of its column.
        better: which direction is better, if any is.
        format: of its value times `scale`.
        compute: its value for two sets of embeddings; None if the evaluation measures it on the model or its clips.
        needs: what the sets must hold beside `generated` and `reference`.
        min_rows: fewest rows of each set that it is computed for.
        rows_per_dim: fewest rows of each set per dimension of the embedding.
        family: metrics that are computed together without each part of a set, for intervals; each of any other alone.
        share_of: set of whose rows it is a share: from 0 to 1, with intervals of log odds.
        counts_neighbors: whether it is a mean count of neighbors: 0 or more, with intervals of a logarithm.
        least: smallest value, where intervals end.
        group: section of pages and docs.
        column: whether the terminal's tables show it; pages show all.
        headline: whether validation, search and promotion rank by it; one metric is.
        validated: whether validations during training report it, so that sweeps can rank by it.
        registry_name: of its tag on a registered version; empty if it is not recorded.
        former_names: in reports and sweeps that exist.
    """

    name: str
    title: str
    description: str
    better: Literal["lower", "higher", ""] = "lower"
    format: str = ".2f"
    scale: float = 1.0
    suffix: str = ""
    compute: Callable[[EmbeddingSets], float] | None = None
    needs: Literal["", "teacher", "nearest_k"] = ""
    min_rows: int = 2
    rows_per_dim: int = 0
    family: MetricFamily = ""
    share_of: Literal["", "generated", "reference"] = ""
    counts_neighbors: bool = False
    least: float = -inf
    group: MetricGroup = "quality"
    column: bool = True
    headline: bool = False
    validated: bool = False
    registry_name: str = ""
    former_names: tuple[str, ...] = ()

    def format_value(self, value: float) -> str:
        """The value as tables show it."""
        return f"{value * self.scale:{self.format}}{self.suffix}"

    def fits(self, sets: EmbeddingSets, *, with_few_rows: bool = False) -> bool:
        """Whether it can be computed from these sets, and means something at their size.

        Args:
            with_few_rows: whether fewer rows than `rows_per_dim` asks for will do.
        """
        has_needs = not self.needs or getattr(sets, self.needs) is not None
        return self.compute is not None and has_needs and self._has_enough(sets, with_few_rows=with_few_rows)

    def _has_enough(self, sets: EmbeddingSets, *, with_few_rows: bool) -> bool:
        if self.needs == "nearest_k" and sets.nearest_k is not None and sets.fewest_tracks <= sets.nearest_k:
            return False
        # sets smaller than two rows are refused by the metric itself
        has_min_rows = self.min_rows <= 2 or sets.fewest_rows >= self.min_rows
        least = 0 if with_few_rows else self.rows_per_dim * sets.generated.shape[-1]
        return has_min_rows and sets.fewest_rows >= least
