"""Decoding of files in blocks: stored samples, requested channels and rate, constant memory, errors for other files."""

from __future__ import annotations

import io
import os
import struct
import sys
import tracemalloc
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
import soundfile
import soxr

from presto_core.audio.chunks import AudioError, decode, decode_blocks, is_audio
from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.pyav_decoder import open_with_pyav
from presto_core.audio.sound import AudioError as SameError
from tests.core.test_audio import encode_file, tone

RATE_HZ = 44100


def decode_bytes(content: bytes, *, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    """Return the concatenated blocks [channels, N]."""
    parts = list(decode_blocks(io.BytesIO(content), sample_rate_hz=rate_hz, channels=channels))
    assert all(part.dtype == np.float32 and part.shape[1] == channels and 0 < part.nbytes <= 2**22 for part in parts)
    return np.concatenate(parts).T


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal(shape).clip(-4, 4)


def patch_bytes(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


# --- samples, channels and rate


@pytest.mark.parametrize(
    ("subtype", "bits"), [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("PCM_32", 24), ("FLOAT", 24), ("DOUBLE", 24)]
)
def test_every_wav_encoding_gives_its_samples(subtype: str, bits: int) -> None:
    steps = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 5000)
    stored = steps / 2 ** (bits - 1)  # a number of `bits` is exact in float32
    np.testing.assert_array_equal(decode_bytes(encode_file(stored, subtype=subtype))[0], stored)


@pytest.mark.parametrize(
    ("form", "subtype", "rate_hz"),
    [
        ("WAV", "PCM_16", 44100),
        ("WAV", "PCM_U8", 11025),
        ("FLAC", "PCM_24", 192_000),
        ("AIFF", "PCM_16", 32000),
        ("OGG", "VORBIS", 48000),
        ("OGG", "OPUS", 48000),
        ("MP3", "MPEG_LAYER_III", 22050),
    ],
)
def test_blocks_are_bitwise_the_whole_file_decoded_and_resampled_at_once(
    tmp_path: Path, form: str, subtype: str, rate_hz: int
) -> None:
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate_hz, 2, format=form, subtype=subtype) as file:
        for part in np.split(noise(600_000, 2), 10):
            file.write(part)
    whole, _ = soundfile.read(io.BytesIO(stream.getvalue()), dtype="float32", always_2d=True)
    mono = whole.mean(axis=1, dtype=np.float32)
    for wanted, channels in ((whole, 2), (mono[:, None], 1)):
        expected = wanted if rate_hz == RATE_HZ else soxr.resample(wanted, rate_hz, RATE_HZ)
        np.testing.assert_array_equal(decode_bytes(stream.getvalue(), channels=channels), expected.T)
    expected = mono if rate_hz == RATE_HZ else soxr.resample(mono, rate_hz, RATE_HZ)
    (tmp_path / "a").write_bytes(stream.getvalue())
    with (tmp_path / "a").open("rb", buffering=0) as plain:
        for content in (stream, plain):
            np.testing.assert_array_equal(decode(content, sample_rate_hz=RATE_HZ), expected)


@pytest.mark.parametrize("stored", [1, 2, 7])
@pytest.mark.parametrize("channels", [1, 2])
def test_channels_are_mixed(stored: int, channels: int) -> None:
    samples = noise(3000, stored).astype(np.float32)
    mean = samples.astype(np.float64).mean(axis=1)
    expected = samples.T if (stored, channels) == (2, 2) else [mean] * channels
    np.testing.assert_allclose(
        decode_bytes(encode_file(samples, subtype="FLOAT"), channels=channels), expected, atol=1e-6
    )


