"""Edits of audio by models with the real codec: what is kept keeps its bits, and what cannot be edited is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipelines.inference.clip import EditedClip, GeneratedClip
from pipelines.inference.clip_files import make_clip_name
from pipelines.inference.clip_frames import choose_span
from pipelines.inference.generator import Generator, Sound, open_generator, read_sound
from presto_core.errors import UserError
from tests.support.pretrained_models import FRAMES, commit_untrained

RATE_HZ, HOP = 44100, 2048
WINDOW_SECONDS = FRAMES * HOP / RATE_HZ  # 1.5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Generator]:
    kinds = {"generator": "1" * 16, "teacher": "2" * 16}
    root = str(tmp_path_factory.mktemp("store"))
    return {
        kind: open_generator(commit_untrained(root, kind=kind, artifact_id=artifact_id).uri, device="cpu")
        for kind, artifact_id in kinds.items()
    }


@pytest.fixture(scope="module")
def generator(models: dict[str, Generator]) -> Generator:
    return models["generator"]


def make_sound(seconds: float = 1.2, *, rate_hz: int = RATE_HZ, channels: int = 1, level: float = 0.3) -> Sound:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    tones = [np.sin(2 * np.pi * hz * time) for hz in (220, 331, 447)][:channels] or []
    noisy = np.stack(tones) + 0.1 * np.random.default_rng(0).normal(size=(channels, len(time)))
    return Sound((np.rint(level * noisy * 2**15) / 2**15).astype(np.float32), rate_hz)  # as a 16-bit file has it


SOUND = make_sound()


def cut_kept(clip: EditedClip) -> list[np.ndarray]:
    return [clip.audio[:, part] for part in clip.list_kept_slices()]


# --- the tempo of what is given


def make_beats(bpm: float, seconds: float = 6.0) -> Sound:
    """Bursts of noise on every beat."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    since_beat = time % (60 / bpm)
    burst = np.random.default_rng(0).normal(size=len(time)) * np.exp(-since_beat / 0.03)
    return Sound((0.2 * burst[None]).astype(np.float32), RATE_HZ)


def test_an_extension_takes_the_tempo_of_the_audio_unless_one_is_stated(
    generator: Generator, capsys: pytest.CaptureFixture[str]
):
    beats = make_beats(96)
    measured = generator.extend(beats, "techno", seconds=1, steps=1)
    assert measured.tempo_bpm == pytest.approx(96, rel=0.01)
    assert f"{measured.tempo_bpm:g} bpm is heard in the audio" in " ".join(capsys.readouterr().err.split())
    stated = generator.extend(beats, "techno", seconds=1, steps=1, tempo_bpm=measured.tempo_bpm)
    assert "heard" not in capsys.readouterr().err
    np.testing.assert_array_equal(measured.audio, stated.audio)
    assert generator.extend(beats, "techno, 120 bpm", seconds=1, steps=1).tempo_bpm == 120


def test_a_region_takes_the_tempo_of_what_is_around_it(generator: Generator):
    before, after = make_beats(96, 3).audio, make_beats(140).audio
    sound = Sound(np.concatenate([before, after], axis=1), RATE_HZ)  # more is heard after the region
    assert generator.edit(sound, "techno", regions=[(2, 3)], steps=1).tempo_bpm == pytest.approx(140, rel=0.01)


def test_audio_without_a_beat_gives_no_tempo(generator: Generator):
    assert generator.extend(make_sound(6), "techno", seconds=1, steps=1).tempo_bpm is None
    assert generator.edit(make_beats(96), "techno", steps=1).tempo_bpm is None  # the whole is made anew


# --- what is kept


@pytest.mark.parametrize("kind", ["generator", "teacher"])
def test_all_samples_outside_of_a_region_keep_their_bits(models: dict[str, Generator], kind: str):
    clip = models[kind].edit(SOUND, "piano", regions=[(0.4, 0.7)], steps=2)
    start, stop = round(0.4 * RATE_HZ), round(0.7 * RATE_HZ)
    assert clip.audio.shape == SOUND.audio.shape
    assert np.array_equal(clip.audio[:, :start], SOUND.audio[:, :start])
    assert np.array_equal(clip.audio[:, stop:], SOUND.audio[:, stop:])
    assert not np.array_equal(clip.audio[:, start:stop], SOUND.audio[:, start:stop])
    assert [part.shape[1] for part in cut_kept(clip)] == [start, SOUND.audio.shape[1] - stop]
    assert [round(seam.seconds, 2) for seam in clip.seams] == [0.4, 0.7]
    assert clip.seam_db == max(seam.change_db for seam in clip.seams)


