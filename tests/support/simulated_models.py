"""Embeddings of made-up models whose MMDs to real music have a known ratio, about as wide as those of shipped ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from presto_core.metrics.distances import Matrix
from presto_core.metrics.mmd_ratio import GroupedEmbeddings

DIM = 32
SCALES = 1 / np.sqrt(1 + np.arange(DIM) // 2)  # pairs of dimensions of equal spread, which shifts can turn in
BETWEEN = 0.6  # share of the variance of music that lies between tracks
ADHERENCE = 0.7  # how much of its prompt's track a clip has
SHIFT = 0.38  # of the teacher: MMD x 1000 of about 23, as the shipped teacher has


@dataclass(frozen=True)
class Design:
    """Numbers of clips of each model, of tracks of prompts and real music, and of clips of real music."""

    clips: int
    tracks: int
    real: int


SHIPPED_VALIDATION = Design(clips=128, tracks=57, real=180)
"""Of the report on the shipped models; a hundred and twenty minutes of the default corpus."""
SHIPPED_TEST = Design(clips=512, tracks=258, real=300)


def simulate_models(
    design: Design, factor: float, rng: np.random.Generator
) -> tuple[GroupedEmbeddings, GroupedEmbeddings, GroupedEmbeddings]:
    """Return clips of a candidate, of its teacher, and real music; the candidate's MMD is `factor` times the teacher's.

    For small shifts MMD grows with the square of the shift. The candidate errs in a direction of its own.
    """
    tracks = rng.standard_normal((design.tracks, DIM)) * SCALES * np.sqrt(BETWEEN)
    of_clips, of_real = np.arange(design.clips) % design.tracks, np.arange(design.real) % design.tracks
    direction = np.tile([1.0, 0.0], DIM // 2)
    turned = (direction + np.roll(direction, 1)) / np.sqrt(2)
    mine = _generate(tracks[of_clips], SHIFT * np.sqrt(factor) * turned, rng)
    theirs = _generate(tracks[of_clips], SHIFT * direction, rng)
    real = tracks[of_real] + _draw_within(design.real, rng)
    return (
        GroupedEmbeddings(mine, of_clips),
        GroupedEmbeddings(theirs, of_clips),
        GroupedEmbeddings(real, of_real),
    )


def make_arrays(
    system: str, embeddings: np.ndarray, *, split: str = "validation", first_track: int = 0
) -> dict[str, np.ndarray]:
    """A system's clips [N, patches, D] as a report stores them, each of a track of its own."""
    key = f"{split}/{system}"
    return {key: embeddings.astype(np.float32), f"{key}/tracks": first_track + np.arange(len(embeddings))}


def _generate(tracks: Matrix, shift: Matrix, rng: np.random.Generator) -> Matrix:
    other = rng.standard_normal(tracks.shape) * SCALES * np.sqrt(BETWEEN)
    followed = ADHERENCE * tracks + np.sqrt(1 - ADHERENCE**2) * other
    return followed + _draw_within(len(tracks), rng) + shift * SCALES


def _draw_within(count: int, rng: np.random.Generator) -> Matrix:
    return rng.standard_normal((count, DIM)) * SCALES * np.sqrt(1 - BETWEEN)
