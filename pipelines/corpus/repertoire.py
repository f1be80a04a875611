"""Real public-domain pieces: read the voices of a vetted file in tapped beats, and choose excerpts in its key."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pipelines.corpus.index import RepertoireEntry, parse_file
from pipelines.corpus.keys import Key, parse_key
from pipelines.corpus.score import Note, cut_window, is_in_key, loop_notes

SOURCES = {
    "bach": "four-part chorale by J. S. Bach (1685-1750), encoding in music21's corpus (bach/{file})",
    "ryan": "Ryan's Mammoth Collection (Boston, 1883), ABC transcription in music21's corpus (ryansMammoth/{file})",
}
LICENCES = {
    "bach": "public-domain composition; encoding distributed with music21, no rights statement in the file",
    "ryan": "public-domain composition; transcription distributed with music21, no rights statement in the file",
}
CORPUS_NOTE = (
    "music21's corpus/license.txt: the encodings are distributed with their encoders' permission, to its authors' "
    "best knowledge out of copyright in the United States or licensed for use, though there may be restrictions "
    "on commercial use. Its Bach .krn files reserve derivative formats and are not used here."
)


@dataclass(frozen=True, slots=True)
class Tune:
    """The voices of a piece from its first bar line, highest first; it repeats every `period_beats`."""

    voices: tuple[tuple[Note, ...], ...]
    key: Key
    beats_per_bar: int
    period_beats: float


def _merge_ties(part: Any, beat_quarters: float) -> list[Note]:
    """Return the part's notes in beats; tied notes are merged, grace notes (no duration) are dropped."""
    notes: list[Note] = []
    open_ties: dict[int, int] = {}
    for element in part.flatten().notes:
        start, length = float(element.offset) / beat_quarters, float(element.quarterLength) / beat_quarters
        tie = element.tie.type if element.tie is not None else None
        for pitch in (one.midi for one in element.pitches):
            if tie in ("stop", "continue") and pitch in open_ties:
                index = open_ties[pitch]
                notes[index] = replace(notes[index], duration_beats=start + length - notes[index].start_beats)
            elif length > 0:
                open_ties[pitch] = len(notes)
                notes.append(Note(start, length, pitch, 84))
    return notes


def _shift_to_bar_line(notes: Sequence[Note], *, pickup_beats: float, period_beats: float) -> tuple[Note, ...]:
    """Count time from the first bar line.

    The pickup moves to the end, where it leads into the next verse, if the last bar has room for it.
    """
    shifted = [replace(note, start_beats=note.start_beats - pickup_beats) for note in notes]
    verse = [note for note in shifted if note.start_beats > -1e-6]
    pickup = [replace(note, start_beats=note.start_beats + period_beats) for note in shifted if note not in verse]
    if verse and verse[-1].end_beats <= period_beats - pickup_beats + 1e-6:
        verse += pickup
    return cut_window(verse, start_beats=0.0, length_beats=period_beats)


@lru_cache(maxsize=64)
def read_tune(entry: RepertoireEntry) -> Tune:
    """Parse a file with music21; its exceptions propagate, and the caller skips the piece."""
    period = float(entry.bars * entry.beats_per_bar)
    voices = tuple(
        _shift_to_bar_line(_merge_ties(part, entry.beat_quarters), pickup_beats=entry.pickup_beats, period_beats=period)
        for part in parse_file(entry.collection, entry.file).parts
    )
    if not all(voices):
        raise ValueError(f"{entry.collection}/{entry.file} has a part that contains no notes")
    return Tune(voices, parse_key(entry.key), entry.beats_per_bar, period)


def excerpt_voices(tune: Tune, *, start_bar: int, length_beats: float) -> tuple[tuple[Note, ...], ...]:
    """Return the voices from `start_bar`, with repeats, for `length_beats`."""
    start = float(start_bar * tune.beats_per_bar)
    return tuple(
        cut_window(
            loop_notes(voice, period_beats=tune.period_beats, length_beats=start + length_beats),
            start_beats=start,
            length_beats=length_beats,
        )
        for voice in tune.voices
    )


def choose_start_bar(rng: random.Random, tune: Tune, *, length_beats: float, step_bars: int) -> int:
    """Draw a bar line on which the melody starts and from which the excerpt stays in the tune's key."""
    bars = list(range(0, int(tune.period_beats // tune.beats_per_bar), step_bars))
    rng.shuffle(bars)
    for bar in bars:
        voices = excerpt_voices(tune, start_bar=bar, length_beats=length_beats)
        if voices[0] and voices[0][0].start_beats < 1e-6 and is_in_key(voices, tune.key):
            return bar
    raise ValueError(f"no excerpt of {length_beats:.0f} beats starts on a bar line and stays in {tune.key.name}")
