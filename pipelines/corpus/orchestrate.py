"""Orchestrate real pieces: (entry, seed, length) → a Piece with seeded instruments, tempo and key."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from pipelines.corpus.ensembles import CHORALE_SETTINGS, TUNE_SETTINGS, TUNE_TEMPO_BPM, ChoraleSetting, TuneSetting
from pipelines.corpus.harmony import Chord, harmonize, make_layer_bars
from pipelines.corpus.index import RepertoireEntry
from pipelines.corpus.patterns import PATTERNS
from pipelines.corpus.repertoire import LICENCES, SOURCES, Tune, choose_start_bar, excerpt_voices, read_tune
from pipelines.corpus.score import (
    Note,
    Part,
    Piece,
    change_velocity,
    excerpt,
    humanize,
    loop_notes,
    transpose,
    transpose_notes,
)

MAX_TRANSPOSITION = 5
TIMING_BEATS = 0.008
VELOCITY_SPREAD = 5
MELODY_ACCENT = 18


def _make_chorale_parts(setting: ChoraleSetting, voices: Sequence[tuple[Note, ...]]) -> list[Part]:
    """Make one part per voice; a soprano with its own instrument is accented."""
    parts = [
        Part(name, program, transpose_notes(voice, 12 * setting.octaves))
        for (name, program), voice in zip(setting.voices, voices, strict=True)
    ]
    if len({program for _, program in setting.voices[:2]}) == 2:
        parts[0] = replace(parts[0], notes=change_velocity(parts[0].notes, MELODY_ACCENT))
    if setting.has_deep_bass:
        name, program = setting.voices[3]
        parts.append(Part(name, program, transpose_notes(voices[3], -12)))
    return parts


def _octave_shift(notes: Sequence[Note], center: float) -> int:
    """Return the octave shift, in semitones, that brings the notes' mean pitch closest to `center`."""
    mean = sum(note.pitch for note in notes) / len(notes)
    return 12 * round((center - mean) / 12)


def _make_backing(setting: TuneSetting, tune: Tune, *, subdivision: int, length_beats: float) -> list[Part]:
    """Make the setting's layers over chords that fit the tune, repeated for `length_beats`."""
    bars = round(tune.period_beats / tune.beats_per_bar)
    chords = harmonize(tune.voices[0], tune.key, beats_per_bar=tune.beats_per_bar, bars=bars)
    if setting.has_static_harmony:
        chords = [Chord(tune.key, 0)] * bars
    parts = []
    for layer in setting.layers:
        accompaniment = make_layer_bars(
            chords, beats=tune.beats_per_bar, center=layer.center, velocity=layer.velocity, subdivision=subdivision
        )
        verse = [note for bar in accompaniment for note in PATTERNS[layer.pattern](bar)]
        verses = loop_notes(verse, period_beats=tune.period_beats, length_beats=length_beats)
        parts.append(Part(layer.name, layer.program, verses))
    return parts


def _make_piece(
    entry: RepertoireEntry,
    tune: Tune,
    setting: ChoraleSetting | TuneSetting,
    *,
    parts: Sequence[Part],
    tempo_bpm: int,
    genre: str,
) -> Piece:
    """Make a piece from the parts, in the original key and from the first bar line."""
    return Piece(
        parts=tuple(parts),
        tempo_bpm=tempo_bpm,
        key=tune.key.name,
        beats_per_bar=entry.beats_per_bar,
        genre=genre,
        ensemble=setting.ensemble,
        texture=setting.texture,
        composition_id=f"{entry.collection}/{entry.tune}",
        title=entry.title,
        composer=entry.composer,
        source=SOURCES[entry.collection].format(file=entry.file),
        licence=LICENCES[entry.collection],
    )


def _perform(piece: Piece, rng: random.Random, *, start_bar: int, semitones: int, seconds: float) -> Piece:
    transposed = transpose(excerpt(piece, start_bar=start_bar, seconds=seconds), semitones)
    return humanize(transposed, rng, timing_beats=TIMING_BEATS, velocity=VELOCITY_SPREAD)


def arrange_chorale(entry: RepertoireEntry, *, seed: int, seconds: float) -> Piece:
    """Arrange a chorale with a seeded setting; ValueError if no excerpt of this length stays in its key."""
    rng = random.Random(f"chorale/{entry.file}/{seed}")
    setting = rng.choice(CHORALE_SETTINGS)
    bpm, semitones = rng.randint(*setting.tempo_bpm), rng.randint(-MAX_TRANSPOSITION, MAX_TRANSPOSITION)
    tune, length = read_tune(entry), seconds * bpm / 60
    start_bar = choose_start_bar(rng, tune, length_beats=length, step_bars=1)
    voices = excerpt_voices(tune, start_bar=0, length_beats=start_bar * tune.beats_per_bar + length)
    piece = _make_piece(
        entry, tune, setting, parts=_make_chorale_parts(setting, voices), tempo_bpm=bpm, genre="baroque chorale"
    )
    return _perform(piece, rng, start_bar=start_bar, semitones=semitones, seconds=seconds)


def parse_tune_genre(title: str) -> str:
    """Return the genre in a title: `Flowers of Edinburgh (reel)` → `folk reel`; without a dance, `folk dance tune`."""
    match = re.search(r"\b(reel|jig|hornpipe|clog|strathspey|fling|slide)\b", title.lower())
    return f"folk {match[1]}" if match else "folk dance tune"


def arrange_tune(entry: RepertoireEntry, *, seed: int, seconds: float) -> Piece:
    """Arrange a fiddle tune with a seeded setting; ValueError if no excerpt of this length stays in its key."""
    rng = random.Random(f"tune/{entry.file}/{seed}")
    setting = rng.choice(TUNE_SETTINGS)
    bpm = rng.randint(*TUNE_TEMPO_BPM[(entry.beat_quarters, entry.beats_per_bar)])
    semitones = rng.randint(-MAX_TRANSPOSITION, MAX_TRANSPOSITION)
    tune, length = read_tune(entry), seconds * bpm / 60
    start_bar = choose_start_bar(rng, tune, length_beats=length, step_bars=4)
    total = start_bar * tune.beats_per_bar + length
    (melody,) = excerpt_voices(tune, start_bar=0, length_beats=total)
    lead = transpose_notes(melody, _octave_shift(melody, setting.center - semitones))
    subdivision = 3 if entry.beat_quarters == 1.5 else 2
    backing = _make_backing(setting, tune, subdivision=subdivision, length_beats=total)
    parts = [Part(*setting.lead, change_velocity(lead, MELODY_ACCENT)), *backing]
    piece = _make_piece(entry, tune, setting, parts=parts, tempo_bpm=bpm, genre=parse_tune_genre(entry.title))
    return _perform(piece, rng, start_bar=start_bar, semitones=semitones, seconds=seconds)


ARRANGERS = {"bach": arrange_chorale, "ryan": arrange_tune}
