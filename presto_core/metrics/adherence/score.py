"""Prompt adherence of a system: shares of clips with the tempo, key and instruments of their prompts, beside chance.

The chance level of a share, `<name>_shuffled`, is what clips score against prompts of other tracks: the mean over all
such pairs, which a random reassignment of prompts only approximates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presto_core.diffusion.conditioning import UNKNOWN_KEY
from presto_core.metrics.adherence.interval import hit_interval
from presto_core.metrics.adherence.key import key_similarity
from presto_core.metrics.adherence.tags import divergence_matrix, find_top_tags, make_tag_mask, tag_kl
from presto_core.metrics.intervals import MIN_TRACKS

Array = NDArray[np.float64]

TEMPO_TOLERANCE = 0.04
"""Relative error of a tempo that counts as a hit: Accuracy 1 of MIREX and Gouyon et al. (2006)."""
OCTAVE_FACTORS = (2.0, 3.0, 1 / 2, 1 / 3)
"""What their Accuracy 2 allows beside."""
BLOCK_CLIPS = 512


@dataclass(frozen=True)
class ClipMeasurements:
    """What was estimated from a system's clips.

    Attributes:
        tempo_bpm: [N], NaN without a clear beat.
        key: [N] as `key_index` counts, NaN without a key.
        tags: [N, 50] tag probabilities of musicnn, means over patches; None if they were not measured.
    """

    tempo_bpm: NDArray[np.floating]
    key: NDArray[np.floating]
    tags: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class PromptTargets:
    """What their prompts ask for.

    Attributes:
        captions: [N].
        tempo_bpm: [N]; NaN or <= 0 if unknown.
        key: [N] as `key_index` counts; `UNKNOWN_KEY` if unknown.
        groups: [N] number of the track that each prompt is of.
        tags: [N, 50] tag probabilities of that track's own clip; None if they were not measured.
    """

    captions: Sequence[str]
    tempo_bpm: NDArray[np.floating]
    key: NDArray[np.integer]
    groups: NDArray[np.integer]
    tags: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Scores:
    """One share: hits [N] out of chances [N] per clip, and the share against prompts of other tracks (or None)."""

    hits: Array
    chances: Array
    shuffled: float | None

    @property
    def share(self) -> float:
        return float(self.hits.sum() / self.chances.sum())


def measure_adherence(
    clips: ClipMeasurements, prompts: PromptTargets, *, reference_tags: NDArray[np.floating] | None = None
) -> dict[str, float]:
    """Return the shares with their chance levels, and how many prompts they rest on.

    Args:
        reference_tags: [M, 50] of real music, for `tag_kl`.

    Returns:
        tempo_hits, tempo_octave_errors, key_hits, key_score (MIREX's weights), tag_hits, each with `<name>_shuffled`;
        tempo_prompts, key_prompts, tag_prompts: prompts that state one; tempo_unclear, key_unclear: clips of these
        without an estimate, which count as misses; tag_kl of the sets; tag_kl_paired per prompt with its chance
        level. What no prompt states, or was not measured, is left out.

    Raises:
        ValueError: clips and prompts differ in number.
    """
    values: dict[str, float] = {}
    for name, scores in score_clips(clips, prompts).items():
        values[name] = scores.share
        if scores.shuffled is not None:
            values[f"{name}_shuffled"] = scores.shuffled
    return values | count_prompts(clips, prompts) | measure_tag_divergence(clips, prompts, reference_tags)


def estimate_adherence_intervals(
    clips: ClipMeasurements, prompts: PromptTargets, *, confidence: float
) -> dict[str, tuple[float, float]]:
    """Return share -> lower and upper end, over tracks; shares that rest on fewer than four tracks are left out."""
    return {
        name: hit_interval(hits=scores.hits, chances=scores.chances, groups=prompts.groups, confidence=confidence)
        for name, scores in score_clips(clips, prompts).items()
        if len(np.unique(prompts.groups[scores.chances > 0])) >= MIN_TRACKS
    }


def score_clips(clips: ClipMeasurements, prompts: PromptTargets) -> dict[str, Scores]:
    """Return the scores of every share that some prompt gives a chance to."""
    if not len(clips.tempo_bpm) == len(clips.key) == len(prompts.captions) == len(prompts.groups):
        raise ValueError(f"{len(clips.tempo_bpm)} clips cannot be compared with {len(prompts.captions)} prompts")
    has_tempo, has_key = find_stated(prompts)
    tempo, key = np.where(has_tempo, prompts.tempo_bpm, np.nan), np.where(has_key, prompts.key, -1)
    pairs: dict[str, tuple[PairScores, NDArray[Any]]] = {
        "tempo_hits": (lambda rows: match_tempi(clips.tempo_bpm[rows], tempo), has_tempo),
        "tempo_octave_errors": (lambda rows: match_tempi(clips.tempo_bpm[rows], tempo, OCTAVE_FACTORS), has_tempo),
        "key_hits": (lambda rows: match_keys(clips.key[rows], key) == 1, has_key),
        "key_score": (lambda rows: match_keys(clips.key[rows], key), has_key),
    }
    if clips.tags is not None:
        top, mask = find_top_tags(clips.tags).astype(float), make_tag_mask(list(prompts.captions)).astype(float)
        pairs["tag_hits"] = (lambda rows: top[rows] @ mask.T, mask.sum(1))
    return {name: score_pairs(*pair, prompts.groups) for name, pair in pairs.items() if pair[1].any()}


PairScores = Callable[[slice], NDArray[Any]]
"""Rows of clips -> scores of these clips against all prompts: [rows, N], 0 where a prompt gives no chance."""


def score_pairs(pairs: PairScores, chances: NDArray[Any], groups: NDArray[np.integer]) -> Scores:
    """Score each clip against its own prompt, and against all prompts of other tracks, in blocks of clips.

    Args:
        chances: [N] what each prompt gives at most.
    """
    num_clips, most = len(groups), np.asarray(chances, np.float64)
    hits, other_hits, other_chances = np.zeros(num_clips), 0.0, 0.0
    for start in range(0, num_clips, BLOCK_CLIPS):
        rows = slice(start, min(start + BLOCK_CLIPS, num_clips))
        scores = np.asarray(pairs(rows), np.float64)
        is_other = groups[rows, None] != groups[None]
        hits[rows] = np.diagonal(scores, offset=start)
        other_hits += float((scores * is_other).sum())
        other_chances += float((most * is_other).sum())
    return Scores(hits, most, other_hits / other_chances if other_chances else None)


def match_tempi(
    estimated: NDArray[np.floating], expected: NDArray[np.floating], factors: Sequence[float] = (1.0,)
) -> NDArray[np.bool_]:
    """Return which tempi [B] lie within 4 % of a factor of which others [M]: [B, M]; NaN matches none."""
    ratios = estimated[:, None] / expected[None]
    return np.any([np.abs(ratios / factor - 1) <= TEMPO_TOLERANCE for factor in factors], axis=0)


def match_keys(estimated: NDArray[np.floating], expected: NDArray[Any]) -> Array:
    """Return `key_similarity` of all pairs [B, M]; estimates of NaN and expected keys of -1 score 0."""
    table = np.zeros((25, 25))
    table[:24, :24] = [[key_similarity(guess, true) for true in range(24)] for guess in range(24)]
    guesses = np.where(np.isnan(estimated), UNKNOWN_KEY, estimated).astype(int)
    return table[guesses[:, None], np.asarray(expected, int)[None]]  # row 24 and column -1 are zeros


def find_stated(prompts: PromptTargets) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which prompts [N] state a tempo, and which a key."""
    return prompts.tempo_bpm > 0, prompts.key != UNKNOWN_KEY


def count_prompts(clips: ClipMeasurements, prompts: PromptTargets) -> dict[str, float]:
    """Return how many prompts state what, and how many of their clips have no estimate."""
    has_tempo, has_key = find_stated(prompts)
    counts = {
        "tempo_prompts": has_tempo,
        "tempo_unclear": has_tempo & np.isnan(clips.tempo_bpm),
        "key_prompts": has_key,
        "key_unclear": has_key & np.isnan(clips.key),
    }
    if clips.tags is not None:
        counts["tag_prompts"] = make_tag_mask(list(prompts.captions)).any(1)
    return {name: float(np.count_nonzero(which)) for name, which in counts.items()}


def measure_tag_divergence(
    clips: ClipMeasurements, prompts: PromptTargets, reference_tags: NDArray[np.floating] | None
) -> dict[str, float]:
    """Return tag_kl to real music, and tag_kl_paired to each prompt's own real clip, with its chance level."""
    values: dict[str, float] = {}
    if clips.tags is None:
        return values
    if reference_tags is not None:
        values["tag_kl"] = tag_kl(generated=clips.tags, reference=reference_tags)
    if prompts.tags is not None:
        generated, reference = clips.tags, prompts.tags
        paired = score_pairs(
            lambda rows: divergence_matrix(generated=generated[rows], reference=reference),
            np.ones(len(prompts.groups)),
            prompts.groups,
        )
        values["tag_kl_paired"] = paired.share
        if paired.shuffled is not None:
            values["tag_kl_paired_shuffled"] = paired.shuffled
    return values
