"""Asynchronous checkpoints: the state is copied immediately and written by one thread while training continues.

While the store is away, a checkpoint that is due replaces the one that could not be written, which is skipped; what had
to be stored before either is stored before the newer one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.training.checkpoint import Snapshot, Warn, write_checkpoint
from presto_core.training.checkpoint_folders import CheckpointName, delete_old
from presto_core.training.outage import OutageTimer

MAX_UNSAVED_S = 120.0


class SaveError(StoreError):
    """A checkpoint could not be written; the previous one is intact."""


@dataclass(frozen=True)
class _Save:
    """A snapshot to be written, and what must be stored before it exists."""

    snapshot: Snapshot
    before_commit: tuple[Callable[[], None], ...]


class CheckpointWriter:
    """Writes one checkpoint at a time; leaving its context waits for pending writes.

    Args:
        last_saved_step: step of the checkpoint that the run starts from; 0 if there is none.
        keep, every: see `delete_old`.
        epoch: of the lease that the run is held by.
        max_unsaved_s: how long training goes on while checkpoints cannot be written.
        on_saved: called with the step of each checkpoint once it is committed, in the writer's thread.
        check_current_attempt: raises if another process now writes into the folder; `finish` re-raises it.
        warn: shows a message.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        last_saved_step: int,
        keep: int,
        every: int,
        epoch: int = 1,
        max_unsaved_s: float = MAX_UNSAVED_S,
        on_saved: Callable[[int], None] = lambda step: None,
        check_current_attempt: Callable[[], None] = lambda: None,
        warn: Warn = lambda message: None,
    ) -> None:
        self.folder, self.keep, self.every, self.epoch = folder, keep, every, epoch
        self.last_saved_step, self.last_saved = last_saved_step, CheckpointName(0, 0)
        self.on_saved, self.check_current_attempt = on_saved, check_current_attempt
        self.outage_timer = OutageTimer(max_unsaved_s, warn, folder.is_remote)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._newest: _Save | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    @property
    def has_failed(self) -> bool:
        """Whether a save failed; the run should then end at the same step on all ranks; `finish` raises the error."""
        return self._error is not None

    @property
    def is_away(self) -> bool:
        """Whether the store did not take the checkpoint that is being written, which is tried again."""
        return self.outage_timer.since is not None

    def save(self, state: dict[str, object], before_commit: Callable[[], None] = lambda: None) -> None:
        """Copy a `TrainState.state_dict` and start writing it, after the previous save; errors surface in `finish`.

        Args:
            before_commit: stores what must exist before the checkpoint does; runs in the writer's thread, again with
                each try.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest is None or self.is_away)
        if self.has_failed:
            return
        snapshot = Snapshot.from_state(state)
        with self._changed:
            skipped = self._newest
            self._newest = _Save(snapshot, (*(skipped.before_commit if skipped else ()), before_commit))
            if not skipped:
                self.thread.submit(self._write_newest)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is None)

    def finish(self) -> None:
        """Wait for the pending write.

        Raises:
            SaveError: the write failed; the message names the last good checkpoint.
        """
        self.wait()
        if self._error:
            raise self._error

    def _write_newest(self) -> None:
        """Write the newest snapshot until that succeeds and no newer one came meanwhile."""
        try:
            while (save := self._newest) and not (self._try_write(save) and self._is_last(save)):
                pass
        except BaseException as error:
            with self._changed:
                self._error, self._newest = error, None
                self._changed.notify_all()

    def _is_last(self, save: _Save) -> bool:
        """Whether no newer snapshot came while this one was written; then there is none to be written."""
        with self._changed:
            if is_last := self._newest is save:
                self._newest = None
                self._changed.notify_all()
            return is_last

    def _try_write(self, save: _Save) -> bool:
        """Write a snapshot; return False, after a pause, if the store is away.

        Raises:
            SaveError: it is away for too long, or does not take the checkpoint for another reason.
        """
        step = save.snapshot.total_step
        try:
            self._commit(save)
        except StoreError as error:
            self._delete_partial(step)
            try:
                with self._changed:
                    pause_s = self.outage_timer.note_failure(f"the checkpoint of step {step} cannot be written", error)
                    self._changed.notify_all()  # training need not wait for this one
            except StoreError as outage:
                raise SaveError(f"{outage} ({self._describe_last_saved()})") from error
            self.outage_timer.given_up.wait(pause_s)
            return False
        self.outage_timer.end(f"the checkpoint of step {step} is written")
        return True

    def _commit(self, save: _Save) -> None:
        self.check_current_attempt()
        for store in save.before_commit:
            store()
        self.last_saved = write_checkpoint(self.folder, save.snapshot, epoch=self.epoch)
        self.last_saved_step = self.last_saved.step
        self.on_saved(save.snapshot.total_step)
        self.check_current_attempt()  # before deleting checkpoints that may belong to another process
        delete_old(self.folder, newest=self.last_saved, keep=self.keep, every=self.every)

    def _delete_partial(self, total_step: int) -> None:
        """Delete a partial checkpoint, which would keep a full disk full."""
        name = CheckpointName(self.epoch, total_step)
        if name != self.last_saved and not self.folder.is_remote:
            with suppress(StoreError):
                self.folder.child(str(name)).delete()

    def _describe_last_saved(self) -> str:
        if not self.last_saved_step:
            return "there is no good checkpoint yet"
        name = f"/{self.last_saved}" if self.last_saved.step else ""
        return f"the last good checkpoint is step {self.last_saved_step}: {self.folder.uri}{name}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.outage_timer.given_up.set()  # the write in progress ends, but is not tried again
        self.thread.shutdown(wait=True)
