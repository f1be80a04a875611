"""Make an English caption from a piece's metadata."""

from __future__ import annotations

import random

from pipelines.corpus.score import Piece

TEMPO_WORDS = ((66, "very slow"), (84, "slow"), (116, "mid-tempo"), (146, "fast"))
FASTEST_WORD = "very fast"
# Every phrasing names instruments, genre, texture, tempo (as text and number) and key.
PHRASINGS = (
    "{ensemble}, {genre}, {texture}, {tempo}, {bpm} bpm, {key}",
    "{tempo} {genre} played by {ensemble}, {texture}, {bpm} bpm, in {key}",
    "{genre} for {ensemble} in {key}: {texture}, {tempo}, {bpm} bpm",
    "{ensemble} playing {tempo} {genre} in {key} at {bpm} bpm, {texture}",
    "{texture}, {ensemble}, {tempo} {genre} at {bpm} bpm in {key}",
)


def tempo_word(tempo_bpm: int) -> str:
    """Return the description of a tapped tempo, from `very slow` below 66 bpm to `very fast` from 146 bpm."""
    return next((word for limit, word in TEMPO_WORDS if tempo_bpm < limit), FASTEST_WORD)


def make_caption(piece: Piece, *, seed: int) -> str:
    """Fill in a phrasing drawn from the seed and the composition; equal arguments give equal captions."""
    phrasing = random.Random(f"caption/{piece.composition_id}/{seed}").choice(PHRASINGS)
    text = phrasing.format(
        ensemble=piece.ensemble,
        genre=piece.genre,
        texture=piece.texture,
        tempo=tempo_word(piece.tempo_bpm),
        bpm=piece.tempo_bpm,
        key=piece.key,
    )
    return text[0].upper() + text[1:]
