"""Instrumentations of real pieces, as data: the four voices of a chorale, or a dance tune and its accompaniment."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.corpus.styles import Layer

Voice = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoraleSetting:
    """The instruments of soprano, alto, tenor and bass; `octaves` transposes all of them."""

    ensemble: str
    voices: tuple[Voice, Voice, Voice, Voice]
    texture: str = "four-part harmony moving in slow chords"
    tempo_bpm: tuple[int, int] = (56, 92)
    octaves: int = 0
    has_deep_bass: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSetting:
    """The instrument of a tune, its central pitch, and the accompanying layers."""

    ensemble: str
    lead: Voice
    center: int
    texture: str
    layers: tuple[Layer, ...] = ()
    has_static_harmony: bool = False


def _repeat_voice(name: str, program: int) -> tuple[Voice, Voice, Voice, Voice]:
    return (name, program), (name, program), (name, program), (name, program)


SINGING, PLUCKED = "four-part harmony of wordless voices", "four-part chords with decaying plucked notes"
CHORALE_SETTINGS: tuple[ChoraleSetting, ...] = (
    ChoraleSetting(ensemble="choir", voices=_repeat_voice("choir", 52), texture=SINGING, tempo_bpm=(50, 80)),
    ChoraleSetting(ensemble="church organ", voices=_repeat_voice("organ", 19), has_deep_bass=True),
    ChoraleSetting(ensemble="reed organ", voices=_repeat_voice("reed organ", 20)),
    ChoraleSetting(
        ensemble="choir and church organ",
        voices=(("choir", 52), ("choir", 52), ("organ", 19), ("organ", 19)),
        has_deep_bass=True,
    ),
    ChoraleSetting(
        ensemble="string quartet", voices=(("violin", 40), ("violin", 40), ("viola", 41), ("cello", 42))
    ),
    ChoraleSetting(ensemble="string orchestra", voices=_repeat_voice("strings", 48), has_deep_bass=True),
    ChoraleSetting(
        ensemble="brass quartet",
        voices=(("trumpet", 56), ("trumpet", 56), ("trombone", 57), ("tuba", 58)),
        texture="solemn four-part brass chords",
    ),
    ChoraleSetting(
        ensemble="french horns", voices=_repeat_voice("french horn", 60), texture="mellow four-part chords",
    ),
    ChoraleSetting(
        ensemble="woodwind quartet", voices=(("flute", 73), ("oboe", 68), ("clarinet", 71), ("bassoon", 70))
    ),
    ChoraleSetting(
        ensemble="saxophone quartet",
        voices=(("soprano sax", 64), ("alto sax", 65), ("tenor sax", 66), ("baritone sax", 67)),
    ),
    ChoraleSetting(ensemble="recorder consort", voices=_repeat_voice("recorder", 74), octaves=1),
    ChoraleSetting(ensemble="solo piano", voices=_repeat_voice("piano", 0), texture="four-part piano chords"),
    ChoraleSetting(
        ensemble="electric piano", voices=_repeat_voice("electric piano", 4), texture="soft four-part chords",
    ),
    ChoraleSetting(
        ensemble="solo harpsichord", voices=_repeat_voice("harpsichord", 6), texture=PLUCKED, tempo_bpm=(66, 104),
    ),
    ChoraleSetting(ensemble="harp", voices=_repeat_voice("harp", 46), texture=PLUCKED, tempo_bpm=(62, 100)),
    ChoraleSetting(
        ensemble="classical guitars", voices=_repeat_voice("guitar", 24), texture=PLUCKED, octaves=-1,
        tempo_bpm=(62, 104),
    ),
    ChoraleSetting(ensemble="music box", voices=_repeat_voice("music box", 10), texture="tinkling chords", octaves=1),
    ChoraleSetting(
        ensemble="vibraphone", voices=_repeat_voice("vibraphone", 11), texture="shimmering four-part chords",
    ),
    ChoraleSetting(
        ensemble="marimba", voices=_repeat_voice("marimba", 12), texture="dry four-part chords", tempo_bpm=(72, 112)
    ),
    ChoraleSetting(ensemble="accordion", voices=_repeat_voice("accordion", 21)),
    ChoraleSetting(
        ensemble="synth pads", voices=_repeat_voice("synth pad", 89), texture="slow soft sustained chords",
    ),
    ChoraleSetting(
        ensemble="synth strings", voices=_repeat_voice("synth strings", 50), texture="slow sustained chords",
    ),
    ChoraleSetting(
        ensemble="square wave synthesizer", voices=_repeat_voice("square wave", 80),
        texture="buzzing electronic chords",
        tempo_bpm=(72, 116),
    ),
    ChoraleSetting(
        ensemble="flute and harp",
        voices=(("flute", 73), ("harp", 46), ("harp", 46), ("harp", 46)),
        texture="flute melody over harp chords",
        octaves=1,
    ),
    ChoraleSetting(
        ensemble="oboe and strings",
        voices=(("oboe", 68), ("strings", 48), ("strings", 48), ("strings", 48)),
        texture="oboe melody over sustained strings",
    ),
    ChoraleSetting(
        ensemble="violin and piano",
        voices=(("violin", 40), ("piano", 0), ("piano", 0), ("piano", 0)),
        texture="violin melody over piano chords",
    ),
    ChoraleSetting(
        ensemble="trumpet and organ",
        voices=(("trumpet", 56), ("organ", 19), ("organ", 19), ("organ", 19)),
        texture="trumpet melody over organ chords",
        has_deep_bass=True,
    ),
)  # fmt: skip


def _make_boom_chuck(name: str, program: int, *, center: int = 57, velocity: int = 66) -> Layer:
    return Layer(name=name, program=program, pattern="boom_chuck", center=center, velocity=velocity)


GUITAR = _make_boom_chuck("acoustic guitar", 25)
BASS = Layer(name="double bass", program=32, pattern="bass_two", center=46, velocity=92)
LIVELY = "lively ornamented dance melody"
OVER_GUITAR = "dance melody over boom-chuck guitar"
TUNE_SETTINGS: tuple[TuneSetting, ...] = (
    TuneSetting(
        ensemble="solo fiddle", lead=("fiddle", 110), center=74, texture="unaccompanied dance melody",
    ),
    TuneSetting(
        ensemble="fiddle and acoustic guitar", lead=("fiddle", 110), center=74, texture=OVER_GUITAR,
        layers=(GUITAR,)
    ),
    TuneSetting(
        ensemble="fiddle and piano", lead=("fiddle", 40), center=74,
        texture="dance melody over vamping piano",
        layers=(_make_boom_chuck("piano", 0),),
    ),
    TuneSetting(ensemble="solo flute", lead=("flute", 73), center=77, texture="unaccompanied dance melody"),
    TuneSetting(
        ensemble="flute and acoustic guitar", lead=("flute", 73), center=77, texture=OVER_GUITAR, layers=(GUITAR,),
    ),
    TuneSetting(
        ensemble="flute and harp", lead=("flute", 73), center=77, texture="dance melody over rippling harp",
        layers=(Layer(name="harp", program=46, pattern="arpeggio", center=57, velocity=70),),
    ),
    TuneSetting(
        ensemble="piccolo and acoustic guitar", lead=("piccolo", 72), center=86, texture=OVER_GUITAR,
        layers=(GUITAR,)
    ),
    TuneSetting(
        ensemble="accordion", lead=("accordion", 21), center=74, texture="dance melody with oom-pah bass",
        layers=(_make_boom_chuck("accordion", 21, center=55, velocity=62),),
    ),
    TuneSetting(
        ensemble="accordion, acoustic guitar and double bass", lead=("accordion", 21), center=74,
        texture="folk band dance music", layers=(GUITAR, BASS),
    ),
    TuneSetting(
        ensemble="harmonica and acoustic guitar", lead=("harmonica", 22), center=74, texture=OVER_GUITAR,
        layers=(GUITAR,)
    ),
    TuneSetting(
        ensemble="banjo, acoustic guitar and double bass", lead=("banjo", 105), center=70,
        texture="picked banjo melody with country backing", layers=(GUITAR, BASS),
    ),
    TuneSetting(
        ensemble="hammered dulcimer", lead=("dulcimer", 15), center=74, texture="ringing struck strings",
        layers=(Layer(name="dulcimer", program=15, pattern="boom_chuck", center=57, velocity=58),),
    ),
    TuneSetting(
        ensemble="bagpipes", lead=("bagpipes", 109), center=72,
        texture="piercing melody over a constant drone",
        layers=(Layer(name="bagpipes", program=109, pattern="open_fifth", center=58, velocity=64),),
        has_static_harmony=True,
    ),
    TuneSetting(
        ensemble="clarinet and piano", lead=("clarinet", 71), center=72,
        texture="dance melody over vamping piano",
        layers=(_make_boom_chuck("piano", 0),),
    ),
    TuneSetting(
        ensemble="recorder and harpsichord", lead=("recorder", 74), center=79,
        texture="melody over broken chords",
        layers=(Layer(name="harpsichord", program=6, pattern="alberti", center=57, velocity=70),),
    ),
    TuneSetting(
        ensemble="solo harpsichord", lead=("harpsichord", 6), center=70, texture="nimble melody over full chords",
        layers=(
            Layer(name="harpsichord", program=6, pattern="half_blocks", center=57, velocity=70),
            Layer(name="harpsichord", program=6, pattern="bass_two", center=50, velocity=70),
        ),
    ),
    TuneSetting(
        ensemble="solo piano", lead=("piano", 0), center=76, texture="dance melody over a stride left hand",
        layers=(_make_boom_chuck("piano", 0, center=55),),
    ),
    TuneSetting(
        ensemble="violin and string orchestra", lead=("violin", 40), center=76,
        texture="melody over sustained strings",
        layers=(Layer(name="strings", program=48, pattern="block", center=58, velocity=66),),
    ),
    TuneSetting(
        ensemble="pan flute and classical guitar", lead=("pan flute", 75), center=76,
        texture="airy melody over guitar",
        layers=(Layer(name="guitar", program=24, pattern="arpeggio", center=55, velocity=72),),
    ),
    TuneSetting(
        ensemble="classical guitar", lead=("guitar", 24), center=70, texture="plucked melody over bass notes",
        layers=(Layer(name="guitar", program=24, pattern="bass_two", center=52, velocity=74),),
    ),
    TuneSetting(
        ensemble="xylophone and marimba", lead=("xylophone", 13), center=82, texture="rattling mallet melody",
        layers=(_make_boom_chuck("marimba", 12, velocity=74),),
    ),
    TuneSetting(
        ensemble="oboe and bassoon", lead=("oboe", 68), center=74, texture="two woodwinds, melody and bass",
        layers=(Layer(name="bassoon", program=70, pattern="bass_two", center=52, velocity=80),),
    ),
    TuneSetting(
        ensemble="steel drums, acoustic guitar and double bass", lead=("steel drums", 114), center=72, texture=LIVELY,
        layers=(GUITAR, BASS),
    ),
    TuneSetting(
        ensemble="glockenspiel and pizzicato strings", lead=("glockenspiel", 9), center=84,
        texture="bright bell melody",
        layers=(_make_boom_chuck("pizzicato strings", 45, velocity=84),),
    ),
    TuneSetting(
        ensemble="synth lead and synth bass", lead=("saw wave", 81), center=74,
        texture="electronic dance melody",
        layers=(
            Layer(name="synth bass", program=38, pattern="bass_two", center=46, velocity=96),
            Layer(name="synth", program=90, pattern="pulse", center=60, velocity=48),
        ),
    ),
)  # fmt: skip
# Range of tapped beats per minute for each notation: (quarter notes per beat, beats per bar).
TUNE_TEMPO_BPM = {
    (1.0, 2): (84, 126), (2.0, 2): (84, 126), (1.5, 2): (92, 138), (1.5, 3): (92, 132), (1.5, 4): (92, 132),
    (1.0, 4): (116, 176), (1.0, 3): (100, 160),
}  # fmt: skip
