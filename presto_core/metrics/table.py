"""The table of metrics: the only list of the numbers that are reported, searched and swept. Read without PyTorch.

A new metric is one function of two sets of embeddings, in a file of its own, and one row here: evaluation, report,
validation, sweeps, registry tags and search read the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from presto_core.metrics.distances import Embeddings


@dataclass(frozen=True)
class EmbeddingSets:
    """What quality is computed from.

    Attributes:
        generated, reference: [N, D] and [M, D] embeddings of a system's clips and of held-out music.
        teacher: [N, D] of the teacher's own clips from the same noise; None if they are not compared with.
        nearest_k: neighbors of precision, recall, density and coverage; None leaves these out.
    """

    generated: Embeddings
    reference: Embeddings
    teacher: Embeddings | None = None
    nearest_k: int | None = None

    @cached_property
    def prdc(self) -> dict[str, float]:
        """Precision, recall, density and coverage, computed together."""
        from presto_core.metrics.prdc import prdc

        assert self.nearest_k is not None
        return prdc(generated=self.generated, reference=self.reference, k=self.nearest_k)


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: in reports, validations, sweeps, search and Python.
        title: of its column.
        better: which direction is better, if any is.
        format: of its value times `scale`.
        compute: its value for two sets of embeddings; None if the evaluation measures it on the model itself.
        needs: what the sets must hold beside `generated` and `reference`.
        column: whether tables show it.
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
    column: bool = True
    validated: bool = False
    registry_name: str = ""
    former_names: tuple[str, ...] = ()

    def format_value(self, value: float) -> str:
        """The value as tables show it."""
        return f"{value * self.scale:{self.format}}{self.suffix}"


def _frechet_distance(sets: EmbeddingSets) -> float:
    from presto_core.metrics.distances import frechet_distance

    return frechet_distance(generated=sets.generated, reference=sets.reference)


def _frechet_distance_to_teacher(sets: EmbeddingSets) -> float:
    from presto_core.metrics.distances import frechet_distance

    assert sets.teacher is not None
    return frechet_distance(generated=sets.generated, reference=sets.teacher)


def _mmd(sets: EmbeddingSets) -> float:
    from presto_core.metrics.distances import mmd

    return mmd(generated=sets.generated, reference=sets.reference)


ROWS = (
    Metric(
        "nfe", "NFE", "network evaluations per clip", better="", format=".0f", registry_name="nfe",
    ),
    Metric(
        "blocks_run", "blocks per clip", "transformer blocks executed per clip", format=".0f", validated=True,
        registry_name="blocks", former_names=("blocks",),
    ),
    Metric(
        "fd", "FD", "Fréchet distance to held-out music", compute=_frechet_distance, validated=True,
        registry_name="fd",
    ),
    Metric(
        "fd_to_teacher", "FD to teacher", "Fréchet distance to the teacher's samples from the same noise",
        compute=_frechet_distance_to_teacher, needs="teacher", registry_name="fd_to_base",
        former_names=("fd_to_base",),
    ),
    Metric(
        "mmd", "MMD x 1000", "squared maximum mean discrepancy (RBF) to held-out music, unbiased", format=".1f",
        scale=1e3, compute=_mmd, validated=True, registry_name="mmd",
    ),
    Metric(
        "precision", "precision", "share of clips inside the real distribution", better="higher",
        compute=lambda sets: sets.prdc["precision"], needs="nearest_k", column=False,
    ),
    Metric(
        "recall", "recall", "share of real music inside the generated distribution", better="higher",
        compute=lambda sets: sets.prdc["recall"], needs="nearest_k", column=False,
    ),
    Metric(
        "density", "density", "fidelity by nearest neighbors (Naeem et al. 2020)", better="higher",
        compute=lambda sets: sets.prdc["density"], needs="nearest_k", registry_name="density",
    ),
    Metric(
        "coverage", "coverage", "diversity by nearest neighbors (Naeem et al. 2020)", better="higher",
        compute=lambda sets: sets.prdc["coverage"], needs="nearest_k", registry_name="coverage",
    ),
    Metric(
        "latency_ms", "ms/clip", "median sampling time of one clip at batch size 1", format=".0f", validated=True,
        registry_name="latency_ms", former_names=("sampling_ms",),
    ),
    Metric(
        "speed_up", "speed-up", "sampling time relative to the teacher's first sampler", better="higher", format=".1f",
        suffix="x", registry_name="speed_up",
    ),
    Metric(
        "total_ms", "total ms", "median time of one clip with text encoding and decoding", format=".0f",
    ),
)  # fmt: skip
METRICS: dict[str, Metric] = {row.name: row for row in ROWS}


def measure_quality(sets: EmbeddingSets, *, validated_only: bool = False) -> dict[str, float]:
    """Name -> value of every metric that these sets allow.

    Raises:
        ValueError: embeddings do not compare, are too few, or are not finite.
    """
    return {
        metric.name: metric.compute(sets)
        for metric in METRICS.values()
        if metric.compute
        and (not metric.needs or getattr(sets, metric.needs) is not None)
        and (metric.validated or not validated_only)
    }


def list_validation_metrics() -> list[str]:
    """Names of the metrics that validations report."""
    return [metric.name for metric in METRICS.values() if metric.validated]


def canonical_name(name: str) -> str:
    """The present name of a metric; any other name is returned unchanged."""
    return next((metric.name for metric in METRICS.values() if name in metric.former_names), name)


def rename_former(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values by the present names of their metrics."""
    return {canonical_name(name): value for name, value in values.items()}


def to_markdown() -> str:
    """The table as docs/metrics.md shows it."""
    lines = ["| name | column | better | measures | during validation | search by |", "|---|---|---|---|---|---|"]
    for metric in METRICS.values():
        validated = "yes" if metric.validated else ""
        found_by = ", ".join(f"`{name}`" for name in dict.fromkeys((metric.name, metric.registry_name)) if name)
        search = found_by if metric.registry_name else ""
        title = metric.title if metric.column else ""
        lines.append(f"| `{metric.name}` | {title} | {metric.better} | {metric.description} | {validated} | {search} |")
    return "\n".join(lines) + "\n"
