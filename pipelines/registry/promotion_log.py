"""The promotion log of a model: numbered files, each created exclusively by one writer; the newest names the champion.

MLflow lets the last writer move an alias, so a promotion is decided here, by the exclusive write of the next entry, and
MLflow's aliases follow it.
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
    """One promotion or rollback.

    Attributes:
        number: 1, 2, ...
        action: promote or rollback.
        version: MLflow's version number of the new champion; 0 if there is none, since the first
            promotion was rolled back.
        content: content hash of the new champion; empty without one, as its artifact_id.
        before: number of the entry that a rollback returns to, current before the promotion; 0 if there was none.
        who: user who decided.
        when: time of the decision, ISO 8601 in UTC.
        why: the user's reason.
        checks: the checks that it passed, and those that failed and were accepted.
        nonce: makes the entries of concurrent writers differ.
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

    def list_accepted(self) -> list[str]:
        """Names of the checks that failed, and were accepted."""
        return list_accepted(self.checks)


@dataclass(frozen=True)
class PromotionLog:
    """The promotions of one model."""

    folder: Folder

    def read_all(self) -> list[PromotionRecord]:
        """Read all entries, in order.

        Raises:
            StoreError: an entry cannot be read.
        """
        return [self._read(name) for name in self._list_names()]

    def read_head(self) -> PromotionRecord | None:
        """Read the newest entry, which names the champion; None if there is none."""
        file_names = self._list_names()
        return self._read(file_names[-1]) if file_names else None

    def read(self, number: int) -> PromotionRecord:
        """Read one entry."""
        return self._read(_file_name(number))

    def add(self, entry: PromotionRecord) -> bool:
        """Write the next entry; return False if another writer took its number."""
        return create_exclusive(self.folder, _file_name(entry.number), json.dumps(asdict(entry), indent=2).encode())

    def _list_names(self) -> list[str]:
        return sorted(i.base_name for i in self.folder.list_files(missing_ok=True) if _ENTRY.fullmatch(i.base_name))

    def _read(self, name: str) -> PromotionRecord:
        try:
            return PromotionRecord(**json.loads(read_bytes(self.folder, name)))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self.folder.uri}/{name} is not a promotion record: {error}; restore the file") from None


def list_accepted(checks: list[dict[str, Any]]) -> list[str]:
    """Names of the checks that failed, and were accepted; records made before have none."""
    return [check["name"] for check in checks if check.get("accepted")]


def _file_name(number: int) -> str:
    return f"{number:06d}.json"


def read_decisions(folder: Folder, number: int) -> list[PromotionRecord]:
    """Return the records that made a version the champion, and those after which it was none and no other was either.

    Raises:
        StoreError: a record cannot be read.
    """
    records = PromotionLog(folder).read_all()
    pairs = zip([None, *records], records)
    return [r for before, r in pairs if r.version == number or (not r.version and before and before.version == number)]
