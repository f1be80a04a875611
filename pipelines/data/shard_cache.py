"""A cache of shards from object storage on the node's disk, for later epochs and other workers.

A shard is stored under its hash, which is verified on every read. Any file can be deleted at any time.
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

from pipelines.storage.node_cache import CACHE_VAR, cache_folder
from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.store import StoreError
from presto_core.config.sections import ClusterConfig

MIN_FREE_FRACTION = 0.1  # of the disk, left to others
MAX_IDLE_S = 24 * 3600  # shards unread for longer are deleted


@dataclass(frozen=True)
class ShardCache:
    """The settings of a shard cache; each reading process opens the cache of its own node.

    Attributes:
        limit_bytes: total size of the cache.
        folder: path of the cache; empty means a folder of the node (node_cache.py).
    """

    limit_bytes: int
    folder: str = ""

    @classmethod
    def from_config(cls, config: ClusterConfig) -> ShardCache | None:
        """Return the cache for cluster.shard_cache_gb; None if it is 0."""
        return cls(int(config.shard_cache_gb * 1e9)) if config.shard_cache_gb else None

    def read(self, checksum: Checksum) -> bytes | None:
        """Return the bytes with this hash, or None if they are not cached; damaged files are deleted."""
        return _open_on_node(self).read(checksum)

    def keep(self, checksum: Checksum, content: bytes) -> None:
        """Cache verified bytes if there is room; a disk that cannot be written logs one warning and no error."""
        _open_on_node(self).keep(checksum.digest, content)


class _NodeShards:
    """One process's view of a node's cache; the size is read once, so concurrent processes can exceed the limit."""

    def __init__(self, cache: ShardCache) -> None:
        self.folder, self.free_bytes = Path(cache.folder or os.devnull), 0
        try:
            self.folder = Path(cache.folder or cache_folder() / "shards")
            self.folder.mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            self.free_bytes = min(
                cache.limit_bytes - self._delete_idle(), disk.free - int(MIN_FREE_FRACTION * disk.total)
            )
        except (OSError, StoreError) as error:
            self._disable(error)

    def read(self, checksum: Checksum) -> bytes | None:
        path = self.folder / checksum.digest
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if checksum.compute(content) == checksum.digest:
            return content
        with suppress(OSError):
            path.unlink()
        return None

    def keep(self, name: str, content: bytes) -> None:
        if len(content) > self.free_bytes:
            return
        partial = self.folder / f"{name}.{secrets.token_hex(8)}"
        try:
            partial.write_bytes(content)
            partial.replace(self.folder / name)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            self._disable(error)
        else:
            self.free_bytes -= len(content)

    def _disable(self, error: Exception) -> None:
        logging.getLogger(__name__).warning(
            "shards cannot be cached on this node, so each epoch reads them from storage (%s); set %s to a folder "
            "with free space, or cluster.shard_cache_gb=0",
            error,
            CACHE_VAR,
        )
        self.free_bytes = 0

    def _delete_idle(self) -> int:
        """Delete shards unread for `MAX_IDLE_S`; return the total bytes of the rest."""
        total_bytes = 0
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another process deleted it first
                status = entry.stat()
                if max(status.st_atime, status.st_mtime) < time.time() - MAX_IDLE_S:
                    os.unlink(entry.path)
                else:
                    total_bytes += status.st_size
        return total_bytes


@lru_cache(maxsize=8)
def _open_on_node(cache: ShardCache) -> _NodeShards:
    return _NodeShards(cache)