def test_two_regions_and_the_ends_of_the_file(generator: Generator):
    clip = generator.edit(SOUND, "piano", regions=[(0.9, 1.2), (0, 0.3)], steps=1)
    assert clip.kept == ((0.3, 0.9),)
    (middle,) = cut_kept(clip)
    assert np.array_equal(middle, SOUND.audio[:, round(0.3 * RATE_HZ) : round(0.9 * RATE_HZ)])
    assert clip.audio[0, 0] == clip.audio[0, -1] == 0  # what is made at the ends is faded


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_file_of_the_result_has_the_kept_slices_of_the_file(generator: Generator, subtype: str, tmp_path: Path):
    samples = make_sound(0.5).audio if subtype == "PCM_16" else make_sound(0.5).audio * np.float32(0.7)
    soundfile.write(tmp_path / "a.wav", samples.T, RATE_HZ, subtype=subtype)
    clip = generator.edit(read_sound(tmp_path / "a.wav"), "piano", regions=[(0.2, 0.4)], steps=1)
    stored = io.BytesIO(clip.to_wav())
    assert soundfile.info(stored).subtype == subtype
    before, after = (soundfile.read(file, dtype="int32")[0] for file in (tmp_path / "a.wav", io.BytesIO(clip.to_wav())))
    if subtype == "FLOAT":
        before, after = (
            soundfile.read(file, dtype="float32")[0] for file in (tmp_path / "a.wav", io.BytesIO(clip.to_wav()))
        )
    cut = round(0.2 * RATE_HZ)
    assert np.array_equal(before[:cut], after[:cut])


def test_loud_audio_is_not_turned_down_and_what_is_made_may_be_as_loud(generator: Generator):
    loud = Sound(np.clip(make_sound(level=0.9).audio * 2, -1, 1), RATE_HZ)
    clip = generator.edit(loud, "piano", regions=[(0.4, 0.7)], steps=1)
    assert np.abs(clip.audio).max() <= 1.0
    quiet = generator.edit(make_sound(level=0.01), "piano", regions=[(0.4, 0.7)], steps=1)
    assert np.abs(quiet.audio).max() <= 10 ** (-1 / 20) + 1e-6


# --- how much changes


def test_no_strength_is_the_audio_itself_and_full_strength_a_free_clip(generator: Generator):
    assert np.array_equal(generator.edit(SOUND, "piano", strength=0).audio, SOUND.audio)
    assert generator.edit(SOUND, "piano", strength=0).kept == ((0.0, 1.2),)
    free = generator.generate("piano", seconds=1.2, seed=3, steps=2)[0]
    assert np.array_equal(generator.edit(SOUND, "piano", strength=1, seed=3, steps=2).audio, free.audio)


def test_the_same_request_gives_the_same_bits_and_name_and_another_does_not(generator: Generator):
    def run(**changes: Any) -> EditedClip:
        return generator.edit(SOUND, "piano", **{"strength": 0.5, "steps": 1, **changes})

    first = run()
    assert np.array_equal(first.audio, run().audio)
    assert make_clip_name(first) == make_clip_name(run())
    others = [
        run(seed=1),
        run(strength=0.6),
        run(regions=[(0.3, 0.6)]),
        generator.edit(make_sound(1.3), "piano", steps=1),
    ]
    assert len({make_clip_name(clip) for clip in (first, *others)}) == 5
    assert not any(np.array_equal(first.audio, clip.audio) for clip in others)


def test_audio_longer_than_a_window_is_edited_in_windows(generator: Generator):
    long = make_sound(4.1)
    whole = generator.edit(long, "piano", steps=1)
    assert whole.audio.shape == long.audio.shape
    assert whole.kept == whole.seams == ()
    region = generator.edit(long, "piano", regions=[(0.5, 3.5)], steps=1)
    assert np.array_equal(region.audio[:, : round(0.5 * RATE_HZ)], long.audio[:, : round(0.5 * RATE_HZ)])


