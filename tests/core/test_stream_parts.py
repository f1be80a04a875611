"""Files are decoded to their true end, whatever their first header says: joined files, chains, and wrong lengths."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from presto_core.audio.chunks import AudioError, decode, decode_blocks, has_louder_channel
from presto_core.audio.decoders import iter_sounds
from presto_core.audio.mp3_parts import parse_header
from tests.core.test_audio import encode_file, tone

DATA = Path(__file__).parent / "data" / "joined_audio"  # of our own making
RATE_HZ = 44100


def noise(samples: int, channels: int = 1, *, seed: int = 0) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal((samples, channels)).clip(-4, 4)


def encode(samples: np.ndarray, form: str, *, rate_hz: int = RATE_HZ, **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=form, **options)
    return stream.getvalue()


def measure_parts(content: bytes) -> list[tuple[int, int, int]]:
    """Return sample rate, channels and samples of each part."""
    parts = []
    for sound in iter_sounds(io.BytesIO(content)):
        samples = sum(len(block) for block in sound.iter_blocks(5000))
        parts.append((sound.sample_rate_hz, sound.channels, samples))
    return parts


def decode_bytes(content: bytes) -> np.ndarray:
    return decode(io.BytesIO(content), sample_rate_hz=RATE_HZ)


def patch_bytes(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


# --- joined files


@pytest.mark.parametrize(
    ("form", "subtype"),
    [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16"), ("WAV", "PCM_16")],
)
def test_each_of_several_joined_files_is_decoded_as_it_is_alone(form: str, subtype: str):
    rate_hz = 48000
    one, two = (encode(noise(n, 2, seed=n), form, rate_hz=rate_hz, subtype=subtype) for n in (70_000, 40_001))
    alone = [decode(io.BytesIO(content), sample_rate_hz=rate_hz) for content in (one, two)]
    joined = decode(io.BytesIO(one + two + one), sample_rate_hz=rate_hz)
    np.testing.assert_array_equal(joined, np.concatenate([*alone, alone[0]]))
    assert [len(part) for part in alone] == [70_000, 40_001]


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")])
def test_joined_files_may_differ_in_rate_and_channels(form: str, subtype: str):
    formats = [(44100, 2, 60_000), (48000, 1, 30_000), (48000, 2, 20_000)]
    contents = [encode(noise(n, c, seed=n), form, rate_hz=hz, subtype=subtype) for hz, c, n in formats]
    content = b"".join(contents)
    assert measure_parts(content) == formats
    expected = 60_000 + (30_000 + 20_000) * 44100 / 48000
    for channels in (1, 2):
        blocks = list(decode_blocks(io.BytesIO(content), sample_rate_hz=RATE_HZ, channels=channels))
        assert abs(sum(map(len, blocks)) - expected) <= 1
        assert {block.shape[1] for block in blocks} == {channels}


def test_codecs_of_a_chain_may_differ():
    vorbis = encode(noise(30_000), "OGG", subtype="VORBIS")
    opus = encode(noise(20_000, 2), "OGG", rate_hz=48000, subtype="OPUS")
    assert measure_parts(vorbis + opus + vorbis) == [(44100, 1, 30_000), (48000, 2, 20_000), (44100, 1, 30_000)]


def test_tags_between_joined_mp3_files_are_skipped():
    """An ID3v2 tag with a picture that looks like frames, and an ID3v1 tag at the end of the first file."""
    content = encode(noise(50_000), "MP3")
    picture = content[:4] * 30_000
    size = bytes(len(picture) >> shift & 0x7F for shift in (21, 14, 7, 0))
    id3v2, id3v1 = b"ID3\4\0\0" + size + picture, b"TAG" + bytes(125)
    assert measure_parts(id3v2 + content + id3v1 + id3v2 + content + id3v1) == [(44100, 1, 50_000)] * 2


def test_a_broken_part_is_refused_and_numbered():
    ogg = encode(noise(30_000), "OGG")
    with pytest.raises(AudioError, match="part 2 of 2 is not readable as audio"):
        decode_bytes(ogg + ogg[:200])


# --- MP3 headers with a wrong number of frames


def find_count(content: bytes) -> int:
    """Return the position of the number of frames in a Xing or Info header."""
    start = max(content.find(b"Xing"), content.find(b"Info"))
    assert start > 0
    assert content[start + 7] & 1
    return start + 8


@pytest.mark.parametrize("frames", [0, 1, 20])
def test_a_xing_header_with_too_few_frames_loses_nothing(frames: int):
    content = encode(noise(100_000, 2), "MP3")
    wrong = patch_bytes(content, find_count(content), struct.pack(">I", frames))
    np.testing.assert_array_equal(decode_bytes(wrong), decode_bytes(content))


def test_an_mp3_of_ffmpeg_whose_xing_header_states_0_frames_has_its_four_seconds():
    """Four seconds of stereo; the delay and padding that its LAME tag states are left out."""
    assert measure_parts((DATA / "xing_zero_frames.mp3").read_bytes()) == [(44100, 2, 4 * RATE_HZ)]


def test_an_mp3_of_variable_rate_without_a_xing_header_is_decoded_to_its_end():
    """A loud beginning makes decoders expect few frames; without the header, they keep the padding of a frame."""
    loud_then_quiet = np.concatenate([noise(150_000), 0.001 * noise(400_000)])
    content = encode(loud_then_quiet, "MP3", bitrate_mode="VARIABLE", compression_level=0.2)
    header = parse_header(content[:4])
    assert header is not None
    assert find_count(content) < header.size
    bare = content[header.size :]
    with soundfile.SoundFile(io.BytesIO(bare)) as file:
        assert file.frames < 450_000  # what libsndfile would read
    assert 0 <= len(decode_bytes(bare)) - 550_000 < 3 * 1152


def test_a_header_of_no_layer_three_frame_is_none():
    assert parse_header(bytes([0xFF, 0xFB, 0x90, 0x44])) is not None
    for header in (
        [0xFF, 0xF1, 0x50, 0x80],
        [0xFF, 0xFB, 0xF0, 0],
        [0xFF, 0xFB, 0x9C, 0],
        [0xFF, 0xEB, 0x90, 0],
        [0xFF],
    ):
        assert parse_header(bytes(header)) is None, header


# --- sizes of 0


@pytest.mark.parametrize("which", ["samples", "both", "with a chunk before"])
def test_a_wav_that_states_no_sizes_is_read_to_its_end(which: str):
    content = encode_file(tone(440.0))
    wrong = patch_bytes(content, 40, bytes(4))
    if which == "both":
        wrong = patch_bytes(wrong, 4, bytes(4))
    if which == "with a chunk before":
        wrong = wrong[:36] + b"LIST" + struct.pack("<I", 4) + b"INFO" + wrong[36:]
    np.testing.assert_array_equal(decode_bytes(wrong), decode_bytes(content))


def test_a_wav_without_samples_stays_empty():
    content = encode_file(np.zeros(0))
    for tail in (b"", b"LIST" + struct.pack("<I", 4) + b"INFO"):
        with pytest.raises(AudioError, match="no samples"):
            decode_bytes(content + tail)


def test_an_au_file_of_size_0_is_read_to_its_end():
    content = encode(tone(440.0), "AU")
    np.testing.assert_array_equal(decode_bytes(patch_bytes(content, 8, bytes(4))), decode_bytes(content))


# --- Ogg FLAC


def encode_ogg_flac(samples: np.ndarray) -> bytes:
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    with av.open(stream, "w", format="ogg") as container:
        track = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 2**15).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE_HZ, 0
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return stream.getvalue()


def test_ogg_flac_that_libsndfile_refuses_gives_its_samples(monkeypatch: pytest.MonkeyPatch):
    samples = np.round(noise(50_000)[:, 0] * 2**15) / 2**15
    content = encode_ogg_flac(samples)
    np.testing.assert_array_equal(decode_bytes(content), samples)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(io.BytesIO(content))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"Ogg FLAC needs PyAV; .*presto-distill\[m4a\]"):
        decode_bytes(content)


# --- channels that cancel


def test_a_channel_that_the_mix_cancels_is_found():
    left = tone(440.0)
    cancels = encode_file(np.stack([left, -left], axis=1))
    assert np.abs(decode_bytes(cancels)).max() < 1e-4
    assert has_louder_channel(io.BytesIO(cancels), rms=1e-3, frames=4096)
    assert not has_louder_channel(io.BytesIO(encode_file(np.zeros((9000, 2)))), rms=1e-3, frames=4096)
