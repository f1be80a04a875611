"""The embedded codec: log-mel frames, four per latent, PCA to 64 channels at 21.5 Hz; no download, no GPU.

32 s at 44.1 kHz give 64 x 689 latents, the geometry of Stable Audio's autoencoder. `codec_fit` fits the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from presto_core.audio.codec import CodecError, check_audio, check_latents
from presto_core.audio.mel_codec.chunked_inversion import invert_in_chunks, invert_in_growing_chunks
from presto_core.audio.mel_codec.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_codec.mel_frames import MelSettings, log_mel_blocks
from presto_core.audio.mel_codec.tensor_file import TensorFile

ENCODER_FILE = "mel_pca_encoder.safetensors"
DECODER_FILE = "mel_pca_decoder.safetensors"


class MelPcaEncoder:
    """Projects log-mel blocks on their principal components, half-whitened: mean variance one over channels.

    Args:
        weights: `mean` [F], `basis` [F, channels] with orthonormal columns, `scale` [channels]; F = block_size.

    Raises:
        CodecError: settings or shapes do not belong to this codec.
    """

    def __init__(self, weights: TensorFile) -> None:
        try:
            self.settings = MelSettings(**weights.settings)
            self.mean, self.basis, self.scale = (weights.tensors[name] for name in ("mean", "basis", "scale"))
        except (TypeError, KeyError) as error:
            raise CodecError(f"the encoder weights do not belong to a mel_pca codec: {error}") from None
        expected = [self.settings.block_size, self.settings.channels]
        if list(self.basis.shape) != expected:
            raise CodecError(f"mel_pca encoder has basis {list(self.basis.shape)} but settings for {expected}")
        self.filters = self.settings.make_filters()
        self.digest = weights.digest

    def to(self, device: torch.device | str) -> MelPcaEncoder:
        self.mean, self.basis, self.scale = (t.to(device) for t in (self.mean, self.basis, self.scale))
        self.filters = self.filters.to(device)
        return self

    def encode(self, samples: Tensor) -> Tensor:
        """Encode samples [..., N] to latents [..., channels, floor(N / hop)]."""
        blocks = log_mel_blocks(samples, self.settings, self.filters)
        return (((blocks - self.mean) @ self.basis) / self.scale).transpose(-1, -2)


class MelPcaCodec:
    """`Codec` of a `MelPcaEncoder`, a `MagnitudeDecoder` and Griffin-Lim; each clip of a batch is independent.

    On a CPU clips are computed one by one, which keeps its cache; on a GPU all at once.
    """

    def __init__(self, encoder: MelPcaEncoder, decoder: MagnitudeDecoder) -> None:
        settings = encoder.settings
        self.encoder, self.decoder, self.settings = encoder, decoder, settings
        self.name = f"mel_pca_{settings.channels}"
        self.sample_rate_hz, self.hop = settings.sample_rate_hz, settings.hop
        self.channels, self.audio_channels = settings.channels, 1
        self.margin_frames = -(-settings.n_fft // (2 * settings.hop))  # what half a spectrum reaches
        self.digest, self.decoder_digest = encoder.digest, decoder.digest
        self.device = encoder.mean.device

    def to(self, device: torch.device | str) -> MelPcaCodec:
        """Move all weights to a device and return the codec itself."""
        self.encoder, self.decoder = self.encoder.to(device), self.decoder.to(device)
        self.device = self.encoder.mean.device
        return self

    @staticmethod
    def load(path: str | Path | None = None) -> MelPcaCodec:
        """Load the shipped codec, or the one that `presto codec fit` wrote to a folder; raises CodecError."""
        if path is not None:
            return MelPcaCodec._load_folder(Path(path))
        with as_file(files("presto_core.audio") / "weights") as folder:
            return MelPcaCodec._load_folder(folder)

    @staticmethod
    def _load_folder(folder: Path) -> MelPcaCodec:
        encoder = MelPcaEncoder(TensorFile.load(folder / ENCODER_FILE))
        return MelPcaCodec(encoder, MagnitudeDecoder(TensorFile.load(folder / DECODER_FILE), encoder.settings))

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Encode audio [B, 1, N] to latents [B, channels, floor(N / hop)]; raises CodecError for other shapes."""
        check_audio(audio, audio_channels=self.audio_channels, hop=self.hop)
        clips = audio[:, 0].to(self.device, torch.float32)
        if self.device.type != "cpu":
            return self.encoder.encode(clips)
        return torch.stack([self.encoder.encode(clip) for clip in clips])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, channels, T] to audio [B, 1, T * hop]; raises CodecError for other shapes."""
        check_latents(latents, channels=self.channels)
        moved = latents.to(self.device, torch.float32)
        if self.device.type != "cpu":
            return self._decode(moved)[:, None]
        return torch.stack([self._decode(clip) for clip in moved])[:, None]

    @torch.inference_mode()
    def decode_in_parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the audio of latents [1, channels, T] in parts [1, 1, n], the bits of `decode` on a CPU."""
        check_latents(latents, channels=self.channels)
        log_mel = self.decoder.predict_log_mel(latents[0].to(self.device, torch.float32))
        for samples in invert_in_growing_chunks(self.decoder, log_mel):
            yield samples[None, None]

    def _decode(self, latents: Tensor) -> Tensor:
        return invert_in_chunks(self.decoder, self.decoder.predict_log_mel(latents))
