"""The production codec: Stable Audio's autoencoder (diffusers AutoencoderOobleck) from a local folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_core.audio.codec import (
    CodecError,
    check_audio,
    check_latents,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


class OobleckCodec:
    """`Codec` around a diffusers autoencoder; latents are the posterior's mode, so encoding is a function.

    Args:
        folder: made by `AutoencoderOobleck.save_pretrained`: config.json and diffusion_pytorch_model.safetensors.
        device: where the autoencoder computes; what it is given may lie anywhere, what it returns is on the CPU.

    Raises:
        CodecError: diffusers is not installed, the folder holds no such model, its layout would lose samples, or there
            is no such device.
    """

    name = "oobleck"

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu") -> None:
        self._model = _move_to_device(_load_model(folder), device)
        config = self._model.config
        _check_layout(folder, config)
        self.hop = int(self._model.hop_length)
        self.sample_rate_hz, self.channels = int(config.sampling_rate), int(config.decoder_input_channels)
        self.audio_channels = int(config.audio_channels)
        self.digest = self.decoder_digest = _digest(folder)

    @staticmethod
    def load(path: str | Path | None = None, *, device: torch.device | str = "cpu") -> OobleckCodec:
        """The autoencoder in a local folder; there is none inside the package. Raises CodecError."""
        if not path:
            raise CodecError("codec.kind=oobleck needs codec.path, the local folder of an AutoencoderOobleck")
        return OobleckCodec(Path(path), device=device)

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, audio_channels, N] -> latents [B, channels, floor(N / hop)]; a last part of a hop is dropped.

        Mono [B, 1, N] is heard on all channels: that is how ingest gives it to a stereo autoencoder.
        """
        if audio.ndim == 3 and audio.shape[1] == 1:
            audio = audio.expand(-1, self.audio_channels, -1)
        check_audio(audio, audio_channels=self.audio_channels, hop=self.hop)
        whole = audio[..., : audio.shape[-1] // self.hop * self.hop]
        return self._model.encode(self._to_model_input(whole)).latent_dist.mode().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, channels, T] -> audio [B, audio_channels, T * hop]."""
        check_latents(latents, channels=self.channels)
        return self._model.decode(self._to_model_input(latents)).sample.cpu()

    def _to_model_input(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._model.device, torch.float32)


def _load_model(folder: Path) -> Any:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CodecError(f"oobleck folder {folder} has no {name}; set codec.path to a local AutoencoderOobleck")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local folder never needs the hub
    try:
        from diffusers import AutoencoderOobleck
    except ImportError:
        raise CodecError("codec.kind=oobleck needs diffusers: pip install 'presto-distill[oobleck]'") from None
    try:
        model: Any = AutoencoderOobleck.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers raises many kinds for a damaged file
        raise CodecError(f"oobleck in {folder} cannot be loaded: {' '.join(str(error).split())}") from None
    return model.float().eval()


def _move_to_device(model: Any, device: torch.device | str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        message = str(error).splitlines()[0]
        raise CodecError(f"oobleck cannot compute on device {device} ({message}); choose cpu") from None


def _check_layout(folder: Path, config: Any) -> None:
    """Mean and scale must fill the encoder's output; odd strides shorten the audio (seen with diffusers 0.42)."""
    if config.encoder_hidden_size != 2 * config.decoder_input_channels:
        raise CodecError(
            f"oobleck in {folder} has encoder_hidden_size={config.encoder_hidden_size}; "
            f"it must be 2 x decoder_input_channels = {2 * config.decoder_input_channels}"
        )
    odd = [ratio for ratio in config.downsampling_ratios if ratio % 2]
    if odd:
        raise CodecError(f"oobleck in {folder} has downsampling_ratios {odd}; they must be even, or samples are lost")


def _digest(folder: Path) -> str:
    """sha256 over weights and settings; the version of diffusers that saved them, kept under _names, does not enter."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    hasher.update((folder / WEIGHTS_FILE).read_bytes())
    return hasher.hexdigest()