# --- more of it


@pytest.mark.parametrize(("at", "seconds"), [("end", 0.7), ("start", 0.7), ("end", 3.3)])
def test_audio_goes_on_by_exactly_so_much_and_stays_as_it_is(generator: Generator, at: Any, seconds: float):
    clip = generator.extend(SOUND, "piano", seconds=seconds, at=at, steps=1)
    count, added = SOUND.audio.shape[1], round(seconds * RATE_HZ)
    assert clip.audio.shape[1] == count + added
    assert np.array_equal(clip.audio[:, :count] if at == "end" else clip.audio[:, added:], SOUND.audio)
    assert len(clip.seams) == 1
    new = clip.audio[:, count:] if at == "end" else clip.audio[:, :added]
    assert np.abs(new).max() > 0


def test_the_fade_at_the_end_of_a_generated_clip_does_not_become_a_hole(generator: Generator):
    (clip,) = generator.generate("piano", seconds=1.2, steps=1)
    longer = generator.extend(clip, "piano", seconds=0.5, steps=1)
    fade = 221
    assert longer.kept == ((0.0, (clip.audio.shape[1] - fade) / RATE_HZ),)
    (kept,) = cut_kept(longer)
    assert np.array_equal(kept, clip.audio[:, :-fade])
    at_join = longer.audio[:, clip.audio.shape[1] - 50 : clip.audio.shape[1] + 50]
    assert np.square(at_join).mean() > 4 * np.square(clip.audio[:, -50:]).mean()


@pytest.mark.parametrize("seconds", [0.25, 1.0, WINDOW_SECONDS, 4.0])
def test_a_loop_has_its_exact_length_and_does_not_fade(generator: Generator, seconds: float):
    loop = generator.make_loop("piano", seconds=seconds, steps=1)
    assert isinstance(loop, GeneratedClip)
    assert loop.audio.shape[1] == round(seconds * RATE_HZ)
    edges = np.concatenate([loop.audio[:, :100], loop.audio[:, -100:]], axis=1)
    assert np.square(edges).mean() > 0.1 * np.square(loop.audio).mean()
    assert make_clip_name(loop) != make_clip_name(generator.generate("piano", seconds=seconds, steps=1)[0])


def test_a_piece_of_one_window_is_what_generate_makes_and_a_longer_one_has_its_prompts(generator: Generator):
    free = generator.generate("piano", seconds=1.2, steps=2, seed=4)[0]
    piece = generator.compose([(0, "piano")], seconds=1.2, steps=2, seed=4)
    assert np.array_equal(piece.audio, free.audio)
    assert make_clip_name(piece) == make_clip_name(free)
    one, two = (
        generator.compose([(0, "piano, 80 bpm"), (3, later)], seconds=6, steps=1) for later in ("piano", "drums")
    )
    assert one.audio.shape[1] == 6 * RATE_HZ
    assert one.settings["sections"] == [[0.0, "piano, 80 bpm"], [3.0, "piano"]]
    assert make_clip_name(one) != make_clip_name(two)


def test_a_streamed_piece_has_the_bits_of_the_whole_and_starts_before_its_end(generator: Generator):
    sections: list[tuple[float, str]] = [(0, "piano"), (5, "drums")]
    how: dict[str, Any] = {"seconds": 11.0, "steps": 1, "seed": 3}
    whole = generator.compose(sections, **how)
    decoded: list[int] = []
    piece = generator.stream(sections, before_step=lambda: decoded.append(1), **how)
    sampled, parts = len(decoded), piece.iter_audio()
    first = next(parts)
    begun = len(decoded) - sampled
    rest = list(parts)
    assert np.array_equal(np.concatenate([first, *rest], axis=1), whole.audio)
    assert 0 < begun < len(decoded) - sampled  # what is heard first waits for no later part
    assert piece.settings == whole.settings
    streamed, written = b"".join(piece.iter_wav()), whole.to_wav()
    samples, rate_hz = soundfile.read(io.BytesIO(streamed), dtype="int16")
    assert np.array_equal(samples, soundfile.read(io.BytesIO(written), dtype="int16")[0])
    assert (rate_hz, len(samples)) == (RATE_HZ, 11 * RATE_HZ)
    assert len(streamed) == int.from_bytes(streamed[4:8], "little") + 8
    with soundfile.SoundFile(io.BytesIO(streamed)) as file:
        assert file.copy_metadata()["title"] == "piano → drums"
        assert json.loads(file.copy_metadata()["comment"])["seed"] == 3