@pytest.mark.parametrize("rate_hz", [11025, 192_000])
def test_a_sine_stays_a_sine_on_both_channels_at_distant_rates(rate_hz: int) -> None:
    stored = [sign * tone(hz, rate_hz=rate_hz, seconds=0.4) for sign, hz in ((1, 440.0), (-1, 997.0))]
    sides = decode_bytes(encode_file(np.stack(stored, axis=1), rate_hz=rate_hz), channels=2)
    for side, expected in zip(sides, (tone(440.0, seconds=0.4), -tone(997.0, seconds=0.4))):
        assert len(side) == len(expected)
        np.testing.assert_allclose(side[2000:-2000], expected[2000:-2000], atol=2e-4)


def test_the_content_tells_the_format_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "song.raw"  # libsndfile would open this suffix as headerless audio
    path.write_bytes(encode_file(tone(440.0), form="FLAC"))
    for buffering in (-1, 0):  # libsndfile reads an unbuffered file through its descriptor
        with path.open("rb", buffering=buffering) as stream:
            stream.seek(1000)  # a caller may have read the tags before
            for _ in range(2):
                np.testing.assert_allclose(decode(stream, sample_rate_hz=RATE_HZ), tone(440.0), atol=2**-15)


def test_a_plain_file_that_cannot_be_read_is_no_bad_audio(tmp_path: Path) -> None:
    """A disk error after the first block, simulated by a file that is no longer open for reading."""
    (tmp_path / "a").write_bytes(encode_file(noise(2_000_000)))
    with (tmp_path / "a").open("rb", buffering=0) as stream, (tmp_path / "b").open("wb") as other:
        coming = decode_blocks(stream, sample_rate_hz=RATE_HZ, channels=1)
        next(coming)
        os.dup2(other.fileno(), stream.fileno())
        with pytest.raises(OSError, match="read"):
            next(coming)


