"""Reads the tensors of a checkpoint one by one, so that resuming takes little more memory than the state itself.

The file is read once, in its order, and hashed on the way: every tensor goes where it belongs before the next one is
read. Whether the bytes were right is known at the end only; until then, the state is not to be used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.resumable_read import read_blocks
from presto_core.artifacts.store import DamagedError

HEADER_LIMIT = 100 * 2**20  # as in safetensors
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorStream:
    """The tensors of a stored safetensors file, in the file's order.

    Args:
        sha256: of the whole file.
    """

    def __init__(self, folder: Folder, name: str, *, sha256: str) -> None:
        self.uri, self.sha256 = f"{folder.uri}/{name}", sha256
        self._blocks = read_blocks(folder, name)
        self._block, self._position = memoryview(b""), 0
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, each in memory of its own; then verify the file.

        Raises:
            DamagedError: the bytes are not those that were written.
            StoreError: the file cannot be read.
        """
        end = 0
        for name, entry in self._read_header():
            try:
                dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
                start, stop = entry["data_offsets"]
            except (KeyError, TypeError, ValueError) as error:
                raise self._make_damage_error(f"its header is wrong ({error!r})") from None
            if start != end or stop - start != math.prod(shape) * dtype.itemsize:
                raise self._make_damage_error("its header is wrong")
            end = stop
            content = torch.empty(stop - start, dtype=torch.uint8)
            self._fill(content.numpy().data)
            yield name, content.view(dtype).reshape(shape) if shape else content.view(dtype)[0]
        self.verify()

    def verify(self) -> None:
        """Read what is left, and compare the hash of the whole file; raises DamagedError if it differs."""
        while self._read_next_block():
            pass
        if (found := self._digest.hexdigest()) != self.sha256:
            raise self._make_damage_error(f"sha256 is {found[:12]}..., the manifest has {self.sha256[:12]}...")

    def _read_header(self) -> list[tuple[str, dict[str, Any]]]:
        size = bytearray(8)
        self._fill(memoryview(size))
        length = int.from_bytes(size, "little")
        if length > HEADER_LIMIT:
            raise self._make_damage_error("its header is wrong")
        header = bytearray(length)
        self._fill(memoryview(header))
        try:
            entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
            return sorted(entries.items(), key=lambda item: (item[1]["data_offsets"][0], item[1]["data_offsets"][1]))
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            raise self._make_damage_error("its header is wrong") from None

    def _fill(self, target: memoryview) -> None:
        filled = 0
        while filled < len(target):
            if self._position == len(self._block) and not self._read_next_block():
                raise self._make_damage_error("it ends too early")
            part = self._block[self._position : self._position + len(target) - filled]
            target[filled : filled + len(part)] = part
            filled, self._position = filled + len(part), self._position + len(part)

    def _read_next_block(self) -> bool:
        self._block = memoryview(b"")  # freed before the next one is read
        block = next(self._blocks, b"")
        self._digest.update(block)
        self._block, self._position = memoryview(block), 0
        return len(block) > 0

    def _make_damage_error(self, why: str) -> DamagedError:
        return DamagedError(f"{self.uri} is damaged: {why}; restore it, or delete the folder and run its stage again")
