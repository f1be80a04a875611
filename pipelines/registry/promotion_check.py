"""One row of the table of checks before a promotion."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class PromotionCheck:
    """A check and its outcome.

    Attributes:
        fix: what to do if it failed, with the command; empty if the table shows it.
        numbers: what was compared, for --json and the promotion log; no number is infinite or NaN.
        accepted: it failed, and the user accepts that with `--accept-worse`.
    """

    name: str
    passed: bool
    found: str
    wanted: str
    fix: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    accepted: bool = False

    @property
    def outcome(self) -> str:
        """As tables show it."""
        return "pass" if self.passed else "accepted" if self.accepted else "FAIL"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
