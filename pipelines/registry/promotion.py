"""Promotes a version to champion if it passes the checks, and rolls back; safe with concurrent writers."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.names import Reference, RegistryError
from pipelines.registry.promotion_check import PromotionCheck
from pipelines.registry.promotion_checks import COMPARISONS, run_checks
from pipelines.registry.promotion_log import PromotionLog, PromotionRecord
from pipelines.registry.publish import open_promotion_log_folder, retry_conflicts
from presto_core.config.promotion import PromoteConfig

ATTEMPTS = 64  # concurrent promotions by others that one attempt can lose against


@dataclass(frozen=True)
class PromotionDecision:
    """Outcome of an attempt to promote.

    Attributes:
        record: the new entry of the log; None if a check failed, in a dry run, or if nothing changed.
    """

    candidate: Version
    champion: Version | None
    checks: list[PromotionCheck]
    record: PromotionRecord | None = None

    @property
    def has_passed(self) -> bool:
        """Whether all checks passed, or failed ones were accepted."""
        return all(check.passed or check.accepted for check in self.checks)

    def list_accepted(self) -> list[str]:
        """Names of the checks that failed, and were accepted."""
        return [check.name for check in self.checks if check.accepted]

    def to_dict(self) -> dict[str, Any]:
        """Return the form for --json."""
        return {
            "candidate": self.candidate.to_dict(),
            "champion": self.champion and self.champion.to_dict(),
            "checks": [check.to_dict() for check in self.checks],
            "passed": self.has_passed,
            "accepted": self.list_accepted(),
            "promoted": self.record is not None,
        }


@dataclass
class Promoter:
    """Promotes and rolls back versions of registered models.

    Attributes:
        gate: returns the checks of a candidate; tests of concurrency replace it.
    """

    client: Any
    gate: Callable[..., list[PromotionCheck]] = field(default=run_checks)

    def promote(
        self, reference: str, limits: PromoteConfig, *, why: str, accept_worse: bool = False, dry_run: bool = False
    ) -> PromotionDecision:
        """Check a version and make it champion if it passes.

        If another version becomes champion meanwhile, the checks run again against that one.

        Args:
            accept_worse: promote it even if it is worse than its teacher or the champion, or is not known not to be;
                the record has the checks that failed, with their numbers. Other checks are not waived.

        Raises:
            RegistryError: there is no such version, or others promoted `ATTEMPTS` times meanwhile.
        """
        candidate = Catalog(self.client).find(reference)
        log = PromotionLog(open_promotion_log_folder(self.client, candidate.name))
        for _ in range(ATTEMPTS):
            head = log.read_head()
            champion = self._get_champion(candidate.name, head)
            table = self.gate(self.client, candidate, champion, limits)
            if accept_worse:
                table = [replace(check, accepted=not check.passed and check.name in COMPARISONS) for check in table]
            decision = PromotionDecision(candidate, champion, table)
            if dry_run or not decision.has_passed:
                return decision
            if champion and champion.number == candidate.number:
                self.sync_aliases(candidate.name, log)
                return decision
            record = _make_record(head, "promote", candidate, before=head.number if head else 0, why=why, table=table)
            if log.add(record):
                self.sync_aliases(candidate.name, log)
                return PromotionDecision(candidate, champion, table, record)
        raise RegistryError(f"{ATTEMPTS} other versions of {candidate.name} were promoted meanwhile; promote it again")

    def rollback(self, name: str, *, why: str, dry_run: bool = False) -> tuple[Version | None, Version]:
        """Undo the last promotion: make the champion before it champion again, or leave none if it was the first.

        Returns:
            The new champion, None if there is none, and the former one.

        Raises:
            RegistryError: there is no champion, the one before it is deleted, or another writer changed the champion
                meanwhile.
        """
        log = PromotionLog(open_promotion_log_folder(self.client, name))
        head = log.read_head()
        if head is None or not head.version:
            raise RegistryError(f"{name} has no champion to roll back; promote a version: presto registry promote")
        catalog = Catalog(self.client)
        former = catalog.get(Reference(name, number=head.version))
        target = log.read(head.before) if head.before else None
        champion = catalog.get(Reference(name, number=target.version)) if target and target.version else None
        if not dry_run:
            before = target.before if target else 0
            if not log.add(_make_record(head, "rollback", champion, before=before, why=why, table=[])):
                raise RegistryError(f"another writer changed the champion of {name} meanwhile; run the command again")
            self.sync_aliases(name, log)
        return champion, former

    def sync_aliases(self, name: str, log: PromotionLog) -> None:
        """Set MLflow's aliases as in the log: champion, and archived-<number> for former champions.

        Every writer reads the log again after it wrote, so that concurrent writers do not leave an older champion.
        """
        while True:
            entries = log.read_all()
            for alias, version in _compute_aliases(entries).items():
                retry_conflicts(partial(self.client.set_registered_model_alias, name, alias, str(version)))
            for alias in set(self.client.get_registered_model(name).aliases) - set(_compute_aliases(entries)):
                if alias == names.CHAMPION or alias.startswith(names.ARCHIVED):
                    retry_conflicts(partial(self.client.delete_registered_model_alias, name, alias))
            head = log.read_head()
            if head is None or head.number == entries[-1].number:
                break
        # after a rollback to no champion, the former champion's tags name who and why
        numbers = [entry.version for entry in entries[-2:] if entry.version]
        _tag_version(self.client, name, numbers[-1], entries[-1])

    def _get_champion(self, name: str, head: PromotionRecord | None) -> Version | None:
        return Catalog(self.client).get(Reference(name, number=head.version)) if head and head.version else None


def _compute_aliases(entries: list[PromotionRecord]) -> dict[str, int]:
    """Return alias -> version: the last entry is champion if it names one, and each former one is archived under its
    last promotion."""
    if not entries:
        return {}
    head = entries[-1]
    last = {entry.version: entry.number for entry in entries if entry.action == "promote"}
    former = {f"{names.ARCHIVED}{number}": version for version, number in last.items() if version != head.version}
    return former | ({names.CHAMPION: head.version} if head.version else {})


def _make_record(
    head: PromotionRecord | None,
    action: str,
    version: Version | None,
    *,
    before: int,
    why: str,
    table: list[PromotionCheck],
) -> PromotionRecord:
    return PromotionRecord(
        number=head.number + 1 if head else 1,
        action=action,
        version=version.number if version else 0,
        content=version.content if version else "",
        artifact_id=version.artifact_id if version else "",
        before=before,
        who=current_user(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
        checks=[check.to_dict() for check in table],
    )


def current_user() -> str:
    """Return MLflow's user if one is configured, else the user of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container has no user with this id
        return f"uid {os.getuid()}"


def _tag_version(client: Any, name: str, number: int, record: PromotionRecord) -> None:
    """Write action, who, when, why and what was accepted onto the version too, for users of MLflow's own interface."""
    values = {key: str(getattr(record, key)) for key in ("action", "who", "when", "why")}
    for key, value in (values | {"accepted": ", ".join(record.list_accepted()) or "nothing"}).items():
        retry_conflicts(partial(client.set_model_version_tag, name, str(number), f"presto.promotion.{key}", value))
