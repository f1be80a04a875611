"""A Hugging Face encoder from a local folder, and what every text encoder has in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from presto_core.errors import UserError

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "spiece.model")


class TextError(UserError):
    """A text encoder cannot be loaded; the message names the folder and the fix."""


@dataclass(frozen=True)
class TextEmbedding:
    """Embedded captions of a batch.

    Attributes:
        pooled: [B, E] mean over tokens.
        tokens: [B, S, E], zero where `mask` is False.
        mask: [B, S] bool.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


class TextEncoder(Protocol):
    """Embeds captions at a fixed width and length."""

    name: str
    dim: int
    max_tokens: int
    digest: str

    def encode(self, captions: list[str]) -> TextEmbedding:
        """Embed captions; an empty one gives zeros and an empty mask. What `find_cut_text` returns has no effect."""
        ...

    def find_cut_text(self, caption: str) -> str:
        """Return the end of a caption that is not read because it is beyond `max_tokens`; "" if all is read."""
        ...


class TransformerEncoder:
    """A Hugging Face encoder from a local folder (config.json, model.safetensors, tokenizer files).

    Raises:
        TextError: the folder does not contain such a model.
    """

    def __init__(self, folder: Path, *, name: str, max_tokens: int) -> None:
        _check_weights(folder)
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
            self._model: Any = model.eval()
        except (OSError, ValueError, SafetensorError) as error:
            raise TextError(f"text encoder in {folder} cannot be loaded: {' '.join(str(error).split())}") from None
        positions = getattr(self._model.config, "max_position_embeddings", None) or max_tokens
        if max_tokens > positions:
            raise TextError(f"text.max_tokens={max_tokens} is too large for encoder {name}; use at most {positions}")
        self.name, self.max_tokens = name, max_tokens
        self.dim = int(self._model.config.hidden_size)
        self.digest = compute_folder_digest(folder, max_tokens)

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> TextEmbedding:
        inputs = self._tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        has_text = torch.tensor([bool(c.strip()) for c in captions])
        mask = inputs["attention_mask"].bool() & has_text[:, None]
        states = self._model(**inputs).last_hidden_state.float() * mask[:, :, None]
        pooled = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return TextEmbedding(pooled=pooled, tokens=states, mask=mask)

    def find_cut_text(self, caption: str) -> str:
        whole = self._tokenizer(caption, truncation=False, verbose=False)["input_ids"]
        if len(whole) <= self.max_tokens:
            return ""
        if not self._tokenizer.is_fast:  # no offsets: the words as the tokenizer writes them
            special = self._tokenizer.num_special_tokens_to_add()
            words = self._tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"]
            return str(self._tokenizer.decode(words[self.max_tokens - special :])).strip()
        read = self._tokenizer(caption, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)
        return caption[max(end for _, end in read["offset_mapping"]) :].strip()


def compute_folder_digest(folder: Path, max_tokens: int) -> str:
    """Return the sha256 over weights, tokenizer and number of tokens: equal digests give equal embeddings."""
    _check_weights(folder)
    hasher = hashlib.sha256(f"max_tokens={max_tokens}".encode())
    for name in (WEIGHTS_FILE, *TOKENIZER_FILES):
        path = folder / name
        hasher.update(f"\n{name} ".encode() + (file_digest(path) if path.is_file() else b""))
    return hasher.hexdigest()


def file_digest(path: Path) -> bytes:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _check_weights(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).is_file():
        raise TextError(f"text encoder folder {folder} has no {WEIGHTS_FILE}; set text.path to a folder that has one")
