"""A safetensors file of named tensors and JSON settings, with a digest over both: the format of codec weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from presto_core.audio.codec import CodecError

SETTINGS_KEY = "settings"


@dataclass(frozen=True)
class TensorFile:
    """Weights and their settings.

    Attributes:
        settings: JSON values only.
        tensors: name -> tensor on the CPU.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def digest(self) -> str:
        """sha256 over settings, names, shapes, dtypes and values, independent of the file layout."""
        hasher = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            hasher.update(tensor.contiguous().numpy().tobytes())
        return hasher.hexdigest()

    def save(self, path: Path) -> None:
        """Write one safetensors file; raises OSError or SafetensorError if it cannot be written."""
        metadata = {SETTINGS_KEY: json.dumps(self.settings, sort_keys=True)}
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, path, metadata=metadata)

    @staticmethod
    def load(path: Path) -> TensorFile:
        """Read a file that `save` wrote.

        Raises:
            CodecError: the file is missing, damaged, or has no settings.
        """
        if not path.is_file():
            raise CodecError(f"codec weights {path} are missing; reinstall the package or run presto codec fit")
        try:
            with safe_open(path, framework="pt") as file:
                settings = json.loads((file.metadata() or {})[SETTINGS_KEY])
                return TensorFile(settings, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            message = " ".join(str(error).split())
            raise CodecError(f"codec weights {path} are damaged ({message}); run presto codec fit again") from None
