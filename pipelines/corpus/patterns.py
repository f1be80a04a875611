"""Accompaniment patterns: a bar of harmony → the notes of a hand, a bass or a drummer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.corpus.score import Note

KICK, SNARE, CLAP = 36, 38, 39
CLOSED_HAT, PEDAL_HAT, OPEN_HAT, CRASH, RIDE = 42, 44, 46, 49, 51
LOW_TOM, MID_TOM, HIGH_TOM = 41, 45, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of one layer: its position, its chord as pitches, and the subdivisions of a beat (2 or 3)."""

    index: int
    start_beats: float
    beats: int
    chord: tuple[int, ...]
    root: int
    third: int
    fifth: int
    next_root: int
    scale: tuple[int, ...]
    velocity: int
    subdivision: int = 2


Pattern = Callable[[Bar], list[Note]]


def _note(bar: Bar, at: float, duration: float, pitch: int, accent: int = 0) -> Note:
    return Note(bar.start_beats + at, duration, pitch, max(1, min(127, bar.velocity + accent)))


def _chord(bar: Bar, at: float, duration: float, accent: int = 0) -> list[Note]:
    return [_note(bar, at, duration, pitch, accent) for pitch in bar.chord]


def block(bar: Bar) -> list[Note]:
    return _chord(bar, 0, bar.beats)


def half_blocks(bar: Bar) -> list[Note]:
    middle = bar.beats // 2 if bar.beats % 2 == 0 else bar.beats - 1
    return _chord(bar, 0, middle) + _chord(bar, middle, bar.beats - middle, -4)


def pulse(bar: Bar) -> list[Note]:
    """Repeat the chord on every subdivision, with accents on the beats."""
    step = 1 / bar.subdivision
    count = bar.beats * bar.subdivision
    return [n for k in range(count) for n in _chord(bar, k * step, step * 0.8, -10 if k % bar.subdivision else 0)]


