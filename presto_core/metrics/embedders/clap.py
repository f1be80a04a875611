"""CLAP (Wu et al. 2023) by transformers: audio and captions in one space, so cosines say how well they fit."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.metrics.embedders.embedder import EmbedderError, check_audio
from presto_core.metrics.embedders.model_folder import load_pretrained, load_processor, open_model_folder
from presto_core.metrics.embedders.windows import embed_windows


class ClapEmbedder:
    """`Embedder` and `TextAudioEmbedder`: one unit vector per 10 s, or per clip if it is shorter.

    Clips are cut into windows before the feature extractor, which would cut longer ones at random. A shorter clip is
    repeated to 10 s, as in training (`repeatpad`).

    Args:
        source: folder or hub id of a `ClapModel` with feature extractor and tokenizer, e.g. laion/clap-htsat-unfused.

    Raises:
        EmbedderError: the folder contains no such model.
    """

    kind = "clap"
    patch_seconds = 1.0

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        folder = open_model_folder(self.kind, source, ("clap",))
        folder.read_preprocessor()
        folder.check_tokenizer()
        self.name, self.digest, self.device = folder.name, folder.compute_digest(), torch.device(device)
        self._extractor: Any = load_processor(folder, ClapFeatureExtractor)
        self._tokenizer: Any = load_processor(folder, AutoTokenizer)
        self._model: Any = load_pretrained(folder, ClapModel, device=device)
        self.dim = int(self._model.config.projection_dim)
        self.sample_rate_hz = int(self._extractor.sampling_rate)
        self.window_samples = int(self._extractor.nb_max_samples)
        # mel filters and channels are those of the model's kind, whatever the extractor's default is
        self._truncation = "fusion" if self._model.config.audio_config.enable_fusion else "rand_trunc"
        positions = self._model.config.text_config
        self.max_tokens = int(positions.max_position_embeddings) - int(positions.pad_token_id) - 1

    @torch.inference_mode()
    def embed(self, audio: Tensor) -> Tensor:
        """audio: [B, N] at the extractor's rate (48 kHz), N >= 1 s -> [B, windows, dim]; see `Embedder.embed`."""
        check_audio(audio, self)
        return embed_windows(audio, self.window_samples, self._embed_windows)

    @torch.inference_mode()
    def embed_text(self, captions: list[str]) -> Tensor:
        """Captions -> [B, dim]; see `TextAudioEmbedder.embed_text`."""
        inputs = self._tokenizer(captions, padding=True, return_tensors="pt")
        if (tokens := int(inputs["attention_mask"].sum(1).max())) > self.max_tokens:
            longest = captions[int(inputs["attention_mask"].sum(1).argmax())]
            raise EmbedderError(
                f"caption '{longest[:60]}…' has {tokens} tokens, and embedder {self.name} reads {self.max_tokens}; "
                "shorten it"
            )
        inputs = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return F.normalize(self._model.get_text_features(**inputs).pooler_output, dim=-1).float().cpu()

    def _embed_windows(self, windows: Tensor) -> Tensor:
        """[M, samples] -> [M, dim]."""
        inputs = self._extractor(
            list(windows.cpu().numpy()),
            truncation=self._truncation,
            sampling_rate=self.sample_rate_hz,
            return_tensors="pt",
        )
        features = inputs["input_features"].to(self.device, torch.float32)
        # no window is longer than 10 s; the extractor marks a random one if the model fuses parts of long audio
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.device)
        outputs = self._model.get_audio_features(input_features=features, is_longer=is_longer)
        return F.normalize(outputs.pooler_output, dim=-1)
