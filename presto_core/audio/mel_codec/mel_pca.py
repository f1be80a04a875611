"""The embedded codec: log-mel frames, four to a latent, PCA to 64 channels at 21.5 Hz; no download, no GPU.

32 s at 44.1 kHz become 64 x 689 latents, the geometry of Stable Audio's autoencoder. `codec_fit` makes the weights.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from presto_core.audio.codec import (
    CodecError,
    check_audio,
    check_latents,
)
from presto_core.audio.mel_codec.griffin_lim import griffin_lim
from presto_core.audio.mel_codec.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_codec.mel_frames import MelSettings, log_mel_blocks
from presto_core.audio.mel_codec.peak_phase import peak_phase
from presto_core.audio.mel_codec.tensor_file import TensorFile

ENCODER_FILE = "mel_pca_encoder.safetensors"
DECODER_FILE = "mel_pca_decoder.safetensors"


class MelPcaEncoder:
    """Log-mel blocks projected on their principal components, half-whitened: variance one on average over channels.

    Args:
        weights: `mean` [F], `basis` [F, channels] with orthonormal columns, `scale` [channels]; F = block_size.

    Raises:
        CodecError: settings or shapes are not of this codec.
    """

    def __init__(self, weights: TensorFile) -> None:
        try:
            self.settings = MelSettings(**weights.settings)
            self.mean, self.basis, self.scale = (weights.tensors[name] for name in ("mean", "basis", "scale"))
        except (TypeError, KeyError) as error:
            raise CodecError(f"not the weights of a mel_pca codec's encoder: {error}") from None
        expected = [self.settings.block_size, self.settings.channels]
        if list(self.basis.shape) != expected:
            raise CodecError(f"mel_pca codec: the basis is {list(self.basis.shape)}, the settings say {expected}")
        self.filters = self.settings.make_filters()
        self.digest = weights.digest

    def encode(self, samples: Tensor) -> Tensor:
        """[N] -> [channels, floor(N / hop)]."""
        blocks = log_mel_blocks(samples, self.settings, self.filters)
        return (((blocks - self.mean) @ self.basis) / self.scale).T


class MelPcaCodec:
    """`Codec` of one `MelPcaEncoder`, one `MagnitudeDecoder` and Griffin-Lim; clips of a batch never meet."""

    def __init__(self, encoder: MelPcaEncoder, decoder: MagnitudeDecoder) -> None:
        settings = encoder.settings
        self.encoder, self.decoder, self.settings = encoder, decoder, settings
        self.name = f"mel_pca_{settings.channels}"
        self.sample_rate_hz, self.hop = settings.sample_rate_hz, settings.hop
        self.channels, self.audio_channels = settings.channels, 1
        self.digest, self.decoder_digest = encoder.digest, decoder.digest

    @staticmethod
    def load(path: str | Path | None = None) -> MelPcaCodec:
        """The shipped codec, or the one in a folder that `presto codec fit` filled; raises CodecError."""
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
        """Audio [B, 1, N] -> latents [B, channels, floor(N / hop)]; raises CodecError for other shapes."""
        check_audio(audio, audio_channels=self.audio_channels, hop=self.hop)
        return torch.stack([self.encoder.encode(clip) for clip in audio[:, 0].to("cpu", torch.float32)])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, channels, T] -> audio [B, 1, T * hop]; raises CodecError for other shapes."""
        check_latents(latents, channels=self.channels)
        return torch.stack([self._decode(clip) for clip in latents.to("cpu", torch.float32)])[:, None]

    def _decode(self, latents: Tensor) -> Tensor:
        magnitude = self.decoder.predict_magnitude(latents)
        magnitude = torch.cat([magnitude, magnitude[-1:]])  # the frame centred on the clip's end
        phase = peak_phase(magnitude, hop=self.settings.frame_hop)
        iterations = self.decoder.settings.iterations
        return griffin_lim(magnitude, phase, hop=self.settings.frame_hop, iterations=iterations)
