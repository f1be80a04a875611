"""The procedural composer: (seed, style, length) → a Piece with phrases, harmony and the metadata of its caption."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.corpus.harmony import PROGRESSIONS, Chord, make_layer_bars, nearest_pitch
from pipelines.corpus.keys import Key
from pipelines.corpus.patterns import PATTERNS, drum_bar
from pipelines.corpus.score import Note, Part, Piece, cut_window, humanize, is_in_key
from pipelines.corpus.styles import STYLES, Layer, Lead, Style

FORM = ("A", "A'", "B", "A'")
SLOW_BPM = 80
VELOCITY_SPREAD = 5
MAX_ATTEMPTS = 1000
COMPOSER = "Presto's procedural composer"
# Existing data sets store this text, so it keeps the module's former name.
SOURCE = "composed by program from a seed (presto_core.corpus.composer)"
LICENCE = "no third-party composition"


@dataclass(frozen=True, slots=True)
class Motif:
    """One bar of melody without harmony: (start, duration) in beats, and scale-step offsets from a chord tone."""

    rhythm: tuple[tuple[float, float], ...]
    offsets: tuple[int, ...]


def make_rhythm(rng: random.Random, durations: Sequence[float], beats: int) -> tuple[tuple[float, float], ...]:
    """Draw note lengths that fill a bar; a note that starts between beats crosses at most one beat."""
    rhythm, at = [], 0.0
    while at < beats:
        room = beats - at
        limit = room if at % 1 == 0 else min(room, 1 - at % 1 + 0.5)
        fitting = [duration for duration in durations if duration <= limit]
        length = rng.choice(fitting) if fitting else min(limit, min(durations))
        rhythm.append((at, length))
        at += length
    return tuple(rhythm)


def make_motif(rng: random.Random, durations: Sequence[float], beats: int) -> Motif:
    """Draw a motif whose contour keeps its direction until it turns, mostly in steps with occasional leaps."""
    rhythm = make_rhythm(rng, durations, beats)
    offsets, direction = [0], rng.choice((-1, 1))
    for _ in rhythm[1:]:
        if rng.random() < 0.3 or abs(offsets[-1]) >= 4:
            direction = -1 if offsets[-1] > 0 else 1
        offsets.append(offsets[-1] + direction * rng.choice((1, 1, 1, 1, 2, 0)))
    return Motif(rhythm, tuple(offsets))


def _nearest_chord_tone(chord: Chord, target: int) -> int:
    """Return the pitch of the chord (without its seventh) closest to a target pitch."""
    return min((nearest_pitch(pc, target) for pc in chord.pitch_classes[:3]), key=lambda pitch: abs(pitch - target))


def place_motif(motif: Motif, chord: Chord, *, start_beats: float, target: int, lead: Lead) -> list[Note]:
    """Place a motif on a chord: notes on even beats become chord tones, the others stay scale steps."""
    scale = chord.scale(low=target - 24, high=target + 24)
    anchor = scale.index(_nearest_chord_tone(chord, target))
    notes = []
    for (at, duration), offset in zip(motif.rhythm, motif.offsets, strict=True):
        pitch = scale[anchor + offset]
        if at % 2 == 0:
            pitch = _nearest_chord_tone(chord, pitch)
        ring = duration if lead.is_legato else duration * 0.75
        notes.append(Note(start_beats + at, ring, pitch, lead.velocity + (6 if at == 0 else 0)))
    return notes


def make_cadence(motif: Motif, chord: Chord, *, start_beats: float, beats: int, target: int, lead: Lead) -> list[Note]:
    """Make the end of a phrase: half a bar of motif, then a long chord tone (the tonic on its chord) and a rest."""
    half = float(beats // 2)
    pitch = nearest_pitch(chord.key.tonic, target) if chord.degree == 0 else _nearest_chord_tone(chord, target)
    approach = place_motif(motif, chord, start_beats=start_beats, target=target, lead=lead)
    kept = cut_window(approach, start_beats=0.0, length_beats=start_beats + half)
    return [*kept, Note(start_beats + half, (beats - half) * 0.85, pitch, lead.velocity - 4)]


def make_progressions(rng: random.Random, style: Style, key: Key, *, is_short: bool) -> dict[str, tuple[Chord, ...]]:
    """Draw the chords of each phrase: one loop for all phrases, or phrases that open, close and contrast."""
    table = PROGRESSIONS[key.mode]
    loop = (0, 0, 0, 0) if style.is_static else rng.choice(table["loop"])
    kinds = {"A": "open", "A'": "close", "B": "contrast"}
    chosen = {name: rng.choice(table[f"short {kind}" if is_short else kind]) for name, kind in kinds.items()}
    return {
        name: tuple(
            Chord(key, degree, has_seventh=style.has_sevenths, is_modal=style.is_modal)
            for degree in (loop if style.is_loop or style.is_static else degrees)
        )
        for name, degrees in chosen.items()
    }


def make_melody(
    rng: random.Random, lead: Lead, phrases: Sequence[tuple[str, tuple[Chord, ...]]], beats: int
) -> tuple[Note, ...]:
    """Make the melody of all phrases: A and A' share motifs and differ in the cadence, B lies higher."""
    motifs = {name: [make_motif(rng, lead.durations, beats) for _ in range(2)] for name in ("A", "B")}
    lift = {"A": 0, "B": rng.choice((3, 5, 7))}
    shape = rng.choice(((0, 0, 1), (0, 1, 0), (0, 1, 1)))
    drift = rng.choice(((0, 2, 4), (0, -2, 0), (0, 3, 0), (2, 0, -2)))
    notes: list[Note] = []
    bar = 0
    for name, chords in phrases:
        for position, chord in enumerate(chords):
            target = lead.center + lift[name[0]] + drift[position % 3]
            start = float(bar * beats)
            motif = motifs[name[0]][shape[position % 3]]
            if position == len(chords) - 1:
                notes += make_cadence(motif, chord, start_beats=start, beats=beats, target=target, lead=lead)
            else:
                notes += place_motif(motif, chord, start_beats=start, target=target, lead=lead)
            bar += 1
    return tuple(notes)


