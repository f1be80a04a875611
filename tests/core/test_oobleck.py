"""The production codec on tiny autoencoders with random weights: shapes, digests, and rejected folders."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from presto_core.audio import oobleck
from presto_core.audio.codec import CodecError
from presto_core.audio.load_codec import load_codec
from presto_core.audio.oobleck import OobleckCodec
from presto_core.device import DeviceError


def save_oobleck(folder: Path, *, audio_channels: int = 1, ratios: tuple[int, ...] = (4, 4, 4)) -> Path:
    """Save an AutoencoderOobleck of hop 64 and 8 latent channels."""
    import diffusers  # takes seconds

    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=16, downsampling_ratios=list(ratios), channel_multiples=[1, 2, 2, 2][: len(ratios)],
        decoder_channels=8, decoder_input_channels=8, audio_channels=audio_channels, sampling_rate=16000,
    )  # fmt: skip
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def noise(*, channels: int) -> Tensor:
    """[1, channels, N], one sample short of 21 hops."""
    return 0.1 * torch.randn(1, channels, 64 * 20 + 63, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def oobleck_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_oobleck(tmp_path_factory.mktemp("oobleck"), audio_channels=1)


def test_oobleck_round_trip(oobleck_folder: Path) -> None:
    codec = load_codec("oobleck", path=str(oobleck_folder))
    assert (codec.channels, codec.hop, codec.sample_rate_hz, codec.audio_channels) == (8, 64, 16000, 1)
    audio = noise(channels=1)
    latents = codec.encode(audio)
    assert latents.shape == (1, 8, 20)
    assert codec.decode(latents).shape == (1, 1, 64 * 20)
    assert torch.equal(latents, load_codec("oobleck", path=str(oobleck_folder)).encode(audio))


def test_oobleck_digest_follows_the_weights(oobleck_folder: Path, tmp_path: Path) -> None:
    import diffusers

    model = diffusers.AutoencoderOobleck.from_pretrained(oobleck_folder)
    model.save_pretrained(tmp_path / "same")
    next(iter(model.parameters())).data.add_(1e-3)
    model.save_pretrained(tmp_path / "other")
    first, same, other = (
        load_codec("oobleck", path=str(folder)).digest
        for folder in (oobleck_folder, tmp_path / "same", tmp_path / "other")
    )
    assert first == same
    assert first != other


def test_oobleck_that_cannot_be_loaded_gives_a_one_line_error(oobleck_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"codec\.path"):
        load_codec("oobleck")
    with pytest.raises(CodecError, match=r"config\.json.*codec\.path"):
        load_codec("oobleck", path=str(tmp_path))
    for file in oobleck_folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:-50] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(CodecError, match=re.escape(str(tmp_path))) as caught:
        load_codec("oobleck", path=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"downsampling_ratios": [4, 4, 3]}, r"downsampling_ratios \[3\]"),
        ({"encoder_hidden_size": 8}, "encoder_hidden_size=8"),
    ],
)
def test_oobleck_layouts_that_fail_later_are_refused_at_once(
    oobleck_folder: Path, tmp_path: Path, setting: dict[str, object], message: str
) -> None:
    config = json.loads((oobleck_folder / "config.json").read_text())
    shape = {name: value for name, value in config.items() if not name.startswith("_")} | setting
    import diffusers

    diffusers.AutoencoderOobleck(**shape).save_pretrained(tmp_path)
    with pytest.raises(CodecError, match=message):
        load_codec("oobleck", path=str(tmp_path))


def test_a_stereo_autoencoder_hears_mono_on_both_channels(tmp_path: Path) -> None:
    """As with Stable Audio: ingest encodes mono, generate writes stereo."""
    codec = load_codec("oobleck", path=str(save_oobleck(tmp_path, audio_channels=2)))
    mono = noise(channels=1)
    latents = codec.encode(mono)
    assert torch.equal(latents, codec.encode(torch.cat([mono, mono], dim=1)))
    assert codec.decode(latents).shape == (1, 2, 64 * 20)
    with pytest.raises(CodecError, match=re.escape("[1, 3, 1343]")):
        codec.encode(noise(channels=3))


@pytest.mark.parametrize("kind", ["oobleck", "mel_pca"])
@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_an_unknown_device_gives_a_one_line_error(oobleck_folder: Path, kind: str, device: str) -> None:
    with pytest.raises(DeviceError, match=device) as caught:
        load_codec(kind, path=str(oobleck_folder) if kind == "oobleck" else None, device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratios", [(2, 4, 8), (4, 4), (2, 2, 2, 2)])
def test_oobleck_decodes_chunks_to_what_it_decodes_as_a_whole(
    tmp_path: Path, ratios: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = OobleckCodec(save_oobleck(tmp_path, ratios=ratios))
    latents = torch.randn(1, codec.channels, 3 * codec.margin_frames + 5, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = codec.decode(latents)
        chunk_frames = codec.margin_frames // 2 + 1
        chunks = torch.cat(list(codec._iter_chunks(latents, chunk_frames)), -1)
        assert chunks.shape == whole.shape
        torch.testing.assert_close(chunks, whole, atol=1e-6, rtol=1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(oobleck, "FIRST_FRAMES", chunk_frames)
            parts = list(codec.decode_in_parts(latents))
        assert len(parts) == math.ceil(math.log2(latents.shape[-1] / chunk_frames + 1))
        torch.testing.assert_close(torch.cat(parts, -1), whole, atol=1e-6, rtol=1e-5)
        codec.margin_frames = 1  # too narrow a margin is heard
        narrow = torch.cat(list(codec._iter_chunks(latents, chunk_frames)), -1)
    assert (narrow - whole).abs().max() > 1e-5


@pytest.mark.gpu
def test_oobleck_on_a_gpu_takes_tensors_of_the_cpu_and_gives_its_own(oobleck_folder: Path) -> None:
    cpu_codec, gpu_codec = (
        load_codec("oobleck", path=str(oobleck_folder), device=device) for device in ("cpu", "cuda")
    )
    latents = gpu_codec.encode(noise(channels=1))
    audio = gpu_codec.decode(latents.cuda())
    assert latents.device.type == audio.device.type == "cuda"
    latents, audio = latents.cpu(), audio.cpu()
    torch.testing.assert_close(latents, cpu_codec.encode(noise(channels=1)), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(audio, cpu_codec.decode(latents), atol=1e-2, rtol=1e-2)
