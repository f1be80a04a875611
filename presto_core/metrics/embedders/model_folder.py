"""Folders of weights that embedders read, local or from the Hugging Face hub: safetensors only, checked and hashed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from presto_core.metrics.embedders.embedder import EmbedderError

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONFIG_FILE, PREPROCESSOR_FILE = "config.json", "preprocessor_config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelFolder:
    """A folder that has the weights of an embedder.

    Attributes:
        kind: of the embedder.
        path: the local folder.
        name: kind and last part of the folder or hub id, e.g. `clap-htsat-unfused`.
        config: config.json; empty if the folder has none.
    """

    kind: str
    path: Path
    name: str
    config: dict[str, Any]

    def compute_digest(self) -> str:
        """Return the sha256 over weights, config, preprocessor and tokenizer."""
        hasher = hashlib.sha256()
        for name in (*_list_weights(self.kind, self.path), CONFIG_FILE, PREPROCESSOR_FILE, *TOKENIZER_FILES):
            if (self.path / name).is_file():
                with (self.path / name).open("rb") as file:
                    hasher.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return hasher.hexdigest()

    def read_preprocessor(self) -> dict[str, Any]:
        """Return preprocessor_config.json, which has rate and scale of the audio. Raises EmbedderError."""
        return _read_json(self.kind, self.path / PREPROCESSOR_FILE)

    def check_tokenizer(self) -> None:
        """Check that the folder has a tokenizer. Raises EmbedderError."""
        if not any((self.path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise EmbedderError(
                f"embedder {self.kind}: folder {self.path} has no tokenizer; copy {', '.join(TOKENIZER_FILES)} there"
            )

    def check_file(self, name: str) -> None:
        """Check that the folder has a file. Raises EmbedderError."""
        _check_exists(self.kind, self.path / name)


def open_model_folder(kind: str, source: str, model_types: tuple[str, ...] = ()) -> ModelFolder:
    """Find and check the folder of an embedder.

    Args:
        source: local folder, or hub id whose safetensors, configs and tokenizer are downloaded.
        model_types: accepted `model_type` of config.json; with none, the folder needs no config.json.

    Raises:
        EmbedderError: it is missing or out of reach, has no safetensors, or is of another class.
    """
    path = _find_folder(kind, source)
    last = re.sub(r"[^\w.-]+", "-", Path(source).expanduser().absolute().name)
    config = _read_json(kind, path / CONFIG_FILE) if model_types or (path / CONFIG_FILE).is_file() else {}
    folder = ModelFolder(kind, path, last if last.startswith(kind) else f"{kind}-{last}", config)
    _check_model_type(folder, model_types)
    _check_weights(folder)
    return folder


def load_pretrained(folder: ModelFolder, model_class: Any, *, device: torch.device | str, config: Any = None) -> Any:
    """Load a transformers model in float32, to evaluate only. No code of the folder runs.

    Raises:
        EmbedderError: the weights are damaged, or some of the model's are missing (they would stay random).
    """
    given = {} if config is None else {"config": config}
    with translate_errors(folder), _silence_transformers():
        model, info = model_class.from_pretrained(
            str(folder.path), **given, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise EmbedderError(describe_missing(folder, missing))
    return model.eval().requires_grad_(False).to(device)


def load_processor(folder: ModelFolder, processor_class: Any) -> Any:
    """Load a transformers feature extractor or tokenizer. Raises EmbedderError."""
    with translate_errors(folder):
        return processor_class.from_pretrained(str(folder.path), local_files_only=True, trust_remote_code=False)


@contextmanager
def translate_errors(folder: ModelFolder) -> Iterator[None]:
    """Turn what libraries raise on a damaged or unsuitable folder into an EmbedderError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise EmbedderError(f"embedder {folder.kind}: folder {folder.path} cannot be loaded: {text}") from None


def describe_missing(folder: ModelFolder, names: list[str]) -> str:
    """Return the message for tensors that the weights lack."""
    return (
        f"embedder {folder.kind}: the weights in {folder.path} lack {len(names)} tensors of the model, e.g. {names[0]}"
        "; convert the whole checkpoint"
    )


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Without progress bar and load report: heads that are not used are no news, and missing tensors are an error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _find_folder(kind: str, source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise EmbedderError(f"embedder {kind}: {source} is a file; name the folder that has {WEIGHTS_FILE}")
    if not HUB_ID.fullmatch(source):
        raise EmbedderError(f"embedder {kind}: there is no folder {source}; copy the weights ({WEIGHTS_FILE}) there")
    return _download(kind, source)


def _download(kind: str, hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                allow_patterns=["model*.safetensors", INDEX_FILE, CONFIG_FILE, PREPROCESSOR_FILE, *TOKENIZER_FILES],
            )
        )
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise EmbedderError(
            f"embedder {kind}: there is no folder {hub_id}, and the hub id cannot be reached ({type(error).__name__}: "
            f"{text}); copy its config and safetensors to a local folder and write '{kind}=/path/to/folder'"
        ) from None


def _check_exists(kind: str, file: Path) -> None:
    if not file.is_file():
        raise EmbedderError(f"embedder {kind}: folder {file.parent} has no {file.name}; copy it there")


def _read_json(kind: str, file: Path) -> dict[str, Any]:
    _check_exists(kind, file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmbedderError(f"embedder {kind}: {file} is no JSON: {error}; copy it again") from None
    if not isinstance(value, dict):
        raise EmbedderError(f"embedder {kind}: {file} is no JSON object; copy it again")
    return value


def _check_model_type(folder: ModelFolder, model_types: tuple[str, ...]) -> None:
    found = folder.config.get("model_type")
    if found is None and not model_types:
        return
    if found not in model_types:
        wanted = " or ".join(model_types) or "none (plain weights)"
        raise EmbedderError(
            f"embedder {folder.kind}: folder {folder.path} has a model of class {found!r}, wanted {wanted}; "
            "name another folder or another kind of embedder"
        )


def _check_weights(folder: ModelFolder) -> None:
    if missing := [name for name in _list_weights(folder.kind, folder.path) if not (folder.path / name).is_file()]:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.path.glob(pattern))
        pickled = f" ({pickles[0]} is a pickle, which can run code and is never loaded)" if pickles else ""
        raise EmbedderError(
            f"embedder {folder.kind}: folder {folder.path} has no {missing[0]}{pickled}; copy the weights there as "
            "safetensors, see docs/embedders.md"
        )


def _list_weights(kind: str, path: Path) -> list[str]:
    """Names of the weight files: one, or the shards of an index."""
    if (path / WEIGHTS_FILE).is_file() or not (path / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    shards = _read_json(kind, path / INDEX_FILE).get("weight_map", {}).values()
    return [INDEX_FILE, *sorted(set(shards))]
