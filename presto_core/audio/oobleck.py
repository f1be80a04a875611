"""The production codec: Stable Audio's autoencoder (diffusers AutoencoderOobleck) loaded from a local folder."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presto_core.audio.codec import CodecError, check_audio, check_latents, list_parts

FIRST_FRAMES = 48  # of audio that is decoded in parts: 2 s
CHUNK_FRAMES = 768  # 36 s of Stable Audio's autoencoder: what models generate by default is one chunk
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DEFAULTS_KEY = "_use_default_values"  # settings that diffusers then reads as its defaults


class OobleckCodec:
    """`Codec` around a diffusers autoencoder; latents are the mode of the posterior, so encoding is deterministic.

    Args:
        folder: written by `AutoencoderOobleck.save_pretrained`: config.json and diffusion_pytorch_model.safetensors.

    Raises:
        CodecError: diffusers is not installed, the folder contains no such model, or its layout would lose samples.
    """

    name = "oobleck"
    chunk_frames = CHUNK_FRAMES

    def __init__(self, folder: Path) -> None:
        self._model = load_autoencoder(folder, "AutoencoderOobleck")
        config = self._model.config
        _check_layout(folder, config)
        self.hop = int(self._model.hop_length)
        self.sample_rate_hz, self.channels = int(config.sampling_rate), int(config.decoder_input_channels)
        self.audio_channels = int(config.audio_channels)
        self.digest = self.decoder_digest = compute_digest(folder)
        self.device = torch.device("cpu")
        self.margin_frames = count_margin_frames(config.downsampling_ratios)

    def to(self, device: torch.device | str) -> OobleckCodec:
        """Move the autoencoder to a device and return the codec itself."""
        self._model, self.device = self._model.to(device), torch.device(device)
        return self

    @staticmethod
    def load(path: str | Path | None = None) -> OobleckCodec:
        """Load the autoencoder from a local folder; the package ships none. Raises CodecError."""
        if not path:
            raise CodecError(
                "codec.path is empty with codec.kind=oobleck; set it to the local folder of an AutoencoderOobleck"
            )
        return OobleckCodec(Path(path))

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio [B, audio_channels, N] to latents [B, channels, floor(N / hop)]; a partial last hop is dropped.

        Mono [B, 1, N], which ingest passes, is copied to all channels of the autoencoder.
        """
        if audio.ndim == 3 and audio.shape[1] == 1:
            audio = audio.expand(-1, self.audio_channels, -1)
        check_audio(audio, audio_channels=self.audio_channels, hop=self.hop)
        whole = audio[..., : audio.shape[-1] // self.hop * self.hop]
        return self._encode(self._to_model_input(whole))

    def _encode(self, audio: Tensor) -> Tensor:
        latents: Tensor = self._model.encode(audio).latent_dist.mode()
        return latents

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, channels, T] to audio [B, audio_channels, T * hop].

        Long latents are decoded in chunks with a margin that is wider than the decoder's receptive field: equal to the
        whole within rounding.
        """
        check_latents(latents, channels=self.channels)
        moved = self._to_model_input(latents)
        return torch.cat(list(self._iter_chunks(moved, self.chunk_frames)), dim=-1)

    @torch.inference_mode()
    def decode_in_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the audio of latents [1, channels, T] in parts [1, audio_channels, n], short ones first."""
        check_latents(latents, channels=self.channels)
        parts = list_parts(latents.shape[-1], first=FIRST_FRAMES, longest=self.chunk_frames)
        yield from self._iter_parts(self._to_model_input(latents), parts)

    def _iter_chunks(self, latents: Tensor, chunk_frames: int) -> Iterator[Tensor]:
        return self._iter_parts(latents, list_parts(latents.shape[-1], first=chunk_frames, longest=chunk_frames))

    def _iter_parts(self, latents: Tensor, parts: list[tuple[int, int]]) -> Iterator[Tensor]:
        margin = self.margin_frames
        for start, stop in parts:
            first = max(start - margin, 0)
            audio = self._model.decode(latents[..., first : stop + margin]).sample
            yield audio[..., (start - first) * self.hop : (stop - first) * self.hop]

    def _to_model_input(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, torch.float32)


def load_autoencoder(folder: Path, name: str) -> Any:
    """Load an autoencoder of a class of diffusers from its two files, in fp32 for evaluation; raises CodecError."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise CodecError(f"codec folder {folder} has no {file}; set codec.path to the folder of an {name}")
    try:
        import diffusers
    except ImportError:
        raise CodecError(f"an {name} needs diffusers; run pip install 'presto-distill[oobleck]'") from None
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise CodecError(f"diffusers {diffusers.__version__} has no {name}; install a newer one")
    try:
        with tempfile.TemporaryDirectory() as shown:  # the loader finds no other file, as an index of further weights
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                (Path(shown) / file).symlink_to((folder / file).absolute())
            model: Any = kind.from_pretrained(
                shown, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except Exception as error:  # diffusers raises many exception types for a damaged file
        raise CodecError(f"codec in {folder} cannot be loaded: {' '.join(str(error).split())}") from None
    return model.float().eval()


def count_margin_frames(downsampling_ratios: Sequence[int]) -> int:
    """Return latent frames on each side that a decoded sample depends on, rounded up."""
    # conv of 7 taps; per block a transposed conv of 2 s taps, stride s, then three of 7 taps, dilated by 1, 3 and 9,
    # at the rate after it; a last conv of 7 taps
    reach, rate = 3.0, 1
    for ratio in reversed(list(downsampling_ratios)):
        reach += 1 / rate
        rate *= ratio
        reach += 3 * (1 + 3 + 9) / rate
    return math.ceil(reach + 3 / rate) + 1


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


def compute_digest(folder: Path) -> str:
    """Return the sha256 over weights and settings, but for keys without effect, such as the diffusers version."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    settings = {name: value for name, value in config.items() if not name.startswith("_") or name == DEFAULTS_KEY}
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while block := file.read(2**24):
            hasher.update(block)
    return hasher.hexdigest()
