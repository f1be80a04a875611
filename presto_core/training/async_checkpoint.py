"""Checkpoints beside training: the state is copied at once, and written by one thread while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.retry import is_transient
from presto_core.artifacts.store import StoreError
from presto_core.training.checkpoint import (
    Snapshot,
    delete_old,
    write_checkpoint,
)

RETRY_TIMEOUT_S = 120
# each request was tried for some seconds already; nobody waits for this thread, so an outage may last longer
_RETRY = Retrying(
    stop=stop_after_delay(RETRY_TIMEOUT_S),
    wait=wait_fixed(3),
    retry=retry_if_exception(lambda error: isinstance(error, StoreError) and is_transient(error.__cause__)),
    reraise=True,
)


class SaveError(StoreError):
    """A checkpoint could not be written; the one before it is whole."""


class CheckpointWriter:
    """Writes one checkpoint at a time; at the end of its context all that were begun are written.

    Args:
        last_good: step of the checkpoint that the run started from; 0 where there was none.
        keep, every: see `delete_old`.
        saved: told the step of each checkpoint once it is whole, in the writer's thread.
        require_at_work: raises where another process writes into the folder now; `finish` passes that on.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        last_saved_step: int,
        keep: int,
        every: int,
        on_saved: Callable[[int], None] = lambda step: None,
        check_current_attempt: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.last_saved_step, self.keep, self.every = folder, last_saved_step, keep, every
        self.on_saved, self.check_current_attempt = on_saved, check_current_attempt
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending_write: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a save went wrong; the run should then end, in the same step on all ranks, and `finish` tells why."""
        return (
            self.pending_write is not None and self.pending_write.done() and self.pending_write.exception() is not None
        )

    def save(self, state: dict[str, Any], before_commit: Callable[[], None] = lambda: None) -> None:
        """Copy what `TrainState.state_dict` gave and begin to write it; waits for the save before. Never raises for it.

        Args:
            first: what must be stored before the checkpoint may exist; done by the thread too.
        """
        self.wait()
        if not self.has_failed:
            self.pending_write = self.thread.submit(self._write, Snapshot.from_state(state), before_commit)

    def wait(self) -> None:
        if self.pending_write:
            wait([self.pending_write])

    def finish(self) -> None:
        """Wait for what was begun.

        Raises:
            SaveError: it went wrong; names the last good checkpoint.
        """
        self.wait()
        if self.pending_write:
            self.pending_write.result()

    def _write(self, snapshot: Snapshot, before_commit: Callable[[], None]) -> None:
        def commit() -> None:
            self.check_current_attempt()
            before_commit()
            write_checkpoint(self.folder, snapshot)
            self.last_saved_step = snapshot.total_step
            self.on_saved(snapshot.total_step)
            self.check_current_attempt()  # before others' checkpoints are deleted
            delete_old(self.folder, newest=snapshot.total_step, keep=self.keep, every=self.every)

        try:
            _RETRY.copy()(commit) if self.folder.is_remote else commit()
        except StoreError as error:
            self._delete_partial(snapshot.total_step)
            raise SaveError(f"{error} ({self._describe_last_saved()})") from error

    def _delete_partial(self, total_step: int) -> None:
        """On a full disk the half of a checkpoint would stand in the way of whatever the user does next."""
        if total_step != self.last_saved_step and not self.folder.is_remote:
            with suppress(StoreError):
                self.folder.child(f"step-{total_step:09d}").delete()

    def _describe_last_saved(self) -> str:
        if not self.last_saved_step:
            return "there is no good checkpoint yet"
        step = self.last_saved_step
        return f"the last good checkpoint is of step {step}: {self.folder.uri}/step-{step:09d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.thread.shutdown(wait=True)