def test_a_streamed_piece_of_one_window_is_what_generate_makes(generator: Generator):
    (clip,) = generator.generate("piano", seconds=1.2, steps=1)
    (part,) = generator.stream([(0, "piano")], seconds=1.2, steps=1).iter_audio()
    assert np.array_equal(part, clip.audio)


class StoppedError(Exception):
    """Raised before a step."""


@pytest.mark.parametrize("kind", ["generator", "teacher"])
@pytest.mark.parametrize(
    "make",
    [
        lambda g, how: g.edit(SOUND, "piano", **how),
        lambda g, how: g.edit(SOUND, "piano", regions=[(0.2, 0.4), (0.6, 0.8)], **how),
        lambda g, how: g.extend(SOUND, "piano", seconds=3, **how),
        lambda g, how: g.make_loop("piano", seconds=3, **how),
        lambda g, how: g.compose([(0, "piano")], seconds=30, **how),
        lambda g, how: list(g.stream([(0, "piano")], seconds=30, **how).iter_wav()),
    ],
)
def test_work_ends_before_any_step_of_any_window(models: dict[str, Generator], kind: str, make: Any):
    steps: list[int] = []

    def stop_at_the_third() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        make(models[kind], {"steps": 4, "before_step": stop_at_the_third})
    assert len(steps) == 3


# --- where a region lies in latents


