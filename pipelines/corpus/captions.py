"""Make English captions from a piece's metadata: one that states everything, and wordings that state some of it."""

from __future__ import annotations

import random

from pipelines.corpus.score import Piece

TEMPO_WORDS = ((66, "very slow"), (84, "slow"), (116, "mid-tempo"), (146, "fast"))
FASTEST_WORD = "very fast"
TEMPO_SYNONYMS = {
    "very slow": ("very slow", "largo"),
    "slow": ("slow", "unhurried", "slow tempo"),
    "mid-tempo": ("mid-tempo", "moderate tempo", "walking pace"),
    "fast": ("fast", "quick", "lively tempo"),
    "very fast": ("very fast", "presto"),
}
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


def make_wordings(piece: Piece, *, seed: int, count: int) -> list[str]:
    """Return `count` captions that differ in order and wording and leave some attributes out, as people's prompts do.

    Each names the ensemble or the genre. Equal arguments give equal captions, and a longer list starts with a shorter.
    """
    rng = random.Random(f"wordings/{piece.composition_id}/{seed}")
    return [_make_wording(piece, rng) for _ in range(count)]


def _make_wording(piece: Piece, rng: random.Random) -> str:
    subjects = rng.choice((["ensemble"], ["genre"], ["ensemble", "genre"], ["ensemble", "genre"]))
    details = [name for name in ("texture", "tempo", "key") if rng.random() < 0.6]
    phrases = {
        "ensemble": piece.ensemble,
        "genre": piece.genre,
        "texture": piece.texture,
        "tempo": _phrase_tempo(piece.tempo_bpm, rng),
        "key": rng.choice(("{}", "in {}", "key of {}")).format(piece.key),
    }
    if len(subjects) == 2 and rng.random() < 0.5:  # joined into one phrase, otherwise two items of the list
        form = rng.choice(("{genre} for {ensemble}", "{ensemble} playing {genre}", "{genre} played by {ensemble}"))
        phrases["both"], subjects = form.format(**phrases), ["both"]
    names = subjects + details
    if rng.random() < 0.7:
        rng.shuffle(names)
    text = ", ".join(phrases[name] for name in names)
    return text[0].upper() + text[1:] if rng.random() < 0.5 else text


def _phrase_tempo(tempo_bpm: int, rng: random.Random) -> str:
    word = rng.choice(TEMPO_SYNONYMS[tempo_word(tempo_bpm)])
    return rng.choice(("{word}", "{word}", "{bpm} bpm", "{word}, {bpm} bpm", "at {bpm} bpm")).format(
        word=word, bpm=tempo_bpm
    )
