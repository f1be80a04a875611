"""The table of metrics: the only list of the numbers that are reported, searched and swept. Read without PyTorch.

A new metric is one function of two sets of embeddings, in a file of its own, and one row here: evaluation, report,
validation, sweeps, registry tags and search read the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from presto_core.metrics.embedding_sets import EmbeddingSets as EmbeddingSets
from presto_core.metrics.embedding_sets import compute_fd, compute_fd_inf, compute_mmd, compute_sample_distance
from presto_core.metrics.metric import Metric as Metric

ROWS = (
    Metric(
        "nfe", "NFE", "network evaluations per clip", better="", format=".0f", group="cost", registry_name="nfe",
    ),
    Metric(
        "blocks_run", "blocks per clip", "transformer blocks executed per clip", format=".0f", group="cost",
        column=False, validated=True, registry_name="blocks", former_names=("blocks",),
    ),
    Metric(
        "mmd", "MMD x 1000", "squared maximum mean discrepancy (RBF) to real music, unbiased; ranks systems",
        format=".1f", scale=1e3, compute=compute_mmd, family="kernel", headline=True, validated=True,
        registry_name="mmd",
    ),
    Metric(
        "precision", "precision", "share of clips inside the real distribution", better="higher",
        compute=lambda sets: sets.prdc["precision"], needs="nearest_k", family="neighbors", share_of="generated",
        registry_name="precision",
    ),
    Metric(
        "recall", "recall", "share of real music inside the generated distribution", better="higher",
        compute=lambda sets: sets.prdc["recall"], needs="nearest_k", family="neighbors", share_of="reference",
        registry_name="recall",
    ),
    Metric(
        "density", "density", "fidelity by nearest neighbors (Naeem et al. 2020)", better="higher",
        compute=lambda sets: sets.prdc["density"], needs="nearest_k", family="neighbors", counts_neighbors=True,
        registry_name="density",
    ),
    Metric(
        "coverage", "coverage", "diversity by nearest neighbors (Naeem et al. 2020)", better="higher",
        compute=lambda sets: sets.prdc["coverage"], needs="nearest_k", family="neighbors", share_of="reference",
        registry_name="coverage",
    ),
    Metric(
        "fd", "FD", "Fréchet distance to real music; biased upward for few clips", compute=compute_fd,
        rows_per_dim=2, family="frechet", least=0.0, column=False, validated=True, registry_name="fd",
    ),
    Metric(
        "fd_inf", "FD∞", "Fréchet distance to real music, extrapolated to infinitely many clips",
        compute=compute_fd_inf, min_rows=4, rows_per_dim=2, family="frechet", registry_name="fd_inf",
    ),
    Metric(
        "sample_distance", "to teacher",
        "squared distance to the teacher's clip from the same noise: 0 is the same clip, 1 an unrelated one",
        compute=compute_sample_distance, needs="teacher", column=False, registry_name="sample_distance",
    ),
    Metric(
        "fd_to_teacher", "FD to teacher",
        "Fréchet distance to the teacher's clips from the same noise; in reports before format 2 only",
        column=False, registry_name="fd_to_base", former_names=("fd_to_base",),
    ),
    Metric(
        "clap_score", "CLAP score", "mean cosine similarity of clip and caption in a CLAP embedding", better="higher",
        format=".3f", group="prompt", column=False, registry_name="clap_score",
    ),
    Metric(
        "tempo_hits", "tempo hits", "share of clips at the tempo of their prompt", better="higher", group="prompt",
        column=False, registry_name="tempo_hits",
    ),
    Metric(
        "tempo_hits_shuffled", "tempo hits, by chance", "tempo hits against the prompts of other tracks: chance level",
        better="", group="prompt", column=False,
    ),
    Metric(
        "tempo_octave_errors", "tempo octaves", "share of clips at 2, 3, 1/2 or 1/3 of the tempo of their prompt",
        group="prompt", column=False,
    ),
    Metric(
        "key_hits", "key hits", "share of clips in the key of their prompt", better="higher", group="prompt",
        column=False, registry_name="key_hits",
    ),
    Metric(
        "key_hits_shuffled", "key hits, by chance", "key hits against the prompts of other tracks: chance level",
        better="", group="prompt", column=False,
    ),
    Metric(
        "tag_hits", "tag hits", "share of the instruments in prompts that a tagger finds in the clip", better="higher",
        group="prompt", column=False,
    ),
    Metric(
        "tag_hits_shuffled", "tag hits, by chance", "tag hits against the prompts of other tracks: chance level",
        better="", group="prompt", column=False,
    ),
    Metric(
        "tag_kl", "tag KL", "KL divergence of tag distributions from real music's", format=".3f", group="prompt",
        column=False,
    ),
    Metric(
        "clipped", "clipped", "share of clips with clipped samples", group="audio", column=False,
    ),
    Metric(
        "silence", "silence", "share of 50 ms frames below -60 dBFS", better="", group="audio", column=False,
    ),
    Metric(
        "flatness", "flatness", "spectral flatness: 0 tones, 0.56 white noise", better="", format=".3f", group="audio",
        column=False,
    ),
    Metric(
        "clicks", "clicks", "share of clips with a click at an end", group="audio", column=False,
    ),
    Metric(
        "loudness_lufs", "LUFS", "mean integrated loudness (BS.1770) before levels are matched", better="",
        format=".1f", group="audio", column=False,
    ),
    Metric(
        "side_ratio", "side/mid", "energy of the side channel over that of the mid channel, stereo only", better="",
        format=".3f", group="audio", column=False,
    ),
    Metric(
        "latency_ms", "ms/clip", "median sampling time of one clip at batch size 1, the network alone", format=".0f",
        group="cost", validated=True, registry_name="latency_ms", former_names=("sampling_ms",),
    ),
    Metric(
        "latency_p95_ms", "p95 ms/clip", "95th percentile of the sampling time", format=".0f", group="cost",
        column=False,
    ),
    Metric(
        "text_ms", "text ms", "median time of text encoding for one clip", format=".1f", group="cost", column=False,
    ),
    Metric(
        "decode_ms", "decode ms", "median time of decoding one clip to audio", format=".0f", group="cost",
        column=False,
    ),
    Metric(
        "total_ms", "total ms", "median time of one clip end to end: text, network, decoder", format=".0f",
        group="cost", registry_name="total_ms",
    ),
    Metric(
        "total_p95_ms", "p95 total ms", "95th percentile of the time end to end", format=".0f", group="cost",
        column=False,
    ),
    Metric(
        "batch_total_ms", "batch ms/clip", "time end to end per clip of a batch", format=".0f", group="cost",
        column=False,
    ),
    Metric(
        "cold_ms", "cold ms", "time of the first clip after loading", format=".0f", group="cost", column=False,
    ),
    Metric(
        "peak_memory_mb", "peak MB", "peak memory while sampling", format=".0f", group="cost", column=False,
    ),
    Metric(
        "speed_up_end_to_end", "speed-up", "total ms of the teacher's first sampler over that of the system",
        better="higher", format=".1f", suffix="x", group="cost",
    ),
    Metric(
        "speed_up", "network speed-up", "the same ratio for the network's sampling time alone", better="higher",
        format=".1f", suffix="x", group="cost", column=False, registry_name="speed_up",
    ),
)  # fmt: skip
METRICS: dict[str, Metric] = {row.name: row for row in ROWS}


def measure_quality(sets: EmbeddingSets, *, validated_only: bool = False) -> dict[str, float]:
    """Name -> value of every metric that these sets allow, and are large enough for.

    Args:
        validated_only: only what validations report, and that at any size.

    Raises:
        ValueError: embeddings do not compare, are too few, or are not finite.
    """
    return {
        metric.name: metric.compute(sets)
        for metric in METRICS.values()
        if metric.compute
        # validations compare weights at one number of clips, where the bias of FD is the same for all of them: runs and
        # sweeps that rank by it keep it however few the clips. What is reported does not
        and metric.fits(sets, with_few_rows=validated_only)
        and (metric.validated or not validated_only)
    }


def headline_metric() -> Metric:
    """The metric that validation, search and promotion rank by."""
    return next(metric for metric in METRICS.values() if metric.headline)


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
    lines = ["| name | group | title | better | measures | shown | search by |", "|---|---|---|---|---|---|---|"]
    for metric in METRICS.values():
        shown_where = {"terminal": metric.column, "validation": metric.validated}
        shown = ", ".join(name for name, is_shown in shown_where.items() if is_shown)
        found_by = ", ".join(f"`{name}`" for name in dict.fromkeys((metric.name, metric.registry_name)) if name)
        search = found_by if metric.registry_name else ""
        cells = (f"`{metric.name}`", metric.group, metric.title, metric.better, metric.description, shown, search)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
