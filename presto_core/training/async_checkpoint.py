"""Checkpoints beside training: the state is copied at once, and written by one thread while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.retry import may_pass
from presto_core.artifacts.store import StoreError
from presto_core.training.checkpoint import (
    Snapshot,
    delete_old,
    write_checkpoint,
)

PATIENCE_S = 120
# each request was tried for some seconds already; nobody waits for this thread, so an outage may last longer
_PATIENTLY = Retrying(
    stop=stop_after_delay(PATIENCE_S),
    wait=wait_fixed(3),
    retry=retry_if_exception(lambda error: isinstance(error, StoreError) and may_pass(error.__cause__)),
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
        last_good: int,
        keep: int,
        every: int,
        saved: Callable[[int], None] = lambda step: None,
        require_at_work: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.last_good, self.keep, self.every = folder, last_good, keep, every
        self.saved, self.require_at_work = saved, require_at_work
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.running: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether a save went wrong; the run should then end, in the same step on all ranks, and `finish` tells why."""
        return self.running is not None and self.running.done() and self.running.exception() is not None

    def save(self, state: dict[str, Any], first: Callable[[], None] = lambda: None) -> None:
        """Copy what `TrainState.state_dict` gave and begin to write it; waits for the save before. Never raises for it.

        Args:
            first: what must be stored before the checkpoint may exist; done by the thread too.
        """
        self.wait()
        if not self.failed:
            self.running = self.thread.submit(self._write, Snapshot.of(state), first)

    def wait(self) -> None:
        if self.running:
            wait([self.running])

    def finish(self) -> None:
        """Wait for what was begun.

        Raises:
            SaveError: it went wrong; names the last good checkpoint.
        """
        self.wait()
        if self.running:
            self.running.result()

    def _write(self, snapshot: Snapshot, first: Callable[[], None]) -> None:
        def commit() -> None:
            self.require_at_work()
            first()
            write_checkpoint(self.folder, snapshot)
            self.last_good = snapshot.total_step
            self.saved(snapshot.total_step)
            self.require_at_work()  # before others' checkpoints are deleted
            delete_old(self.folder, newest=snapshot.total_step, keep=self.keep, every=self.every)

        try:
            _PATIENTLY.copy()(commit) if self.folder.remote else commit()
        except StoreError as error:
            self._make_room(snapshot.total_step)
            raise SaveError(f"{error} ({self._good()})") from error

    def _make_room(self, total_step: int) -> None:
        """On a full disk the half of a checkpoint would stand in the way of whatever the user does next."""
        if total_step != self.last_good and not self.folder.remote:
            with suppress(StoreError):
                self.folder.child(f"step-{total_step:09d}").delete()

    def _good(self) -> str:
        if not self.last_good:
            return "there is no good checkpoint yet"
        return f"the last good checkpoint is of step {self.last_good}: {self.folder.uri}/step-{self.last_good:09d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.thread.shutdown(wait=True)
