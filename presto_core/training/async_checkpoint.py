"""Asynchronous checkpoints: the state is copied immediately and written by one thread while training continues."""

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
from presto_core.training.checkpoint import Snapshot, delete_old, write_checkpoint

RETRY_TIMEOUT_S = 120
# each request already has retries of its own; training does not wait for this thread, so it can outlast an outage
_RETRY = Retrying(
    stop=stop_after_delay(RETRY_TIMEOUT_S),
    wait=wait_fixed(3),
    retry=retry_if_exception(lambda error: isinstance(error, StoreError) and is_transient(error.__cause__)),
    reraise=True,
)


class SaveError(StoreError):
    """A checkpoint could not be written; the previous one is intact."""


class CheckpointWriter:
    """Writes one checkpoint at a time; leaving its context waits for pending writes.

    Args:
        last_saved_step: step of the checkpoint that the run starts from; 0 if there is none.
        keep, every: see `delete_old`.
        on_saved: called with the step of each checkpoint once it is committed, in the writer's thread.
        check_current_attempt: raises if another process now writes into the folder; `finish` re-raises it.
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
        """Whether a save failed; the run should then end at the same step on all ranks; `finish` raises the error."""
        return (
            self.pending_write is not None and self.pending_write.done() and self.pending_write.exception() is not None
        )

    def save(self, state: dict[str, Any], before_commit: Callable[[], None] = lambda: None) -> None:
        """Copy a `TrainState.state_dict` and start writing it, after the previous save; errors surface in `finish`.

        Args:
            before_commit: stores what must exist before the checkpoint does; runs in the writer's thread.
        """
        self.wait()
        if not self.has_failed:
            self.pending_write = self.thread.submit(self._write, Snapshot.from_state(state), before_commit)

    def wait(self) -> None:
        if self.pending_write:
            wait([self.pending_write])

    def finish(self) -> None:
        """Wait for the pending write.

        Raises:
            SaveError: the write failed; the message names the last good checkpoint.
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
            self.check_current_attempt()  # before deleting checkpoints that may belong to another process
            delete_old(self.folder, newest=snapshot.total_step, keep=self.keep, every=self.every)

        try:
            _RETRY.copy()(commit) if self.folder.is_remote else commit()
        except StoreError as error:
            self._delete_partial(snapshot.total_step)
            raise SaveError(f"{error} ({self._describe_last_saved()})") from error

    def _delete_partial(self, total_step: int) -> None:
        """Delete a partial checkpoint, which would keep a full disk full."""
        if total_step != self.last_saved_step and not self.folder.is_remote:
            with suppress(StoreError):
                self.folder.child(f"step-{total_step:09d}").delete()

    def _describe_last_saved(self) -> str:
        if not self.last_saved_step:
            return "there is no good checkpoint yet"
        step = self.last_saved_step
        return f"the last good checkpoint is step {step}: {self.folder.uri}/step-{step:09d}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.thread.shutdown(wait=True)