def make_layer(layer: Layer, chords: Sequence[Chord], beats: int) -> Part:
    bars = make_layer_bars(chords, beats=beats, center=layer.center, velocity=layer.velocity)
    play = PATTERNS[layer.pattern]
    return Part(layer.name, layer.program, tuple(note for bar in bars for note in play(bar)))


def apply_swing(notes: Sequence[Note], swing: float) -> tuple[Note, ...]:
    """Move notes halfway through a beat to the fraction `swing` of it (0.5 = straight, 2/3 = triplet feel)."""
    is_offbeat = (abs(note.start_beats % 1 - 0.5) < 1e-6 for note in notes)
    return tuple(
        replace(note, start_beats=note.start_beats + swing - 0.5) if off else note
        for note, off in zip(notes, is_offbeat, strict=True)
    )


def make_phrases(
    rng: random.Random, style: Style, key: Key, *, bpm: int, seconds: float
) -> list[tuple[str, tuple[Chord, ...]]]:
    """Repeat A A' B A' until the length is filled; phrases have 4 bars, or 2 in slow music."""
    progressions = make_progressions(rng, style, key, is_short=bpm < SLOW_BPM)
    beats_needed, beats = seconds * bpm / 60, 0
    phrases: list[tuple[str, tuple[Chord, ...]]] = []
    while beats < beats_needed:
        name = FORM[len(phrases) % len(FORM)]
        phrases.append((name, progressions[name]))
        beats += len(progressions[name]) * style.beats_per_bar
    return phrases


def make_parts(rng: random.Random, style: Style, phrases: Sequence[tuple[str, tuple[Chord, ...]]]) -> list[Part]:
    beats = style.beats_per_bar
    chords = [chord for _, row in phrases for chord in row]
    parts = [make_layer(layer, chords, beats) for layer in style.layers]
    if style.lead is not None:
        parts.insert(0, Part(style.lead.name, style.lead.program, make_melody(rng, style.lead, phrases, beats)))
    if style.groove is not None:
        bars = (drum_bar(style.groove, index=i, start_beats=float(i * beats), beats=beats) for i in range(len(chords)))
        parts.append(Part("drums", style.drum_kit, tuple(note for bar in bars for note in bar), is_drums=True))
    return parts


def draw_parts(rng: random.Random, style: Style, key: Key, *, bpm: int, seconds: float) -> tuple[Part, ...]:
    """Draw harmony and melody once, apply the style's swing and cut the result to `seconds`."""
    length = seconds * bpm / 60
    phrases = make_phrases(rng, style, key, bpm=bpm, seconds=seconds)
    return tuple(
        replace(part, notes=cut_window(apply_swing(part.notes, style.swing), start_beats=0.0, length_beats=length))
        for part in make_parts(rng, style, phrases)
    )


def draw_parts_in_key(rng: random.Random, style: Style, key: Key, *, bpm: int, seconds: float) -> tuple[Part, ...]:
    """Draw parts until their estimated key is the one the caption states; ValueError if no attempt succeeds."""
    for _ in range(MAX_ATTEMPTS):
        parts = draw_parts(rng, style, key, bpm=bpm, seconds=seconds)
        if is_in_key((part.notes for part in parts if not part.is_drums), key):
            return parts
    raise ValueError(f"{style.genre} in {key.name}: none of {MAX_ATTEMPTS} attempts stays in its key")


def compose(*, seed: int, style_name: str, seconds: float) -> Piece:
    """Compose one piece of `seconds`; equal arguments give equal pieces."""
    style = STYLES[style_name]
    rng = random.Random(f"{style_name}/{seed}")
    bpm = rng.randint(*style.tempo_bpm)
    key = Key(rng.randrange(12), rng.choice(style.modes))
    piece = Piece(
        parts=draw_parts_in_key(rng, style, key, bpm=bpm, seconds=seconds),
        tempo_bpm=bpm,
        key=key.name,
        beats_per_bar=style.beats_per_bar,
        genre=style.genre,
        ensemble=style.ensemble,
        texture=style.texture,
        composition_id=f"composed/{style_name}/{seed}",
        title=f"{style.genre} no. {seed}",
        composer=COMPOSER,
        source=SOURCE,
        licence=LICENCE,
    )
    return humanize(piece, rng, timing_beats=style.timing_beats, velocity=VELOCITY_SPREAD)
