"""A teacher's own text encoder: text_encoder/ and tokenizer/ of a diffusers folder, by the classes it names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.text.transformer_encoder import TextError, TransformerEncoder, file_digest

INDEX = "model_index.json"
ENCODERS = ("T5EncoderModel", "T5GemmaEncoderModel", "Qwen3Model", "UMT5EncoderModel")
TOKENIZERS = (
    "T5Tokenizer", "T5TokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast",
    "Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend",  # the last as transformers 5 calls the one before
)  # fmt: skip
LONGEST = {"T5GemmaEncoderModel": 256}  # tokens that the pipeline pads to if the tokenizer names more
CUT_TO = {"Qwen3Model": 256}  # tokens to which the pipeline cuts, whatever the tokenizer names
LONGCAT = "UMT5EncoderModel"  # of LongCat-Audio, whose pipeline normalizes prompts and adds up layers
LONGCAT_TOKENS, LONGCAT_LIMIT = 512, 32768  # tokens that it reads if the tokenizer names more than the limit, or none


class DiffusersEncoder(TransformerEncoder):
    """The text encoder of a diffusers folder; texts are padded as the teacher's pipeline pads them.

    Raises:
        TextError: the folder names other classes, lacks files, or pads texts to another length than `max_tokens`.
    """

    def __init__(self, folder: Path, *, max_tokens: int, device: torch.device | str = "cpu") -> None:
        encoder_class, _ = _find_classes(folder)
        check_length(folder, max_tokens)
        import transformers
        from safetensors import SafetensorError
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            # by name from a fixed list: an automatic class would give T5 a decoder of random weights
            self._tokenizer = load_tokenizer(folder)
            model, settings = getattr(transformers, encoder_class).from_pretrained(
                str(folder / "text_encoder"), use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, SafetensorError, ImportError) as error:
            raise TextError(f"text encoder in {folder} cannot be loaded: {' '.join(str(error).split())}") from None
        if missing := sorted(settings["missing_keys"]):
            raise TextError(f"text encoder in {folder} lacks weights: {', '.join(missing[:3])}; download it again")
        self._model: Any = model.float().eval().to(device)
        self.name, self.max_tokens, self.device = folder.name, max_tokens, torch.device(device)
        self._is_longcat = encoder_class == LONGCAT
        self.dim = read_width(self._model.config.to_dict())
        self.digest = self.former_digest = compute_digest(folder, max_tokens)

    def _normalize(self, caption: str) -> str:
        return normalize_prompt(caption) if self._is_longcat else caption

    def _compute_states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if not self._is_longcat:
            return super()._compute_states(inputs)
        output = self._model(**inputs, output_hidden_states=True)
        last, first = output.last_hidden_state, output.hidden_states[0]
        return normalize_states(last) + normalize_states(first)


def normalize_prompt(prompt: str) -> str:
    """Return a prompt as LongCat-Audio reads it: in lower case, without quotation marks, with single spaces."""
    return " ".join(re.sub(r'["\u201c\u201d\u2018\u2019]', " ", prompt.lower()).split())


def normalize_states(states: Tensor) -> Tensor:
    """Return states [B, S, E] of mean 0 and variance 1 per token."""
    return F.layer_norm(states, states.shape[-1:], eps=1e-6)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a diffusers folder; raises TextError."""
    import transformers

    kind = getattr(transformers, _find_class(folder, "tokenizer", TOKENIZERS))
    try:
        return kind.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise TextError(f"tokenizer in {folder} cannot be loaded: {' '.join(str(error).split())}") from None


def read_transformer_class(folder: Path) -> str:
    """Return the class of the transformer that reads the texts; raises TextError if it is no diffusers folder."""
    pair = read_settings(folder / INDEX).get("transformer")
    return str(pair[1]) if isinstance(pair, list) and len(pair) == 2 else ""


def read_length(folder: Path) -> int | None:
    """Return the number of tokens that the pipeline pads to; None if the tokenizer's settings name no useful one."""
    length = read_settings(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
    pair = read_settings(folder / INDEX).get("text_encoder")
    kind = str(pair[1]) if isinstance(pair, list) and len(pair) == 2 else ""
    if kind in CUT_TO:
        return CUT_TO[kind]
    if kind == LONGCAT:
        return length if isinstance(length, int) and 0 < length <= LONGCAT_LIMIT else LONGCAT_TOKENS
    if (longest := LONGEST.get(kind)) is not None:
        return min(int(length), longest) if isinstance(length, int | float) and length > 0 else longest
    return int(length) if isinstance(length, int | float) and 0 < length < 1e6 else None


def read_width(settings: Mapping[str, Any]) -> int:
    """Return the features of the states that an encoder with these settings makes; raises KeyError."""
    if isinstance(encoder := settings.get("encoder"), Mapping):  # T5Gemma has settings of two stacks
        return int(encoder["hidden_size"])
    return int(settings["hidden_size"] if "hidden_size" in settings else settings["d_model"])


def check_length(folder: Path, max_tokens: int) -> None:
    """Refuse another number of tokens than the teacher's, which attends to padding too; raises TextError."""
    length = read_length(folder)
    if length is not None and max_tokens != length:
        raise TextError(f"text.max_tokens={max_tokens} is not what the teacher in {folder} reads; set it to {length}")


def compute_digest(folder: Path, max_tokens: int) -> str:
    """Return the sha256 over classes, all files that are read, and number of tokens: equal digests, equal embeddings.

    Raises:
        TextError: the folder holds no text encoder that can be used.
    """
    hasher = hashlib.sha256(json.dumps([*_find_classes(folder), max_tokens]).encode())
    encoder, tokenizer = ((folder / name).iterdir() for name in ("text_encoder", "tokenizer"))
    read = [path for path in encoder if path.suffix in (".safetensors", ".json")]  # index of shards and config.json
    for path in sorted([*read, *tokenizer]):
        if path.is_file():
            hasher.update(f"\n{path.parent.name}/{path.name} ".encode() + file_digest(path))
    return hasher.hexdigest()


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises TextError if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TextError(f"{path} cannot be read ({error}); name the folder of a teacher, with {INDEX}") from None
    if not isinstance(content, dict):
        raise TextError(f"{path} is not a JSON object; download the teacher again")
    return content


def _find_classes(folder: Path) -> tuple[str, str]:
    """Return the classes of text encoder and tokenizer that the folder names, both from fixed lists."""
    classes = _find_class(folder, "text_encoder", ENCODERS), _find_class(folder, "tokenizer", TOKENIZERS)
    if not any((folder / "text_encoder").glob("*.safetensors")) or not (folder / "tokenizer").is_dir():
        raise TextError(f"{folder} lacks text_encoder/*.safetensors or tokenizer/; download the teacher again")
    return classes


def _find_class(folder: Path, component: str, allowed: tuple[str, ...]) -> str:
    pair = read_settings(folder / INDEX).get(component)
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] != "transformers" or pair[1] not in allowed:
        raise TextError(f"{component} of {folder} is {pair}; use a teacher with one of {', '.join(allowed)}")
    return str(pair[1])
