"""Pieces of music: notes in tapped beats, parts and metadata, with transformations and conversion to MIDI."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipelines.corpus.keys import Key, estimate_key, parse_key, pitch_class_weights
from presto_core.extras import import_extra

TICKS_PER_BEAT = 480
DRUM_CHANNEL = 9
MELODIC_CHANNELS = tuple(channel for channel in range(16) if channel != DRUM_CHANNEL)


@dataclass(frozen=True, slots=True)
class Note:
    """One note; its beats are those a listener taps, so a 6/8 bar of a jig has two."""

    start_beats: float
    duration_beats: float
    pitch: int
    velocity: int

    @property
    def end_beats(self) -> float:
        return self.start_beats + self.duration_beats


@dataclass(frozen=True, slots=True)
class Part:
    """One instrument's notes; `program` is a General MIDI program number, for drums that of the kit."""

    name: str
    program: int
    notes: tuple[Note, ...]
    is_drums: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Music and the metadata that captions and the manifest state about it."""

    parts: tuple[Part, ...]
    tempo_bpm: int
    key: str
    beats_per_bar: int
    genre: str
    ensemble: str
    texture: str
    composition_id: str
    title: str
    composer: str
    source: str
    licence: str

    @property
    def length_beats(self) -> float:
        return max((note.end_beats for part in self.parts for note in part.notes), default=0.0)


def is_in_key(voices: Iterable[Iterable[Note]], key: Key) -> bool:
    """Return whether the key estimated from the notes, weighted by duration, is this key; False for silence."""
    notes = [note for voice in voices for note in voice]
    if not notes:
        return False
    weights = pitch_class_weights((note.pitch for note in notes), (note.duration_beats for note in notes))
    return estimate_key(weights) == key


def transpose_notes(notes: Iterable[Note], semitones: int) -> tuple[Note, ...]:
    return tuple(replace(note, pitch=note.pitch + semitones) for note in notes)


def change_velocity(notes: Iterable[Note], velocity: int) -> tuple[Note, ...]:
    return tuple(replace(note, velocity=max(1, min(127, note.velocity + velocity))) for note in notes)


def transpose(piece: Piece, semitones: int) -> Piece:
    """Transpose the piece and its key by `semitones`; drums stay unchanged."""
    parts = tuple(
        part if part.is_drums else replace(part, notes=transpose_notes(part.notes, semitones)) for part in piece.parts
    )
    return replace(piece, parts=parts, key=parse_key(piece.key).transpose(semitones).name)


def cut_window(notes: Iterable[Note], *, start_beats: float, length_beats: float) -> tuple[Note, ...]:
    """Return the notes that start inside the window, with times relative to its start, cut at its end."""
    end = start_beats + length_beats
    inside = (note for note in notes if start_beats - 1e-6 <= note.start_beats < end - 1e-6)
    return tuple(
        replace(
            note,
            start_beats=max(0.0, note.start_beats - start_beats),
            duration_beats=min(note.duration_beats, end - note.start_beats),
        )
        for note in inside
    )


def excerpt(piece: Piece, *, start_bar: int, seconds: float) -> Piece:
    """Return `seconds` of the piece from the given bar line (0 = the beginning)."""
    start = start_bar * piece.beats_per_bar
    length = seconds * piece.tempo_bpm / 60
    parts = tuple(
        replace(part, notes=cut_window(part.notes, start_beats=start, length_beats=length)) for part in piece.parts
    )
    return replace(piece, parts=parts)


def loop_notes(notes: Sequence[Note], *, period_beats: float, length_beats: float) -> tuple[Note, ...]:
    """Repeat the notes every `period_beats`, like verses, until `length_beats` is filled."""
    repeats = max(1, -int(-length_beats // period_beats))
    return tuple(
        replace(note, start_beats=note.start_beats + turn * period_beats)
        for turn in range(repeats)
        for note in notes
        if note.start_beats + turn * period_beats < length_beats - 1e-6
    )


def _humanize_note(note: Note, rng: random.Random, timing_beats: float, velocity: int) -> Note:
    return replace(
        note,
        start_beats=max(0.0, note.start_beats + rng.gauss(0.0, timing_beats)),
        velocity=max(1, min(127, note.velocity + rng.randint(-velocity, velocity))),
    )


def humanize(piece: Piece, rng: random.Random, *, timing_beats: float, velocity: int) -> Piece:
    """Perturb every onset (normal, standard deviation `timing_beats`) and velocity (uniform, ± `velocity`)."""
    parts = tuple(
        replace(part, notes=tuple(_humanize_note(note, rng, timing_beats, velocity) for note in part.notes))
        for part in piece.parts
    )
    return replace(piece, parts=parts)


def trim_overlaps(notes: Iterable[Note]) -> list[Note]:
    """End each note where its pitch starts again, because one MIDI note-off would end both."""
    result: list[Note] = []
    by_pitch = sorted(notes, key=lambda note: (note.pitch, note.start_beats))
    for note, following in zip(by_pitch, [*by_pitch[1:], None], strict=True):
        if following is not None and following.pitch == note.pitch and following.start_beats < note.end_beats:
            note = replace(note, duration_beats=following.start_beats - note.start_beats)
        if note.duration_beats > 0:
            result.append(note)
    return result


def _make_messages(part: Part, channel: int) -> list[tuple[int, int, object]]:
    """Return (tick, order, message) of a part; at equal ticks a note ends before the next one starts."""
    mido = import_extra("mido", "writing MIDI")
    messages: list[tuple[int, int, object]] = [
        (0, 0, mido.Message("program_change", channel=channel, program=part.program))
    ]
    for note in trim_overlaps(part.notes):
        if not 0 <= note.pitch <= 127:
            raise ValueError(f"part {part.name!r} has pitch {note.pitch}; MIDI pitches are 0 to 127")
        start = round(note.start_beats * TICKS_PER_BEAT)
        end = max(start + 1, round(note.end_beats * TICKS_PER_BEAT))
        on = mido.Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)
        off = mido.Message("note_off", channel=channel, note=note.pitch, velocity=0)
        messages += [(start, 2, on), (end, 1, off)]
    return messages


def to_midi(piece: Piece) -> bytes:
    """Encode the piece as a type-0 MIDI file; ValueError if it needs more than 15 melodic channels."""
    mido = import_extra("mido", "writing MIDI")
    melodic = iter(MELODIC_CHANNELS)
    events: list[tuple[int, int, object]] = []
    for part in piece.parts:
        channel = DRUM_CHANNEL if part.is_drums else next(melodic, None)
        if channel is None:
            raise ValueError(f"{piece.title!r} has {len(piece.parts)} parts; use at most 15 melodic parts")
        events += _make_messages(part, channel)
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(piece.tempo_bpm))])
    last_tick = 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - last_tick))  # type: ignore[attr-defined]
        last_tick = tick
    file = mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_BEAT, tracks=[track])
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()
