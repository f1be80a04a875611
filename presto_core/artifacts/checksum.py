"""Hashes by which stored bytes are known, as manifests give them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from presto_core.artifacts.retry import StoreError

_HASHES: dict[str, Callable[[bytes], Any]] = {"sha256": hashlib.sha256, "blake3": blake3}


@dataclass(frozen=True)
class Checksum:
    """What the bytes of a file must come to.

    Attributes:
        algorithm: `sha256`, by which artifacts are exchanged, or `blake3`, which takes a quarter of its time.
        digest: in hexadecimal.

    Raises:
        StoreError: the digest is none; kept copies are named by it, so whatever a manifest says must not be a path.
    """

    algorithm: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.digest, str) or not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise StoreError(
                f"a manifest gives the {self.algorithm} {str(self.digest)[:40]!r}, which is not 64 hexadecimal digits; "
                "do not use its artifact"
            )

    def compute(self, content: bytes) -> str:
        """The digest of these bytes."""
        return str(_HASHES[self.algorithm](content).hexdigest())