def test_a_flac_of_unstated_length_is_read_to_its_end() -> None:
    """A recorder that writes to a pipe leaves the total samples, 36 bits from byte 21 on, at 0."""
    content = encode_file(tone(440.0), form="FLAC")
    unstated = patch_bytes(content, 21, bytes([content[21] & 0xF0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(decode_bytes(unstated), decode_bytes(content))


# --- memory


class LongWav(io.RawIOBase):
    """A 16-bit mono WAV that is generated while it is read."""

    def __init__(self, frames: int) -> None:
        size = 2 * frames
        form = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, 48000, 96000, 2, 16, b"data", size)
        self.head, self.size, self.at = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVE" + form, 44 + size, 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, count: int = -1, /) -> bytes:
        count = min(count, self.size - self.at)
        content = (self.head[self.at :] + b"\x10" * count)[:count]
        self.at += count
        return content


def test_memory_does_not_grow_with_the_length() -> None:
    """Decoding a 100 MB file with 200 MB of samples allocates less than 12 MiB."""
    frames, count = 50_000_000, 0
    tracemalloc.start()
    try:
        for block in decode_blocks(cast(BinaryIO, LongWav(frames)), sample_rate_hz=RATE_HZ, channels=1):
            count += len(block)
            assert block.nbytes <= 2**22
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert abs(count - frames * RATE_HZ / 48000) <= 1
    assert peak < 12 * 2**20


@pytest.mark.parametrize(("stored", "rate_hz"), [(64, 44100), (1, 2000)])
def test_many_channels_and_low_rates_make_no_large_blocks(stored: int, rate_hz: int) -> None:
    content = encode_file(noise(40_000, stored), rate_hz=rate_hz)
    sizes = [b.nbytes for b in decode_blocks(io.BytesIO(content), sample_rate_hz=RATE_HZ, channels=2)]
    assert len(sizes) > 1
    assert max(sizes) <= 2**22


# --- unusable files


WAV = encode_file(tone(440.0))
FLAC = encode_file(tone(440.0), form="FLAC")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes"),
        (np.random.default_rng(0).bytes(50) + b"no music" * 50, "Format not recognised"),
        (encode_file(np.zeros(0)), "no samples"),
        (encode_file(np.array([0.1, np.nan]), subtype="FLOAT"), "NaN"),
        (encode_file(np.array([0.1, 1e300]), subtype="DOUBLE"), "infinite"),
        (patch_bytes(WAV, 22, b"\0\0"), "Channel count is zero"),
        (patch_bytes(WAV, 22, b"\xff\xff"), "Too many channels"),
        (patch_bytes(WAV, 24, b"\1\0\0\0"), "sample rate of 1 Hz"),
        (patch_bytes(WAV, 24, b"\xff\xff\xff\x7f"), "sample rate of 2147483647 Hz"),
        (patch_bytes(FLAC, 21, bytes([FLAC[21] | 15]) + b"\xff" * 4), "22050 of 68719476735 samples"),
        (FLAC[: len(FLAC) // 2], "flac"),
        (encode_file(tone(440.0), form="MP3", subtype="MPEG_LAYER_III")[:400], "damaged"),
        (encode_file(tone(440.0), form="OGG", subtype="VORBIS")[:200], "malformed"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "Format not recognised"),
    ],
    ids=["empty", "text", "no samples", "nan", "infinite as float32", "0 channels", "65535 channels", "1 Hz", "2 GHz",
         "absurd length", "cut flac", "cut mp3", "cut ogg", "playlist"],
)  # fmt: skip
def test_unusable_files_give_a_one_line_error(content: bytes, message: str) -> None:
    for channels in (1, 2):
        with pytest.raises(AudioError, match=message) as caught:
            decode_bytes(content, channels=channels)
        assert "\n" not in str(caught.value)
        assert " at 0x" not in str(caught.value)  # an address would make two runs' quarantine lists differ
    assert AudioError is SameError


@pytest.mark.parametrize("promised", [0xFFFFFFFF, 0x7FFFFFF0])
def test_a_wav_that_promises_more_than_it_holds_gives_what_it_holds(promised: int) -> None:
    np.testing.assert_array_equal(decode_bytes(patch_bytes(WAV, 40, struct.pack("<I", promised))), decode_bytes(WAV))


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")])
def test_of_a_cut_wav_mp3_or_ogg_what_is_left_is_decoded(form: str, subtype: str) -> None:
    """An ogg loses its last full page, about one second."""
    content = encode_file(tone(440.0, rate_hz=48000, seconds=6), rate_hz=48000, form=form, subtype=subtype)
    whole, part = (
        decode_bytes(content, rate_hz=48000)[0],
        decode_bytes(content[: int(0.9 * len(content))], rate_hz=48000)[0],
    )
    assert 0.7 * len(whole) < len(part) < 0.95 * len(whole)
    np.testing.assert_allclose(part[:-2000], whole[: len(part) - 2000], atol=1e-6)


class DisconnectedFile(io.BytesIO):
    """A file on a server that disconnects after some bytes."""

    def read(self, count: int | None = -1, /) -> bytes:
        if self.tell() > 200_000:
            raise ConnectionResetError("the server went away")
        return super().read(min(count or 0, 65536))


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_a_stream_that_breaks_is_not_taken_for_the_end(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    stream = DisconnectedFile(encode_file(noise(400_000), form=form))
    with pytest.raises(ConnectionResetError, match="went away"):
        list(decode_blocks(stream, sample_rate_hz=RATE_HZ, channels=1))
    assert "Traceback" not in capfd.readouterr().err


# --- m4a and other formats of PyAV


def encode_with_pyav(samples: np.ndarray, form: str, codec: str, *, to: Path | None = None) -> bytes:
    """Encode mono samples [N] at 44.1 kHz with FFmpeg; with `to`, into a file that starts with its index."""
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    options = {"movflags": "faststart"} if to else {}
    with av.open(str(to) if to else stream, "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), 0
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return to.read_bytes() if to else stream.getvalue()


@pytest.mark.parametrize(
    ("form", "codec", "delay"), [("ipod", "aac", 0), ("mp4", "aac", 0), ("adts", "aac", 1024), ("matroska", "aac", 0)]
)
def test_aac_keeps_frequency_level_and_length(form: str, codec: str, delay: int) -> None:
    """Raw ADTS states no encoder delay; only an m4a states its length, others end with padding of the last packet."""
    original = tone(440.0, seconds=2)
    samples = decode_bytes(encode_with_pyav(original, form, codec))[0]
    if form in ("ipod", "mp4"):
        assert len(samples) == len(original)
    else:
        assert 0 <= len(samples) - len(original) < 3072
    middle, late = slice(4096, 4096 + 44100), slice(4096 + delay, 4096 + delay + 44100)
    assert np.corrcoef(samples[late], original[middle])[0, 1] > 0.999  # one sample late is 0.998
    spectrum = np.abs(np.fft.rfft(samples[late]))
    assert spectrum.argmax() == 440
    assert 2 * spectrum.max() / 44100 == pytest.approx(0.5, rel=0.01)


def test_m4a_is_resampled_and_mixed_as_any_other() -> None:
    left, right = decode_bytes(encode_with_pyav(tone(440.0, seconds=2), "ipod", "aac"), rate_hz=16000, channels=2)
    assert abs(len(left) - 32000) <= 1
    np.testing.assert_array_equal(left, right)
    assert np.corrcoef(left[2000:-2000], tone(440.0, rate_hz=16000, seconds=2)[2000:-2000])[0, 1] > 0.999


def test_lossless_m4a_gives_the_stored_samples() -> None:
    stored = noise(20_000).astype(np.float32)
    np.testing.assert_allclose(decode_bytes(encode_with_pyav(stored, "ipod", "alac"))[0], stored, atol=2**-22)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("form", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("FLAC", "PCM_16"),
     ("FLAC", "PCM_24")],
)  # fmt: skip
def test_both_decoders_agree_to_the_bit_on_lossless_files(form: str, subtype: str, channels: int) -> None:
    pytest.importorskip("av")
    content = encode_file(noise(30_000, channels).clip(-1, 1), form=form, subtype=subtype, rate_hz=32000)
    refused = AudioError("neither reads it")
    with ExitStack() as stack:
        sound = open_with_pyav(ErrorCapturingStream(io.BytesIO(content)), stack, refused)
        parts = list(sound.iter_blocks(10_000))
    assert (sound.sample_rate_hz, sound.channels, len(parts) > 1) == (32000, channels, True)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_m4a_that_is_cut_short_or_damaged_is_refused(tmp_path: Path) -> None:
    content = encode_with_pyav(noise(200_000), "ipod", "aac")
    with pytest.raises(AudioError, match="m4a/AAC"):
        decode_bytes(content[:-2000])  # the index is at the end
    index_first = encode_with_pyav(noise(200_000), "ipod", "aac", to=tmp_path / "song.m4a")
    assert abs(len(decode_bytes(index_first)[0]) - 200_000) < 44  # its length is stated in whole milliseconds
    with pytest.raises(AudioError, match=r"(\d+ of \d+ samples)|(damaged)"):
        decode_bytes(index_first[: len(index_first) // 2])


def test_a_video_without_sound_is_refused() -> None:
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width = track.height = 32
        for packet in [*track.encode(av.VideoFrame(32, 32, "yuv420p")), *track.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match="no audio stream"):
        decode_bytes(stream.getvalue())


def test_without_pyav_an_m4a_names_the_extra_and_other_files_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m4a, adts = (encode_with_pyav(tone(440.0), form, "aac") for form in ("ipod", "adts"))
    monkeypatch.setitem(sys.modules, "av", None)
    for content in (m4a, adts):
        with pytest.raises(AudioError, match=r"^m4a/AAC .*presto-distill\[m4a\]"):
            decode_bytes(content)
    with pytest.raises(AudioError, match="Format not recognised"):
        decode_bytes(b"this is no music" * 50)
    assert len(decode_bytes(WAV)[0]) == 22050


def test_suffixes_of_both_decoders_are_known() -> None:
    assert all(map(is_audio, ("a.m4a", "b.AAC", "c.mp4", "d.oga", "e.aifc", "f.flac")))
