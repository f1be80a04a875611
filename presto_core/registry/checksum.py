"""Hashes by which stored bytes are known, as manifests give them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

_HASHES: dict[str, Callable[[bytes], Any]] = {"sha256": hashlib.sha256, "blake3": blake3}


@dataclass(frozen=True)
class Checksum:
    """What the bytes of a file must come to.

    Attributes:
        algorithm: `sha256`, by which artifacts are exchanged, or `blake3`, which takes a quarter of its time.
        digest: in hexadecimal.
    """

    algorithm: str
    digest: str

    def found(self, content: bytes) -> str:
        """The digest of these bytes."""
        return str(_HASHES[self.algorithm](content).hexdigest())
