"""What is measured on each clip of a system (health, tempo, key), and its summary for a row of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.data.parquet_tensors import Array
from pipelines.evaluate.rows import Prompts
from presto_core.audio.loudness import integrated_loudness
from presto_core.metrics.adherence.key import estimate_key
from presto_core.metrics.adherence.score import (
    ClipMeasurements,
    PromptTargets,
    estimate_adherence_intervals,
    measure_adherence,
)
from presto_core.metrics.adherence.tempo import estimate_tempo
from presto_core.metrics.audio_health import measure_health, summarize_health
from presto_core.metrics.stereo import split_channels

CLIP_MEASURES = (
    "peak",
    "clipped_samples",
    "silence",
    "flatness",
    "clicks_start",
    "clicks_end",
    "dc_offset",
    "loudness_lufs",
    "mid_power",
    "side_power",
    "side_ratio",
    "mono_compatibility",
    "tempo_bpm",
    "key",
)


def measure_clip(audio: Array, *, rate_hz: int) -> dict[str, float]:
    """Measure one clip [A, N]: name -> value of every one of CLIP_MEASURES, NaN where it has none."""
    loudness = integrated_loudness([audio.T], sample_rate_hz=rate_hz)
    found: dict[str, Any] = measure_health(audio, rate_hz=rate_hz, loudness_lufs=loudness)
    mid = split_channels(audio[None])["mid"][0]
    found |= {"tempo_bpm": estimate_tempo(mid, rate_hz=rate_hz), "key": estimate_key(mid, rate_hz=rate_hz)}
    return {name: math.nan if found.get(name) is None else float(found[name]) for name in CLIP_MEASURES}


def summarize_clips(clips: Mapping[str, Array]) -> dict[str, float]:
    """Audio health of a system, from `measure_clip` of its clips: name -> [N]."""
    count = len(next(iter(clips.values())))
    rows = [
        {name: float(values[i]) for name, values in clips.items() if not math.isnan(values[i])} for i in range(count)
    ]
    return summarize_health(rows)


def summarize_adherence(
    clips: Mapping[str, Array],
    prompts: Prompts,
    *,
    tags: Array,
    reference_tags: Array,
    prompt_tags: Array | None,
    confidence: float,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """How far a system follows its prompts: shares with their floors, and the intervals of the shares.

    Args:
        tags, reference_tags: [N, 50] and [M, 50] tag probabilities of its clips and of real music.
        prompt_tags: [N, 50] of the real clip that each prompt describes; None if these are not at hand.
    """
    measured = ClipMeasurements(clips["tempo_bpm"], clips["key"], tags)
    targets = PromptTargets(
        [str(caption) for caption in prompts.caption],
        prompts.tempo_bpm.astype(np.float64),
        prompts.key.astype(np.int64),
        prompts.groups,
        prompt_tags,
    )
    shares = measure_adherence(measured, targets, reference_tags=reference_tags)
    return shares, estimate_adherence_intervals(measured, targets, confidence=confidence)
