"""Shards read from object storage, kept on the node's disk by their hashes: later epochs and other workers read there.

A kept shard is a copy under the name of its sha256, with a BLAKE3 hash at its end that is checked at every reading, for
a fifth of the work. Any of them may be deleted at any time.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from blake3 import blake3

from presto_core.config.sections import ClusterConfig

LEFT_FREE = 0.1  # of the disk, for others
IDLE_S = 24 * 3600  # a shard that nobody read for so long makes room for others
SEAL_BYTES = 32  # of the hash


@dataclass(frozen=True)
class ShardCache:
    """Kept shards of one node.

    Attributes:
        folder: where they are, ~ being the home of whoever reads; made when the first one is kept.
        limit_bytes: of all of them together.
    """

    folder: str
    limit_bytes: int

    @classmethod
    def of(cls, config: ClusterConfig) -> ShardCache | None:
        """The cache that a cluster's settings name; None where they want none."""
        limit = int(config.shard_cache_gb * 1e9)
        return cls(f"{config.cache_folder}/shards", limit) if limit else None

    @property
    def place(self) -> Path:
        return Path(os.path.expanduser(self.folder))

    def read(self, sha256: str) -> memoryview | None:
        """The bytes with this hash, or None where they are not kept; damaged ones are deleted."""
        path = self.place / sha256
        try:
            kept = memoryview(path.read_bytes())
        except OSError:
            return None
        content, seal = kept[:-SEAL_BYTES], kept[-SEAL_BYTES:]
        if blake3(content).digest() == seal:
            return content
        with suppress(OSError):
            path.unlink()
        return None

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep bytes whose hash was checked, where there is room; a disk that takes none is said once and no error."""
        room = _room(self)
        if len(content) > room.left():
            return
        partial = self.place / f"{sha256}.{secrets.token_hex(8)}"
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.write(blake3(content).digest())
            partial.replace(self.place / sha256)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            room.close(error)
        else:
            room.used += len(content)


class _Room:
    """What one process knows of a cache's size: counted at its first use, so that many together pass it by little."""

    def __init__(self, cache: ShardCache) -> None:
        self.limit, self.folder, self.used = cache.limit_bytes, cache.place, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            self.used = self._without_idle()
            self.limit = min(self.limit, self.used + disk.free - int(LEFT_FREE * disk.total))
        except OSError as error:
            self.close(error)

    def left(self) -> int:
        return self.limit - self.used

    def close(self, error: OSError) -> None:
        """Keep nothing more in this process."""
        if self.limit:
            logging.getLogger(__name__).warning(
                "shards cannot be kept in %s (%s): each epoch reads them from storage; mend cluster.cache_folder, or "
                "set cluster.shard_cache_gb=0",
                self.folder,
                error.strerror or error,
            )
        self.limit = 0

    def _without_idle(self) -> int:
        """Delete what nobody read for long; bytes of the rest."""
        kept = 0
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process was quicker
                known = entry.stat()
                if max(known.st_atime, known.st_mtime) < time.time() - IDLE_S:
                    os.unlink(entry.path)
                else:
                    kept += known.st_size
        return kept


@lru_cache(maxsize=8)
def _room(cache: ShardCache) -> _Room:
    return _Room(cache)
