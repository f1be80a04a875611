"""Sizes and lengths that headers state wrongly or leave open, in every format: nothing is lost without a word."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from presto_core.audio.chunks import AudioError
from presto_core.audio.flac_parts import StreamInfo, parse_frame_end
from presto_core.audio.mp3_parts import parse_header
from tests.core.test_decode import encode_with_pyav
from tests.core.test_stream_parts import decode_bytes, encode, find_count, measure_parts, noise, patch_bytes

SAMPLES = 60_000
CHUNKED = ["WAV", "RF64", "AIFF", "AU", "CAF", "W64"]
# of the size of the samples: name of its chunk, offset from it, and its struct
SIZE_FIELDS = {
    "WAV": (b"data", 4, "<I"), "RF64": (b"ds64", 16, "<Q"), "AIFF": (b"SSND", 4, ">I"), "AU": (b".snd", 8, ">I"),
    "CAF": (b"data", 4, ">Q"), "W64": (b"data", 16, "<Q"),
}  # fmt: skip


def write_size(content: bytes, form: str, size: int) -> bytes:
    name, offset, layout = SIZE_FIELDS[form]
    return patch_bytes(content, content.index(name) + offset, struct.pack(layout, size))


# --- WAV and its kin


@pytest.mark.parametrize("form", CHUNKED)
def test_joined_files_of_chunks_are_decoded_one_after_another(form: str):
    one, two = (encode(noise(n, 2, seed=n), form) for n in (SAMPLES, 30_001))
    assert measure_parts(one + two + one) == [(44100, 2, SAMPLES), (44100, 2, 30_001), (44100, 2, SAMPLES)]


def test_joined_files_may_be_of_different_kinds():
    parts = [encode(noise(n), form) for n, form in ((20_000, "WAV"), (30_000, "RF64"), (40_000, "W64"))]
    assert [samples for _, _, samples in measure_parts(b"".join(parts))] == [20_000, 30_000, 40_000]


@pytest.mark.parametrize("form", CHUNKED)
def test_a_size_of_0_is_read_to_the_end(form: str):
    content = encode(noise(SAMPLES), form)
    np.testing.assert_array_equal(decode_bytes(write_size(content, form, 0)), decode_bytes(content))


@pytest.mark.parametrize(("form", "size"), [("CAF", 2**64 - 1), ("RF64", 2**64 - 1), ("AU", 2**32 - 1), ("WAV", 2**31)])
def test_a_size_that_means_unknown_or_promises_too_much_is_read_to_the_end(form: str, size: int):
    content = encode(noise(SAMPLES), form)
    np.testing.assert_array_equal(decode_bytes(write_size(content, form, size)), decode_bytes(content))


@pytest.mark.parametrize("form", ["WAV", "RF64", "AIFF", "CAF", "W64"])
def test_a_size_that_leaves_music_behind_is_refused_with_both_numbers(form: str):
    content = encode(noise(SAMPLES), form)
    with pytest.raises(AudioError, match=r"states \d+ bytes of samples, and 1\d{5} bytes follow"):
        decode_bytes(write_size(content, form, 4096))


def test_an_au_file_is_read_to_its_end_whatever_it_states():
    content = encode(noise(SAMPLES), "AU")
    np.testing.assert_array_equal(decode_bytes(write_size(content, "AU", 4096)), decode_bytes(content))


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(200_000), b"LIST" + struct.pack("<I", 4) + b"INFO"])
def test_tags_padding_and_chunks_after_the_samples_are_none_of_them(tail: bytes):
    content = encode(noise(SAMPLES), "WAV")
    np.testing.assert_array_equal(decode_bytes(content + tail), decode_bytes(content))


@pytest.mark.parametrize("form", [*CHUNKED, "FLAC", "OGG", "MP3"])
def test_a_tag_before_any_format_is_skipped(form: str):
    content = encode(noise(SAMPLES), form)
    tag = b"ID3\4\0\0" + bytes([0, 0, 0x40, 0]) + b"\xff\xfb\x90\x44" * 2048
    np.testing.assert_array_equal(decode_bytes(tag + content), decode_bytes(content))


def test_a_tag_of_a_damaged_size_costs_no_music():
    """Bytes of the size are below 128; FFmpeg takes no others for a tag either."""
    content = encode(noise(SAMPLES), "MP3")
    tag = b"ID3\4\0\0" + bytes([0, 0, 0x92, 35]) + bytes(35)
    np.testing.assert_array_equal(decode_bytes(tag + content), decode_bytes(content))


# --- FLAC


@pytest.mark.parametrize("total", [1, 1000, SAMPLES - 4096, SAMPLES - 1])
@pytest.mark.parametrize("is_joined", [False, True])
def test_a_flac_that_states_too_few_samples_is_read_to_its_end(total: int, is_joined: bool):
    content = encode(noise(SAMPLES, 2), "FLAC")
    wrong = patch_bytes(content, 21, bytes([content[21] & 0xF0]) + struct.pack(">I", total))
    copies = 2 if is_joined else 1
    np.testing.assert_array_equal(decode_bytes(wrong * copies), np.tile(decode_bytes(content), copies))


@pytest.mark.parametrize("frame", [b"\xff\xf8", b"\xff\xf8\xc9\x18\x00", b"\xff\xf8\xc9\x18\xff" + bytes(12)])
def test_bytes_that_are_no_flac_frame_have_no_end(frame: bytes):
    assert parse_frame_end(frame, StreamInfo(4096, 1, 2, 0)) is None


# --- Ogg, MP3 and m4a


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_with_a_damaged_page_is_refused_and_a_cut_one_is_used(subtype: str):
    """A decoder skips a page whose checksum is wrong; of a file without its end, the last page states the length."""
    content = encode(noise(480_000), "OGG", rate_hz=48000, subtype=subtype)
    middle = len(content) // 2
    with pytest.raises(AudioError, match=r"damaged: 4[0-9]{5} of 480000 samples"):
        measure_parts(patch_bytes(content, middle, bytes([content[middle] ^ 1])))
    ((_, _, samples),) = measure_parts(content[:middle])
    assert 150_000 < samples < 300_000


def test_an_ogg_recorded_from_a_broadcast_may_begin_at_any_position():
    """Its pages state positions, and their checksums, from the start of the broadcast on."""
    content = encode(noise(480_000), "OGG", rate_hz=48000, subtype="OPUS")
    pages = [match for match in range(len(content)) if content[match : match + 4] == b"OggS"]
    kept = content[: pages[2]] + content[pages[6] :]
    ((_, _, samples),) = measure_parts(kept)
    assert samples > 200_000


def test_an_mp3_is_read_beyond_a_gap():
    """A decoder gives up 1024 bytes after the last frame."""
    content = encode(noise(200_000), "MP3")
    np.testing.assert_array_equal(decode_bytes(content + bytes(5000)), decode_bytes(content))
    middle = len(content) // 2
    damaged = content[:middle] + bytes(5000) + content[middle:]
    assert abs(sum(samples for _, _, samples in measure_parts(damaged)) - 200_000) < 5 * 1152


def test_an_mp3_without_headers_may_change_its_channels_midway():
    contents = [encode(noise(n, c, seed=n), "MP3") for n, c in ((100_000, 2), (80_000, 1))]
    bare = b""
    for content in contents:
        header = parse_header(content[:4])
        assert header is not None
        assert find_count(content) < header.size
        bare += content[header.size :]
    (_, _, first), (_, _, second) = measure_parts(bare)
    assert [channels for _, channels, _ in measure_parts(bare)] == [2, 1]
    assert 0 <= first - 100_000 < 3 * 1152
    assert 0 <= second - 80_000 < 3 * 1152


def test_joined_m4a_files_are_decoded_one_after_another():
    one, two = (encode_with_pyav(noise(n)[:, 0], "ipod", "aac") for n in (SAMPLES, 30_000))
    parts = measure_parts(one + two)
    assert [round(samples, -3) for _, _, samples in parts] == [SAMPLES, 30_000]
    assert io.BytesIO(one).read(8)[4:] == b"ftyp"
