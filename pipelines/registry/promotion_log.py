"""Which version is champion, and who made it so: numbered files that only one writer can create each.

MLflow moves an alias for whoever asks last. So the decision is taken here, by an exclusive write of the next entry, and
MLflow's aliases follow it. The newest entry rules.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.storage.exclusive_create import create_exclusive
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes

_ENTRY = re.compile(r"(\d{6})\.json")


@dataclass(frozen=True)
class PromotionRecord:
    """One decision.

    Attributes:
        number: 1, 2, ...
        action: promote or rollback.
        version: MLflow's number of the champion from now on.
        content: its content hash.
        before: number of the entry that ruled before the version was promoted; 0 where none did. A rollback goes there.
        who, when, why: of the decision.
        checks: the gate's table as it was passed.
    """

    number: int
    action: str
    version: int
    content: str
    artifact_id: str
    before: int
    who: str
    when: str
    why: str
    checks: list[dict[str, Any]] = field(default_factory=list)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class PromotionLog:
    """The decisions about one model."""

    folder: Folder

    def read_all(self) -> list[PromotionRecord]:
        """All of them, in order.

        Raises:
            StoreError: one cannot be read.
        """
        return [self._read(name) for name in self._list_names()]

    def read_head(self) -> PromotionRecord | None:
        """The decision that rules."""
        file_names = self._list_names()
        return self._read(file_names[-1]) if file_names else None

    def read(self, number: int) -> PromotionRecord:
        """One decision."""
        return self._read(_file_name(number))

    def add(self, entry: PromotionRecord) -> bool:
        """Write the next decision; False where someone else took its number."""
        return create_exclusive(self.folder, _file_name(entry.number), json.dumps(asdict(entry), indent=2).encode())

    def _list_names(self) -> list[str]:
        return sorted(i.base_name for i in self.folder.list_files(missing_ok=True) if _ENTRY.fullmatch(i.base_name))

    def _read(self, name: str) -> PromotionRecord:
        try:
            return PromotionRecord(**json.loads(read_bytes(self.folder, name)))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self.folder.uri}/{name} is no record of a promotion: {error}; restore it") from None


def _file_name(number: int) -> str:
    return f"{number:06d}.json"
