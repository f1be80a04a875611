"""The audio spectrogram transformer (Gong et al. 2021) by transformers: an AudioSet tagger, as PaSST is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from presto_core.metrics.embedders.embedder import EmbedderError, check_audio
from presto_core.metrics.embedders.model_folder import load_pretrained, load_processor, open_model_folder
from presto_core.metrics.embedders.windows import embed_windows

FRAME_SECONDS = 0.01  # Kaldi's frame shift


class SpectrogramTransformerEmbedder:
    """`Embedder`: the pooled output (mean of the class and distillation tokens), one vector per 10.24 s.

    A shorter clip is padded with zero frames, as in training.

    Args:
        source: folder or hub id of an `ASTModel` or `ASTForAudioClassification`.

    Raises:
        EmbedderError: the folder contains no such model.
    """

    kind = "ast"
    patch_seconds = 1.0

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        from transformers import ASTFeatureExtractor, ASTModel

        folder = open_model_folder(self.kind, source, ("audio-spectrogram-transformer",))
        folder.read_preprocessor()
        self.name, self.digest, self.device = folder.name, folder.compute_digest(), torch.device(device)
        self._extractor: Any = load_processor(folder, ASTFeatureExtractor)
        self._model: Any = load_pretrained(folder, ASTModel, device=device)
        self.sample_rate_hz, self.dim = int(self._extractor.sampling_rate), int(self._model.config.hidden_size)
        frames = int(self._model.config.max_length)
        if self._extractor.max_length != frames:
            raise EmbedderError(
                f"embedder ast: preprocessor_config.json of {folder.path} gives {self._extractor.max_length} frames, "
                f"the model takes {frames}; copy the file that belongs to the weights"
            )
        self.window_samples = round(frames * FRAME_SECONDS * self.sample_rate_hz)

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at the extractor's rate (16 kHz), N >= 1 s -> [B, windows, dim]; see `Embedder.embed`."""
        check_audio(audio, self)
        return embed_windows(audio, self.window_samples, self._embed_windows)

    def _embed_windows(self, windows: Tensor) -> Tensor:
        """[M, samples] -> [M, dim]."""
        inputs = self._extractor(list(windows.cpu().numpy()), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        return self._model(inputs["input_values"].to(self.device, torch.float32)).pooler_output
