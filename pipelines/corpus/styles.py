"""The composer's styles as data: instruments, patterns, tempi and the text that captions use."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.corpus.keys import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One accompanying instrument: a pattern of `PATTERNS` (patterns.py) around a central pitch."""

    name: str
    program: int
    pattern: str
    center: int
    velocity: int = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """The melody: instrument, central pitch and the note lengths (beats) of its rhythms."""

    name: str
    program: int
    center: int
    durations: tuple[float, ...]
    velocity: int = 96
    is_legato: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A recipe for pieces; captions state `genre`, `ensemble` and `texture`, so they must be audible."""

    genre: str
    ensemble: str
    texture: str
    tempo_bpm: tuple[int, int]
    lead: Lead | None
    layers: tuple[Layer, ...]
    beats_per_bar: int = 4
    groove: str | None = None
    drum_kit: int = 0
    swing: float = 0.5
    modes: tuple[Mode, ...] = ("major", "minor")
    has_sevenths: bool = False
    is_loop: bool = False
    is_modal: bool = False
    is_static: bool = False
    timing_beats: float = 0.008


LYRICAL = (0.5, 1.0, 1.0, 1.5, 2.0)
FLOWING = (0.5, 0.5, 0.5, 1.0, 1.0)
RUNNING = (0.25, 0.25, 0.5, 0.5, 1.0)
LONG = (1.0, 2.0, 2.0, 4.0)
RIFF = (0.25, 0.5, 0.5, 0.75, 1.0)

STYLES: dict[str, Style] = {
    "piano": Style(
        genre="classical piano music", ensemble="solo piano", texture="lyrical melody over flowing arpeggios",
        tempo_bpm=(60, 132),
        lead=Lead(name="piano", program=0, center=76, durations=LYRICAL),
        layers=(
            Layer(name="piano", program=0, pattern="arpeggio", center=57, velocity=62),
            Layer(name="piano", program=0, pattern="bass_whole", center=48, velocity=68),
        ),
    ),
    "harpsichord": Style(
        genre="baroque music", ensemble="solo harpsichord", texture="running sixteenth notes",
        tempo_bpm=(72, 126),
        lead=Lead(name="harpsichord", program=6, center=74, durations=RUNNING, is_legato=False),
        layers=(
            Layer(name="harpsichord", program=6, pattern="rolling", center=60, velocity=74),
            Layer(name="harpsichord", program=6, pattern="bass_two", center=48, velocity=80),
        ),
    ),
    "church_organ": Style(
        genre="sacred music", ensemble="church organ", texture="sustained full chords with pedal bass",
        tempo_bpm=(50, 84),
        lead=Lead(name="church organ", program=19, center=76, durations=LONG),
        layers=(
            Layer(name="church organ", program=19, pattern="half_blocks", center=62, velocity=84),
            Layer(name="church organ", program=19, pattern="bass_whole", center=46, velocity=92),
        ),
    ),
    "guitar": Style(
        genre="classical guitar music", ensemble="solo acoustic guitar", texture="fingerpicked arpeggios",
        tempo_bpm=(66, 126),
        lead=Lead(name="guitar", program=24, center=70, durations=LYRICAL),
        layers=(Layer(name="guitar", program=24, pattern="fingerpick", center=55, velocity=74),),
    ),
    "string_quartet": Style(
        genre="classical chamber music", ensemble="string quartet",
        texture="violin melody over sustained strings",
        tempo_bpm=(54, 116),
        lead=Lead(name="violin", program=40, center=77, durations=LYRICAL),
        layers=(
            Layer(name="violin and viola", program=48, pattern="inner_voices", center=62, velocity=72),
            Layer(name="cello", program=42, pattern="bass_two", center=50, velocity=88),
        ),
    ),
    "choir": Style(
        genre="sacred choral music", ensemble="choir", texture="slow sustained wordless voices",
        tempo_bpm=(48, 76),
        lead=Lead(name="choir", program=52, center=74, durations=LONG),
        layers=(
            Layer(name="choir", program=52, pattern="block", center=62, velocity=84),
            Layer(name="choir", program=52, pattern="bass_whole", center=54, velocity=88),
        ),
        timing_beats=0.0,
    ),
    "flute_and_harp": Style(
        genre="classical chamber music", ensemble="flute and harp", texture="flute melody over rippling harp",
        tempo_bpm=(58, 108),
        lead=Lead(name="flute", program=73, center=79, durations=LYRICAL, velocity=104),
        layers=(Layer(name="harp", program=46, pattern="rolling", center=58, velocity=70),),
    ),
    "brass": Style(
        genre="ceremonial fanfare", ensemble="brass ensemble and timpani", texture="bold massed chords",
        tempo_bpm=(80, 126),
        lead=Lead(name="trumpet", program=56, center=74, durations=(0.5, 0.5, 1.0, 1.0, 2.0),
        is_legato=False),
        layers=(
            Layer(name="brass", program=61, pattern="half_blocks", center=62, velocity=92),
            Layer(name="tuba", program=58, pattern="bass_two", center=46, velocity=96),
            Layer(name="timpani", program=47, pattern="bass_two", center=50, velocity=100),
        ),
        modes=("major", "major", "minor"),
    ),
    "music_box": Style(
        genre="lullaby", ensemble="music box", texture="delicate tinkling melody", tempo_bpm=(60, 112),
        lead=Lead(name="music box", program=10, center=84, durations=FLOWING),
        layers=(Layer(name="music box", program=10, pattern="alberti", center=72, velocity=66),),
        modes=("major", "major", "minor"),
    ),
    "rock": Style(
        genre="rock", ensemble="rock band with distorted electric guitars, bass and drums",
        texture="driving power chords", tempo_bpm=(104, 172), lead=None,
        layers=(
            Layer(name="overdriven guitar", program=29, pattern="power", center=56, velocity=112),
            Layer(name="distortion guitar", program=30, pattern="half_blocks", center=54, velocity=114),
            Layer(name="bass guitar", program=34, pattern="bass_eighths", center=44, velocity=100),
        ),
        groove="rock", drum_kit=16, is_loop=True, is_modal=True, modes=("minor", "minor", "major"),
    ),
    "techno": Style(
        genre="techno", ensemble="synthesizers and electronic drums",
        texture="four-on-the-floor beat with synth sequence",
        tempo_bpm=(120, 148),
        lead=Lead(name="synth lead", program=81, center=76, durations=RIFF, velocity=78, is_legato=False),
        layers=(
            Layer(name="synth", program=90, pattern="sequencer", center=64, velocity=76),
            Layer(name="synth", program=81, pattern="stabs", center=60, velocity=58),
            Layer(name="synth bass", program=38, pattern="bass_offbeat", center=46, velocity=104),
        ),
        groove="techno", drum_kit=24, is_loop=True, is_modal=True, modes=("minor", "minor", "major"),
        timing_beats=0.0,
    ),
    "ambient": Style(
        genre="ambient", ensemble="synth pads", texture="slow evolving sustained chords without beat",
        tempo_bpm=(48, 72),
        lead=Lead(name="synth pad", program=94, center=76, durations=(2.0, 4.0), velocity=70),
        layers=(
            Layer(name="synth pad", program=89, pattern="block", center=62, velocity=84),
            Layer(name="synth pad", program=95, pattern="bass_whole", center=52, velocity=80),
        ),
        is_loop=True, is_modal=True, has_sevenths=True,
    ),
    "cello": Style(
        genre="classical music", ensemble="solo cello", texture="unaccompanied low singing melody",
        tempo_bpm=(50, 88),
        lead=Lead(name="cello", program=42, center=48, durations=LYRICAL, velocity=104), layers=(),
        modes=("minor", "minor", "major"),
    ),
    "jazz": Style(
        genre="swing jazz", ensemble="jazz trio of piano, double bass and drums",
        texture="walking bass and ride cymbal",
        tempo_bpm=(96, 176),
        lead=Lead(name="piano", program=0, center=75, durations=FLOWING, velocity=94),
        layers=(
            Layer(name="piano", program=0, pattern="comping", center=61, velocity=66),
            Layer(name="double bass", program=32, pattern="bass_walking", center=48, velocity=100),
        ),
        groove="jazz", drum_kit=32, swing=0.66, has_sevenths=True,
    ),
    "sitar": Style(
        genre="indian music", ensemble="sitar", texture="meandering melody over a plucked drone",
        tempo_bpm=(60, 112),
        lead=Lead(name="sitar", program=104, center=67, durations=RUNNING),
        layers=(Layer(name="sitar", program=104, pattern="drone", center=54, velocity=66),),
        is_modal=True, is_static=True,
    ),
    "marimba": Style(
        genre="percussion ensemble music", ensemble="marimba", texture="repeating minimalist patterns",
        tempo_bpm=(92, 144),
        lead=Lead(name="marimba", program=12, center=76, durations=FLOWING, is_legato=False),
        layers=(
            Layer(name="marimba", program=12, pattern="sequencer", center=64, velocity=74),
            Layer(name="marimba", program=12, pattern="bass_two", center=52, velocity=88),
        ),
        is_loop=True, modes=("major", "major", "minor"),
    ),
    "accordion_waltz": Style(
        genre="waltz", ensemble="accordion", texture="dance melody with oom-pah-pah", tempo_bpm=(108, 184),
        lead=Lead(name="accordion", program=21, center=74, durations=(0.5, 1.0, 1.0, 2.0)),
        layers=(Layer(name="accordion", program=21, pattern="waltz", center=58, velocity=76),),
        beats_per_bar=3,
    ),
    "chiptune": Style(
        genre="chiptune", ensemble="8-bit square wave synthesizers and drum machine",
        texture="bleeping video game melody",
        tempo_bpm=(112, 168),
        lead=Lead(name="square wave", program=80, center=79, durations=RIFF, velocity=88, is_legato=False),
        layers=(
            Layer(name="square wave", program=80, pattern="sequencer", center=67, velocity=58),
            Layer(name="square bass", program=80, pattern="bass_eighths", center=50, velocity=80),
        ),
        groove="chip", drum_kit=25, is_loop=True, is_modal=True, timing_beats=0.0,
    ),
    "funk": Style(
        genre="funk", ensemble="electric piano, slap bass and drums", texture="syncopated groove",
        tempo_bpm=(92, 120),
        lead=Lead(name="electric piano", program=4, center=74, durations=RIFF, is_legato=False),
        layers=(
            Layer(name="electric piano", program=4, pattern="comping", center=62, velocity=76),
            Layer(name="slap bass", program=36, pattern="bass_funk", center=44, velocity=108),
        ),
        groove="funk", drum_kit=8, is_loop=True, is_modal=True, has_sevenths=True,
        modes=("minor", "minor", "major"),
    ),
}  # fmt: skip
