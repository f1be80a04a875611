"""MERT-v1 (Li et al. 2024) without its remote code: with the published settings it is a HuBERT model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.metrics.embedders.embedder import EmbedderError, check_audio
from presto_core.metrics.embedders.model_folder import ModelFolder, load_pretrained, open_model_folder, translate_errors
from presto_core.metrics.embedders.windows import embed_windows

WINDOW_SECONDS = 5  # the length MERT was trained on
OWN_SETTINGS = ("feature_extractor_cqt", "deepnorm")  # these add layers that HuBERT lacks
OWN_KEYS = ("model_type", "auto_map", "architectures", "transformers_version", "dtype", "torch_dtype")


class MertEmbedder:
    """`Embedder`: the last hidden states averaged over time, one vector per 5 s.

    Args:
        source: folder or hub id of MERT-v1's weights as safetensors, or of a `HubertModel`.

    Raises:
        EmbedderError: the folder contains no such model, or one that needs its remote code.
    """

    kind = "mert"
    patch_seconds = 1.0

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        from transformers import HubertConfig, HubertModel

        folder = open_model_folder(self.kind, source, ("mert_model", "hubert"))
        _check_plain(folder)
        preprocessor = folder.read_preprocessor()
        self.name, self.digest, self.device = folder.name, folder.compute_digest(), torch.device(device)
        with translate_errors(folder):
            config = HubertConfig(**{name: value for name, value in folder.config.items() if name not in OWN_KEYS})
            self.sample_rate_hz, self.dim = int(preprocessor["sampling_rate"]), int(config.hidden_size)
        self._model: Any = load_pretrained(folder, HubertModel, device=device, config=config)
        self._normalize = bool(preprocessor.get("do_normalize", True))

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at the preprocessor's rate (24 kHz), N >= 1 s -> [B, windows, dim]; see `Embedder.embed`."""
        check_audio(audio, self)
        return embed_windows(audio, WINDOW_SECONDS * self.sample_rate_hz, self._embed_windows)

    def _embed_windows(self, windows: Tensor) -> Tensor:
        """[M, samples] -> [M, dim]."""
        x = windows.to(self.device, torch.float32)
        if self._normalize:  # Wav2Vec2FeatureExtractor: zero mean, unit variance
            x = F.layer_norm(x, x.shape[1:], eps=1e-7)
        return self._model(x).last_hidden_state.mean(1)


def _check_plain(folder: ModelFolder) -> None:
    """Refuse settings by which MERT differs from HuBERT (modeling_MERT.py of m-a-p/MERT-v1-95M)."""
    if own := [name for name in OWN_SETTINGS if folder.config.get(name)]:
        raise EmbedderError(
            f"embedder mert: {folder.path} sets {own[0]}, which needs the model's remote code, and that is never run; "
            "use MERT-v1-95M or another embedder (musicnn, clap, vggish, ast, encodec, dac)"
        )