@pytest.mark.parametrize("samples", [HOP * 10, HOP * 10 + 7, HOP * 200 + 1])
@pytest.mark.parametrize("region", [(0, 9000), (9000, 12000), (HOP * 4, HOP * 10), (HOP * 9, HOP * 10)])
def test_no_known_frame_depends_on_the_region(samples: int, region: tuple[int, int]):
    span = choose_span(region, samples=samples, hop=HOP, margin=1, window=32)
    first, stop = (edge + span.start for edge in span.made)
    assert span.frames >= 32
    assert span.start >= 0
    assert first == max(0, region[0] // HOP - 1)  # a frame hears a frame further
    assert stop * HOP >= min(region[1] + HOP, samples)
    assert 0 <= span.made[0] < span.made[1] <= span.frames


# --- other rates and channels


@pytest.mark.parametrize(
    ("rate_hz", "channels", "words"), [(22050, 1, "22050"), (RATE_HZ, 2, "stereo to mono"), (8000, 3, "3 channels")]
)
def test_other_audio_is_converted_with_one_line(
    generator: Generator, rate_hz: int, channels: int, words: str, capsys: pytest.CaptureFixture[str]
):
    clip = generator.edit(make_sound(rate_hz=rate_hz, channels=channels), "piano", regions=[(0.4, 0.7)], steps=1)
    assert words in clip.converted
    assert words in " ".join(capsys.readouterr().err.split())
    assert clip.audio.shape == (1, round(1.2 * RATE_HZ))


def test_audio_of_the_model_is_not_touched(generator: Generator, capsys: pytest.CaptureFixture[str]):
    assert generator.edit(SOUND, "piano", strength=0).converted == ""
    assert capsys.readouterr().err == ""


# --- refusals


def with_nan() -> Sound:
    audio = SOUND.audio.copy()
    audio[0, 5] = np.nan
    return Sound(audio, RATE_HZ)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (Sound(np.zeros((1, 0), np.float32), RATE_HZ), "0 samples"),
        (Sound(np.full((1, 1), 0.5, np.float32), RATE_HZ), "1 samples"),
        (Sound(np.zeros((1, RATE_HZ), np.float32), RATE_HZ), "silent"),
        (with_nan(), "1 of 52920 samples"),
        (Sound(SOUND.audio[0], RATE_HZ), "shape"),
        (Sound((SOUND.audio * 2**15).astype(np.int16), RATE_HZ), "int16"),
        (Sound(SOUND.audio, 10), "10 Hz"),
        (Sound(np.broadcast_to(np.float32(0.5), (1, 3601 * 8000)), 8000), "3601 s"),
    ],
)  # fmt: skip
def test_audio_that_cannot_be_edited_is_refused(generator: Generator, sound: Sound, words: str):
    for edit in (lambda: generator.edit(sound, "piano"), lambda: generator.extend(sound, "piano", seconds=1)):
        with pytest.raises(UserError, match=words):
            edit()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regions": [(0.5, 1.3)]}, "1.2"), ({"regions": [(-0.1, 0.5)]}, "not within"),
        ({"regions": [(0.8, 0.5)]}, "ends before"), ({"regions": [(0.5, 0.5)]}, "ends before"),
        ({"regions": [(0.5, 0.51)]}, "too short"), ({"regions": [(0.1, 0.5), (0.4, 0.8)]}, "overlap"),
        ({"regions": [(float("nan"), 0.5)]}, "not within"), ({"regions": [(0, float("inf"))]}, "not within"),
        ({"strength": -0.1}, "strength=-0.1"), ({"strength": 1.01}, "strength=1.01"),
        ({"strength": float("nan")}, "strength=nan"), ({"steps": 0}, "steps=0"), ({"seed": -1}, "seed=-1"),
        ({"guidance_scale": 2.0}, "few-step generator"), ({"negative_prompt": "drums"}, "few-step generator"),
        ({"guidance_rescale": 0.7}, "few-step generator"), ({"guidance_interval": (0.3, 5.0)}, "few-step generator"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"), ({"key": "H sharp"}, "key"),
        ({"tempo_bpm": 5.0}, "tempo"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(generator: Generator, settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        generator.edit(SOUND, "piano", **settings)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g: g.extend(SOUND, "piano", seconds=0), "seconds=0"),
        (lambda g: g.extend(SOUND, "piano", seconds=float("nan")), "seconds=nan"),
        (lambda g: g.extend(SOUND, "piano", seconds=1, at="middle"), "middle"),
        (lambda g: g.edit(SOUND, float("nan")), "not a text"),
        (lambda g: g.make_loop("piano", seconds=0.1), "0.25"),
        (lambda g: g.make_loop("piano", seconds=1e9), "3600"),
        (lambda g: g.compose([], seconds=6), "begin at 0 s"),
        (lambda g: g.compose([(1, "piano")], seconds=6), "begin at 0 s"),
        (lambda g: g.compose([(0, "piano"), (7, "harp")], seconds=6), "before 6 s"),
        (lambda g: g.compose([(0, "piano"), (4, "harp"), (2, "horn")], seconds=6), "before 2 s"),
        (lambda g: g.compose([(0, "piano")], seconds=6, overlap_seconds=9), "overlap_seconds=9"),
        (lambda g: g.compose([(0, "piano")], seconds=1e7), "3600"),
        (lambda g: g.generate("piano", guidance_scale=3.0), "few-step generator"),
    ],
)  # fmt: skip
def test_other_requests_out_of_range_are_refused(generator: Generator, call: Any, words: str):
    with pytest.raises(UserError, match=words):
        call(generator)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"", "zero bytes"), (b"RIFF no audio", "audio"), (b"x" * 5000, "audio")],
)  # fmt: skip
def test_a_file_that_is_no_audio_is_named(content: bytes | None, words: str, tmp_path: Path):
    path = tmp_path / "song.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"song\.wav.*{words}"):
        read_sound(path)


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path):
    soundfile.write(tmp_path / "long.flac", np.zeros(10 * 8000), 8000)
    with pytest.raises(UserError, match=r"long\.flac is longer than 5 s"):
        read_sound(tmp_path / "long.flac", longest_seconds=5)


# --- guidance


def test_a_teacher_takes_guidance_and_a_negative_prompt(models: dict[str, Generator]):
    teacher = models["teacher"]
    plain, guided, negative = (
        teacher.generate("piano", steps=2, seconds=1.0, **how)[0]
        for how in ({}, {"guidance_scale": 3.0}, {"guidance_scale": 3.0, "negative_prompt": "drums, 90 bpm"})
    )
    assert len({make_clip_name(clip) for clip in (plain, guided, negative)}) == 3
    assert negative.settings["negative_prompt"] == "drums, 90 bpm"
    with pytest.raises(UserError, match="negative_prompt has no effect"):
        teacher.generate("piano", negative_prompt="drums")
