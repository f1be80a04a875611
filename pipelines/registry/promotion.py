"""Who is champion: promoted through the gate, rolled back in one step; of writers at the same time one wins."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.names import Reference, RegistryError
from pipelines.registry.promotion_checks import Check, checks
from pipelines.registry.promotion_log import Entry, Record
from pipelines.registry.publish import patient, record_folder
from presto_core.config.promotion import PromoteConfig

ATTEMPTS = 64  # as many as may be promoted in the meantime by others before we give up


@dataclass(frozen=True)
class Decision:
    """What became of an attempt to promote.

    Attributes:
        entry: the record's new entry; None where the gate refused, it was a trial, or nothing had to change.
    """

    candidate: Version
    champion: Version | None
    table: list[Check]
    entry: Entry | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.table)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "candidate": self.candidate.to_dict(),
            "champion": self.champion and self.champion.to_dict(),
            "checks": [check.to_dict() for check in self.table],
            "passed": self.passed,
            "promoted": self.entry is not None,
        }


@dataclass
class Promoter:
    """Promotes and rolls back versions of registered models.

    Attributes:
        judge: the gate; told apart so that what is decided and how can be seen apart.
    """

    client: Any
    judge: Callable[..., list[Check]] = field(default=checks)

    def promote(self, reference: str, limits: PromoteConfig, *, why: str, dry_run: bool = False) -> Decision:
        """Put a version through the gate; if it passes, make it champion.

        Where another version became champion meanwhile, the gate is asked again, against that one.

        Raises:
            RegistryError: no such version, or others kept promoting.
        """
        candidate = Catalog(self.client).find(reference)
        record = Record(record_folder(self.client, candidate.name))
        for _ in range(ATTEMPTS):
            head = record.head()
            champion = self._champion(candidate.name, head)
            table = self.judge(self.client, candidate, champion, limits)
            decision = Decision(candidate, champion, table)
            if dry_run or not decision.passed:
                return decision
            if champion and champion.number == candidate.number:
                self.follow(candidate.name, record)
                return decision
            entry = _entry(head, "promote", candidate, before=head.number if head else 0, why=why, table=table)
            if record.add(entry):
                self.follow(candidate.name, record)
                return Decision(candidate, champion, table, entry)
        raise RegistryError(
            f"{ATTEMPTS} other versions of {candidate.name} were promoted meanwhile; look, and try again"
        )

    def rollback(self, name: str, *, why: str, dry_run: bool = False) -> tuple[Version, Version]:
        """Make the champion before this one champion again; returns both, the new one first.

        Raises:
            RegistryError: there is none before it, or someone else was quicker.
        """
        record = Record(record_folder(self.client, name))
        head = record.head()
        if head is None or not head.before:
            raise RegistryError(f"{name} has no champion before this one to go back to")
        target = record.read(head.before)
        current, former = self._champion(name, head), self._champion(name, target)
        assert current is not None
        assert former is not None
        if not dry_run:
            if not record.add(_entry(head, "rollback", former, before=target.before, why=why, table=[])):
                raise RegistryError(f"someone else changed the champion of {name} at this moment; look, and try again")
            self.follow(name, record)
        return former, current

    def follow(self, name: str, record: Record) -> None:
        """Make MLflow's aliases say what the record does: champion, and archived-<number> for former ones.

        Whoever wrote last looks again, so that of writers at the same time none leaves an older champion behind.
        """
        while True:
            entries = record.entries()
            for alias, version in _aliases(entries).items():
                patient(partial(self.client.set_registered_model_alias, name, alias, str(version)))
            for alias in set(self.client.get_registered_model(name).aliases) - set(_aliases(entries)):
                if alias.startswith(names.ARCHIVED):
                    patient(partial(self.client.delete_registered_model_alias, name, alias))
            head = record.head()
            if head is None or head.number == entries[-1].number:
                break
        _tell(self.client, name, entries[-1])

    def _champion(self, name: str, head: Entry | None) -> Version | None:
        return Catalog(self.client).named(Reference(name, number=head.version)) if head else None


def _aliases(entries: list[Entry]) -> dict[str, int]:
    """alias -> version: that of the last entry is champion, each other former one archived under its last promotion."""
    if not entries:
        return {}
    head = entries[-1]
    last = {entry.version: entry.number for entry in entries if entry.action == "promote"}
    former = {f"{names.ARCHIVED}{number}": version for version, number in last.items() if version != head.version}
    return former | {names.CHAMPION: head.version}


def _entry(head: Entry | None, action: str, version: Version, *, before: int, why: str, table: list[Check]) -> Entry:
    return Entry(
        number=head.number + 1 if head else 1,
        action=action,
        version=version.number,
        content=version.content,
        artifact_id=version.artifact_id,
        before=before,
        who=who(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
        checks=[check.to_dict() for check in table],
    )


def who() -> str:
    """The user of MLflow where there is one, else of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container without a user of this number
        return f"uid {os.getuid()}"


def _tell(client: Any, name: str, entry: Entry) -> None:
    """Who, when and why, with the version as well, for those who look with MLflow."""
    for key in ("action", "who", "when", "why"):
        value = str(getattr(entry, key))
        patient(partial(client.set_model_version_tag, name, str(entry.version), f"presto.promotion.{key}", value))
