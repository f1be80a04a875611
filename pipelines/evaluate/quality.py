"""From samples to rows of the report: distances and intervals per embedding, prompt adherence, audio health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.data.parquet_tensors import Array
from pipelines.evaluate.clip_measures import summarize_adherence, summarize_clips
from pipelines.evaluate.rows import Prompts, cycle
from pipelines.evaluate.sampling import SystemSamples
from pipelines.evaluate.systems import EvaluatedSystem
from presto_core.config.evaluation import EvaluateConfig
from presto_core.errors import UserError
from presto_core.metrics.embedders.embedder import Embedder, TextAudioEmbedder
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.intervals import estimate_intervals
from presto_core.metrics.stereo import SILENT_SIDE_DBFS
from presto_core.metrics.table import headline_metric, measure_quality

FIRST_CHANNEL = "mid"


@dataclass(frozen=True)
class Compared:
    """A system's samples with the prompts that its clips follow.

    Attributes:
        numbers: which of the evaluation's prompts each clip follows, or None: clip by clip, in their order.
    """

    system: EvaluatedSystem
    samples: SystemSamples
    prompts: Prompts
    numbers: tuple[int | None, ...] | None = None

    def embeddings(self, embedder: int, channel: str) -> Array:
        """[N x patches, D]."""
        values = self.samples.embeddings(embedder, channel)
        return values.reshape(-1, values.shape[-1])

    def groups(self, embedder: int, channel: str) -> Array:
        """[N x patches] number of the track of each patch's prompt."""
        return np.repeat(self.prompts.groups, self.samples.embeddings(embedder, channel).shape[1])


def make_sets(
    one: Compared,
    reference: Compared,
    teacher: Compared | None,
    *,
    embedder: int = 0,
    channel: str = FIRST_CHANNEL,
    nearest_k: int | None = None,
) -> EmbeddingSets:
    """What the metrics of a system are computed from, on one embedding of one channel."""
    return EmbeddingSets(
        one.embeddings(embedder, channel),
        reference.embeddings(embedder, channel),
        teacher.embeddings(embedder, channel) if teacher else None,
        nearest_k,
        generated_groups=one.groups(embedder, channel),
        reference_groups=reference.groups(embedder, channel),
        teacher_groups=teacher.groups(embedder, channel) if teacher else None,
    )


def measure_row(
    one: Compared,
    reference: Compared,
    teacher: Compared | None,
    embedders: list[Embedder],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """A system's row: metrics on the first embedding with intervals, on every embedding, and of its clips.

    Args:
        teacher: the teacher's samples from the same noise; None for a system without any.

    Raises:
        UserError: its audio gives embeddings that cannot be compared.
    """
    by_embedder = {}
    for number, embedder in enumerate(embedders):
        for channel in _list_channels(one, reference, number):
            name = embedder.name if channel == FIRST_CHANNEL else f"{embedder.name}, {channel}"
            sets = make_sets(one, reference, teacher, embedder=number, channel=channel, nearest_k=config.nearest_k)
            by_embedder[name] = _measure_distances(one.system.name, sets, config)
    first = next(iter(by_embedder.values()))
    clips = measure_clips(one, reference, config)
    return {
        **clips,
        **{name: value for name, value in first.items() if name != "intervals"},
        **measure_text_scores(one, embedders),
        "intervals": first["intervals"] | clips["intervals"],
        "by_embedder": by_embedder,
    }


def measure_clips(one: Compared, reference: Compared, config: EvaluateConfig) -> dict[str, Any]:
    """What is measured on clips one by one: prompt adherence and audio health, without distances to real music."""
    own_clips = _find_own_clips(one, reference)
    shares, intervals = summarize_adherence(
        one.samples.clips,
        one.prompts,
        tags=one.samples.tags,
        reference_tags=reference.samples.tags,
        prompt_tags=None if own_clips is None else reference.samples.tags[own_clips],
        confidence=config.confidence,
    )
    return {
        **asdict(one.system),
        **shares,
        **summarize_clips(one.samples.clips),
        "clips": len(one.samples),
        "intervals": {name: list(ends) for name, ends in intervals.items()},
    }


def _find_own_clips(one: Compared, reference: Compared) -> Array | None:
    """Number of the real clip whose caption each clip was generated from; None if the reference lacks some."""
    numbers = cycle(len(reference.samples), 0, len(one.samples))
    is_own = reference.prompts.track[numbers] == one.prompts.track
    return numbers if is_own.all() else None


def measure_text_scores(one: Compared, embedders: list[Embedder]) -> dict[str, float]:
    """`clap_score`: mean cosine of clips and captions in the first embedding that has both; empty without one."""
    for number, embedder in enumerate(embedders):
        if not isinstance(embedder, TextAudioEmbedder):
            continue
        captions = [str(caption) for caption in one.prompts.caption]
        distinct = sorted(set(captions))
        texts = _normalize(embedder.embed_text(distinct).numpy())[[distinct.index(caption) for caption in captions]]
        clips = _normalize(one.samples.embeddings(number).mean(axis=1))
        return {"clap_score": float((texts * clips).sum(axis=1).mean())}
    return {}


def _normalize(vectors: Array) -> Array:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _list_channels(one: Compared, reference: Compared, embedder: int) -> list[str]:
    """The channels to compare: mid, and side if any clip of both has one that is not silent."""
    audible = [
        bool((compared.samples.clips["side_power"] > 10 ** (SILENT_SIDE_DBFS / 10)).any())
        for compared in (one, reference)
    ]
    channels = set(one.samples.channels(embedder)) & set(reference.samples.channels(embedder))
    return sorted(channels if all(audible) else {FIRST_CHANNEL})


def _measure_distances(name: str, sets: EmbeddingSets, config: EvaluateConfig) -> dict[str, Any]:
    """Metric -> value, and `intervals`."""
    try:
        values: dict[str, Any] = {**measure_quality(sets)}
    except ValueError as error:
        raise UserError(
            f"{name} cannot be measured: {error}; use more clips (evaluate.num_samples), or leave out a "
            "model whose audio is not finite"
        ) from error
    groups = config.interval_groups
    found = estimate_intervals(sets, list(values), groups=groups, confidence=config.confidence) if groups else {}
    return values | {"intervals": {metric: list(ends) for metric, ends in found.items()}}


def measure_validation(one: Compared, reference: Compared) -> dict[str, float]:
    """Distances on the validation split, which choose a model's sampler and steps, and which promotion reads."""
    return measure_quality(make_sets(one, reference, None), validated_only=True)


def choose_systems(rows: list[dict[str, Any]], *, has_test_split: bool = True) -> None:
    """Mark one row of each model: `chosen`.

    The lowest headline metric on the validation split; without validation clips, the first row; of a data set without
    a test split, whose rows choose anyway, the lowest reported one.
    """
    name = headline_metric().name

    def rank(row: Mapping[str, Any]) -> float:
        if name in row.get("validation", {}):
            return float(row["validation"][name])
        return 0.0 if has_test_split else float(row[name])

    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        current = best.setdefault(row["model"], row)
        if rank(row) < rank(current):
            best[row["model"]] = row
    for row in rows:
        row["chosen"] = best[row["model"]] is row