def _broken_chord(bar: Bar, order: tuple[int, ...], step: float, ring: float) -> list[Note]:
    """Play chord tones one after another; an index past the last chord tone continues an octave higher."""
    size = len(bar.chord)
    pitches = [bar.chord[index % size] + 12 * (index // size) for index in order]
    count = round(bar.beats / step)
    return [_note(bar, k * step, step * ring, pitches[k % len(order)], 6 if k == 0 else 0) for k in range(count)]


def arpeggio(bar: Bar) -> list[Note]:
    return _broken_chord(bar, (0, 1, 2, 3, 2, 1), 1 / bar.subdivision, 1.8)


def rolling_chord(bar: Bar) -> list[Note]:
    """Play sixteenths up and down over two octaves, as on a harp or a harpsichord."""
    return _broken_chord(bar, (0, 1, 2, 3, 4, 3, 2, 1), 1 / (2 * bar.subdivision), 1.5)


def sequencer(bar: Bar) -> list[Note]:
    """Play an ostinato of short sixteenths, as a step sequencer does."""
    return _broken_chord(bar, (0, 2, 1, 3, 0, 2, 4, 1), 0.25, 0.7)


def alberti(bar: Bar) -> list[Note]:
    return _broken_chord(bar, (0, 2, 1, 2), 1 / bar.subdivision, 1.1)


def waltz(bar: Bar) -> list[Note]:
    """Play a bass note on the first beat and chords on the others."""
    chords = [n for beat in range(1, bar.beats) for n in _chord(bar, beat, 0.6, -8)]
    return [_note(bar, 0, 1, bar.root, 8), *chords]


def boom_chuck(bar: Bar) -> list[Note]:
    """Play alternating bass notes on the beats and a chord on each beat's last subdivision."""
    off = 1 - 1 / bar.subdivision
    bass = [_note(bar, beat, 0.5, bar.fifth if beat % 2 else bar.root, 8) for beat in range(bar.beats)]
    return bass + [n for beat in range(bar.beats) for n in _chord(bar, beat + off, 0.4 / bar.subdivision + 0.1, -8)]


def fingerpick(bar: Bar) -> list[Note]:
    """Alternate root and fifth on the beats (thumb), with upper chord tones between them (fingers)."""
    thumb = [_note(bar, beat, 1.5, bar.fifth if beat % 2 else bar.root, 8) for beat in range(bar.beats)]
    upper = bar.chord[-3:]
    return thumb + [_note(bar, beat + 0.5, 1.2, upper[beat % len(upper)], -4) for beat in range(bar.beats)]


def power(bar: Bar) -> list[Note]:
    """Play root, fifth and octave in eighths, as on a distorted guitar."""
    pitches = (bar.root, bar.fifth, bar.root + 12)
    return [_note(bar, k / 2, 0.45, p, 0 if k % 2 else 8) for k in range(bar.beats * 2) for p in pitches]


def comping(bar: Bar) -> list[Note]:
    """Play short syncopated chords in two alternating bars."""
    hits = ((0, 0.4), (1.5, 0.4)) if bar.index % 2 == 0 else ((0.5, 0.3), (2, 0.9), (3.5, 0.3))
    return [n for at, duration in hits if at < bar.beats for n in _chord(bar, at, duration)]


def stabs(bar: Bar) -> list[Note]:
    """Play short chords between the beats, as in dance music."""
    return [n for beat in range(bar.beats) for n in _chord(bar, beat + 0.5, 0.25)]


def drone(bar: Bar) -> list[Note]:
    """Repeat plucked root and fifth, as on a tanpura."""
    cycle = (bar.fifth, bar.root + 12, bar.root + 12, bar.root)
    return [_note(bar, beat, 2.0, cycle[beat % len(cycle)]) for beat in range(bar.beats)]


def open_fifth(bar: Bar) -> list[Note]:
    """Hold root and fifth, as a bagpipe's drones do."""
    return [_note(bar, 0, bar.beats, pitch) for pitch in (bar.root, bar.fifth)]


def inner_voices(bar: Bar) -> list[Note]:
    """Play two half bars of chord tones; in every other bar the second half is shifted by one chord tone."""
    half = bar.beats / 2
    later = (*bar.chord[1:], bar.chord[0] + 12) if bar.index % 2 else bar.chord
    return _chord(bar, 0, half) + [_note(bar, half, half, pitch, -4) for pitch in later]


def bass_whole(bar: Bar) -> list[Note]:
    return [_note(bar, 0, bar.beats, bar.root)]


def bass_two(bar: Bar) -> list[Note]:
    """Play the root, then the fifth in the second half of the bar."""
    half = bar.beats / 2
    return [_note(bar, 0, half, bar.root), _note(bar, half, half, bar.fifth, -6)]


def bass_eighths(bar: Bar) -> list[Note]:
    return [_note(bar, k / 2, 0.42, bar.root, 0 if k % 2 else 8) for k in range(bar.beats * 2)]


def bass_offbeat(bar: Bar) -> list[Note]:
    return [_note(bar, beat + at, 0.22, bar.root) for beat in range(bar.beats) for at in (0.25, 0.5, 0.75)]


def bass_walking(bar: Bar) -> list[Note]:
    """Play root, third and fifth in quarters, then a scale step into the next bar's root."""
    approach = min((p for p in bar.scale if p != bar.next_root), key=lambda p: abs(p - bar.next_root))
    line = (*([bar.root, bar.third, bar.fifth] * 2)[: bar.beats - 1], approach)
    return [_note(bar, beat, 0.9, pitch) for beat, pitch in enumerate(line)]


def bass_funk(bar: Bar) -> list[Note]:
    """Play syncopated sixteenths with octaves and rests."""
    hits = ((0, 0), (0.75, 0), (1.5, 12), (2, 0), (2.75, 12), (3.25, 0), (3.5, 12))
    return [_note(bar, at, 0.22, bar.root + up, 6 if at == 0 else 0) for at, up in hits if at < bar.beats]


PATTERNS: dict[str, Pattern] = {
    "block": block, "half_blocks": half_blocks, "pulse": pulse, "arpeggio": arpeggio, "rolling": rolling_chord,
    "sequencer": sequencer, "alberti": alberti, "waltz": waltz, "boom_chuck": boom_chuck,
    "fingerpick": fingerpick, "power": power, "comping": comping, "stabs": stabs, "drone": drone,
    "open_fifth": open_fifth, "inner_voices": inner_voices, "bass_whole": bass_whole, "bass_two": bass_two,
    "bass_eighths": bass_eighths, "bass_offbeat": bass_offbeat, "bass_walking": bass_walking,
    "bass_funk": bass_funk,
}  # fmt: skip

# One bar of four beats: (instrument, beats on which it sounds, velocity).
Groove = tuple[tuple[int, tuple[float, ...], int], ...]
EIGHTHS = tuple(k / 2 for k in range(8))
SIXTEENTHS = tuple(k / 4 for k in range(16))
GROOVES: dict[str, Groove] = {
    "rock": ((KICK, (0, 2, 2.5), 112), (SNARE, (1, 3), 110), (CLOSED_HAT, EIGHTHS, 80)),
    "techno": (
        (KICK, (0, 1, 2, 3), 120),
        (CLAP, (1, 3), 96),
        (OPEN_HAT, (0.5, 1.5, 2.5, 3.5), 84),
        (CLOSED_HAT, SIXTEENTHS, 60),
    ),
    "jazz": ((RIDE, (0, 1, 1.5, 2, 3, 3.5), 74), (PEDAL_HAT, (1, 3), 60), (KICK, (0, 2.5), 46)),
    "funk": ((KICK, (0, 0.75, 2.5), 110), (SNARE, (1, 3), 104), (CLOSED_HAT, SIXTEENTHS, 66), (SNARE, (1.75,), 50)),
    "chip": ((KICK, (0, 2), 104), (SNARE, (1, 3), 92), (CLOSED_HAT, EIGHTHS, 60)),
}


def drum_bar(groove: str, *, index: int, start_beats: float, beats: int) -> list[Note]:
    """Return one bar of a groove; every eighth bar opens with a crash and every fourth ends in a tom fill."""
    strikes = [(pitch, at, hard) for pitch, beats_on, hard in GROOVES[groove] for at in beats_on if at < beats]
    loud = groove in ("rock", "funk", "chip")
    if loud and index % 4 == 3:
        strikes = [strike for strike in strikes if strike[1] < beats - 1 or strike[0] == KICK]
        fill = (SNARE, HIGH_TOM, MID_TOM, LOW_TOM)
        strikes += [(pitch, beats - 1 + k / 4, 96 + 3 * k) for k, pitch in enumerate(fill)]
    if (loud or groove == "techno") and index % 8 == 0:
        strikes.append((CRASH, 0, 92))
    return [Note(start_beats + at, 0.2, pitch, hard) for pitch, at, hard in strikes]
