"""Hashes that identify stored bytes in manifests."""

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
    """The expected hash of a file's bytes.

    Attributes:
        algorithm: `sha256`, the hash for exchanging artifacts, or `blake3`, which is four times as fast.
        digest: 64 hexadecimal digits.

    Raises:
        StoreError: the digest is malformed; cached copies are named by it, so it must not be able to form a path.
    """

    algorithm: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.digest, str) or not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise StoreError(
                f"{self.algorithm} {str(self.digest)[:40]!r} in a manifest is not 64 hexadecimal digits; "
                "do not use its artifact"
            )

    def compute(self, content: bytes) -> str:
        """Return the digest of `content`."""
        return str(_HASHES[self.algorithm](content).hexdigest())
