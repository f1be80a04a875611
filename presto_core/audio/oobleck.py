"""The production codec: Stable Audio's autoencoder (diffusers AutoencoderOobleck) loaded from a local folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_core.audio.codec import CodecError, check_audio, check_latents

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DEFAULTS_KEY = "_use_default_values"  # settings that diffusers then reads as its defaults


class OobleckCodec:
    """`Codec` around a diffusers autoencoder; latents are the mode of the posterior, so encoding is deterministic.

    Args:
        folder: written by `AutoencoderOobleck.save_pretrained`: config.json and diffusion_pytorch_model.safetensors.
        device: where the autoencoder computes; inputs may be on any device, results are on the CPU.

    Raises:
        CodecError: diffusers is not installed, the folder contains no such model, its layout would lose samples, or
            the device does not exist.
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
        """Load the autoencoder from a local folder; the package ships none. Raises CodecError."""
        if not path:
            raise CodecError(
                "codec.path is empty with codec.kind=oobleck; set it to the local folder of an AutoencoderOobleck"
            )
        return OobleckCodec(Path(path), device=device)

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio [B, audio_channels, N] to latents [B, channels, floor(N / hop)]; a partial last hop is dropped.

        Mono [B, 1, N], which ingest passes, is copied to all channels of the autoencoder.
        """
        if audio.ndim == 3 and audio.shape[1] == 1:
            audio = audio.expand(-1, self.audio_channels, -1)
        check_audio(audio, audio_channels=self.audio_channels, hop=self.hop)
        whole = audio[..., : audio.shape[-1] // self.hop * self.hop]
        return self._model.encode(self._to_model_input(whole)).latent_dist.mode().cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, channels, T] to audio [B, audio_channels, T * hop]."""
        check_latents(latents, channels=self.channels)
        return self._model.decode(self._to_model_input(latents)).sample.cpu()

    def _to_model_input(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._model.device, torch.float32)


def _load_model(folder: Path) -> Any:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CodecError(f"oobleck folder {folder} has no {name}; set codec.path to an AutoencoderOobleck folder")
    try:
        from diffusers import AutoencoderOobleck
    except ImportError:
        raise CodecError("codec.kind=oobleck needs diffusers; run pip install 'presto-distill[oobleck]'") from None
    try:
        with tempfile.TemporaryDirectory() as shown:  # the loader finds no other file, as an index of further weights
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                (Path(shown) / name).symlink_to((folder / name).absolute())
            model: Any = AutoencoderOobleck.from_pretrained(
                shown, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except Exception as error:  # diffusers raises many exception types for a damaged file
        raise CodecError(f"oobleck in {folder} cannot be loaded: {' '.join(str(error).split())}") from None
    return model.float().eval()


def _move_to_device(model: Any, device: torch.device | str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch is built without CUDA
        message = str(error).splitlines()[0]
        raise CodecError(f"oobleck cannot run on device {device} ({message}); choose cpu") from None


def _check_layout(folder: Path, config: Any) -> None:
    """Check that mean and scale fill the encoder's output and strides are even: odd ones shorten the audio."""
    if config.encoder_hidden_size != 2 * config.decoder_input_channels:
        raise CodecError(
            f"oobleck in {folder} has encoder_hidden_size={config.encoder_hidden_size}; "
            f"use a model where it is 2 x decoder_input_channels = {2 * config.decoder_input_channels}"
        )
    odd = [ratio for ratio in config.downsampling_ratios if ratio % 2]
    if odd:
        raise CodecError(
            f"oobleck in {folder} loses samples at downsampling_ratios {odd}; use a model with even ratios"
        )


def _digest(folder: Path) -> str:
    """Return the sha256 over weights and settings, but for keys without effect, such as the diffusers version."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    settings = {name: value for name, value in config.items() if not name.startswith("_") or name == DEFAULTS_KEY}
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while block := file.read(2**24):
            hasher.update(block)
    return hasher.hexdigest()
