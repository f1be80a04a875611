"""How long work goes on while the store is away: what fails is tried again, with warnings that grow rarer."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from presto_core.artifacts.retry import StoreError, has_expired_credentials, is_transient

FIRST_PAUSE_S, LONGEST_PAUSE_S = 3.0, 30.0
SECOND_WARNING_S = 60.0  # after the first one; each further one comes after twice the time
# what a folder of a file server answers while the server is away
_PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.EREMOTEIO, errno.EAGAIN, errno.EINTR,
}  # fmt: skip

Result = TypeVar("Result")


class OutageError(StoreError):
    """The store was away for longer than the run may go on."""


@dataclass
class OutageTimer:
    """What one piece of work has waited for the store so far; used by one thread.

    Args:
        limit_s: how long the store may be away; 0 gives up at once.
        warn: shows a message.
        is_remote: whether the store is an object store, and not a folder of this machine or a file server.
        given_up: set to stop trying at once, as when the command was interrupted.

    Attributes:
        since: when the store stopped answering, as far as this work knows; None while it answers.
        error: the last one.
    """

    limit_s: float
    warn: Callable[[str], None] = lambda message: None
    is_remote: bool = True
    given_up: threading.Event = field(default_factory=threading.Event)
    since: float | None = None
    error: StoreError | None = None
    _warn_after_s: float = 0.0
    _pause_s: float = field(default_factory=lambda: FIRST_PAUSE_S)

    def wait_before_retry(self, what: str, error: StoreError) -> None:
        """Wait before the next try; see `note_failure`."""
        self.given_up.wait(self.note_failure(what, error))

    def note_failure(self, what: str, error: StoreError) -> float:
        """Return the seconds to wait before the next try; the first failure, and ever rarer later ones, are said.

        Args:
            what: could not be done: `the checkpoint of step 100 cannot be written`.

        Raises:
            OutageError: it was tried for `limit_s`.
            StoreError: the error itself, if it does not go away by itself.
        """
        now = time.monotonic()
        self.since, self.error = now if self.since is None else self.since, error
        away_s = now - self.since
        if not self.limit_s or not may_pass(error, is_remote=self.is_remote):
            raise error
        if self.given_up.is_set() or away_s >= self.limit_s:
            raise OutageError(f"{error}, tried for {_format(away_s)}") from error
        if away_s >= self._warn_after_s:
            self._warn_after_s = max(SECOND_WARNING_S, 2 * away_s)
            self.warn(
                f"{what} for {_format(away_s)}: {error}. Work goes on and it is tried again; "
                f"the run fails in {_format(self.limit_s - away_s)}"
            )
        pause_s = min(self._pause_s, self.limit_s - away_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s

    def end(self, what: str) -> None:
        """Note that the store answers again."""
        if self.since is not None:
            self.warn(f"{what} after {_format(time.monotonic() - self.since)}")
        self.since, self.error, self._warn_after_s, self._pause_s = None, None, 0.0, FIRST_PAUSE_S


def retry_while_away(action: Callable[[], Result], outage_timer: OutageTimer, what: str) -> Result:
    """Call `action` until the store answers.

    Args:
        what: names what is tried, for warnings: `the artifact`.

    Raises:
        OutageError: see `OutageTimer.note_failure`.
    """
    while True:
        try:
            result = action()
        except StoreError as error:
            outage_timer.wait_before_retry(f"{what} cannot be read or written", error)
        else:
            outage_timer.end(f"{what} could be read or written again")
            return result


def may_pass(error: StoreError, *, is_remote: bool) -> bool:
    """Whether the cause can go away by itself: the store is away, or its credentials wait for their renewal."""
    cause = error.__cause__
    if is_remote:
        return is_transient(cause) or has_expired_credentials(cause)
    return isinstance(cause, OSError) and _read_errno(cause) in _PASSING


def _read_errno(error: OSError) -> int | None:
    """Arrow's errors have the number in their text."""
    named = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)
    return int(named[1]) if named else error.errno


def _format(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
