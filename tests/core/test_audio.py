"""Decoding of whole sound files: stored samples of lossless formats, the tune of lossy ones, errors for other files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from presto_core.audio.chunks import AUDIO_SUFFIXES, AudioError, decode, is_audio

RATE_HZ = 44100


def encode_file(samples: np.ndarray, *, rate_hz: int = RATE_HZ, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=form, subtype=subtype)
    return stream.getvalue()


def decode_bytes(content: bytes, *, rate_hz: int = RATE_HZ) -> np.ndarray:
    return decode(io.BytesIO(content), sample_rate_hz=rate_hz)


def tone(hz: float, *, rate_hz: int = RATE_HZ, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


# --- decoding


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF"])
def test_lossless_formats_give_the_stored_samples(form: str) -> None:
    stored = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    samples = decode_bytes(encode_file(stored, form=form))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, stored / 32768)


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_keep_the_tune(form: str, subtype: str) -> None:
    original = tone(440.0, seconds=1)
    samples = decode_bytes(encode_file(original, form=form, subtype=subtype))
    assert len(samples) == len(original)
    assert np.corrcoef(samples, original)[0, 1] > 0.99


def test_channels_are_averaged() -> None:
    left, right = np.full(100, 0.5), np.linspace(-0.5, 0.5, 100)
    mono = decode_bytes(encode_file(np.stack([left, right, 0 * left], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(mono, (left + right) / 3, atol=1e-7)


@pytest.mark.parametrize("rate_hz", [22050, 48000, 96000])
def test_resampling_keeps_a_sine_a_sine(rate_hz: int) -> None:
    """The expected samples are known: the same sine on the other grid, except at the ends of the filter."""
    samples = decode_bytes(encode_file(tone(997.0, rate_hz=rate_hz), rate_hz=rate_hz, subtype="FLOAT"))
    expected = tone(997.0)
    assert abs(len(samples) - len(expected)) <= 1
    np.testing.assert_allclose(samples[1000:-1000], expected[1000 : len(samples) - 1000], atol=1e-4)


def test_resampling_does_not_fold_what_is_above_half_the_rate() -> None:
    """30 kHz at a rate of 96 kHz would alias to 14.1 kHz."""
    samples = decode_bytes(encode_file(tone(30_000.0, rate_hz=96_000), rate_hz=96_000, subtype="FLOAT"))
    assert np.abs(samples[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Format not recognised"),
        (b"this is no music" * 50, "Format not recognised"),
        (encode_file(np.zeros(0)), "no samples"),
        (encode_file(np.array([0.1, np.nan]), subtype="FLOAT"), "NaN"),
        (encode_file(np.array([np.inf, 0.1]), subtype="DOUBLE"), "infinite"),
        (encode_file(tone(440.0), form="FLAC")[:3000], "flac"),
        (encode_file(tone(440.0), form="OGG", subtype="VORBIS")[:200], "malformed"),
    ],
    ids=["empty", "text", "no samples", "nan", "infinity", "cut flac", "cut ogg"],
)
def test_unusable_files_give_a_one_line_error(content: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        decode_bytes(content)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)  # an address would make two runs' quarantine lists differ


def test_a_wav_that_is_cut_short_gives_what_is_left() -> None:
    whole = tone(440.0)
    part = decode_bytes(encode_file(whole)[:-20_000])
    assert len(part) == len(whole) - 10_000
    np.testing.assert_allclose(part, whole[: len(part)], atol=1 / 2**15)


def test_files_are_known_by_their_suffix() -> None:
    assert all(is_audio(f"folder.x/Song{suffix.upper()}") for suffix in AUDIO_SUFFIXES)
    assert not any(map(is_audio, ("song.txt", "song.wav.json", "wav", "folder.wav/song", "")))
