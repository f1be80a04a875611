"""While the store is away training goes on: checkpoints are skipped and tried again up to an age, and none is torn."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.config.sections import LoopConfig
from presto_core.training import outage
from presto_core.training.async_checkpoint import CheckpointWriter, SaveError
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.checkpoint_folders import list_checkpoints
from presto_core.training.loop import Hooks, train
from presto_core.training.outage import OutageTimer, may_pass, retry_while_away
from tests.core.test_training import are_equal, distillation, local_folder, run, weights
from tests.support.toy_networks import batches

LAST = 5


@dataclass
class Store:
    """A folder that can be taken away, as a file server is."""

    folder: Folder
    is_away: bool = False
    number: int = errno.EIO
    failures: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def guard(self) -> Folder:
        return self.folder.guard(self.check)

    def check(self) -> None:
        if self.is_away:
            self.failures.release()
            raise StoreError("cannot write") from OSError(self.number, "Input/output error")

    def wait_for_failure(self) -> None:
        assert self.failures.acquire(timeout=60)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(outage, "LONGEST_PAUSE_S", 0.05)
    return Store(local_folder(tmp_path))


def make_writer(store: Store, warnings: list[str], *, limit_s: float = 600) -> CheckpointWriter:
    return CheckpointWriter(
        store.guard(), last_saved_step=0, keep=2, every=0, max_unsaved_s=limit_s, warn=warnings.append
    )


def list_steps(store: Store) -> list[int]:
    return [name.step for name in list_checkpoints(store.folder)]


def test_training_goes_on_through_an_outage_and_ends_with_the_same_bits(store: Store, tmp_path: Path):
    """Away at the second and third checkpoint; the loop neither waits nor stops."""
    calm, algorithm, warnings = distillation(), distillation(), list[str]()
    run(calm, LAST)
    steps_away, rows = (2, 3), list[int]()
    state = algorithm.state
    with make_writer(store, warnings) as writer:

        def save() -> None:
            store.is_away = state.total_step in steps_away
            writer.save(state.state_dict(), before_commit=partial(rows.append, state.total_step))
            if store.is_away:
                store.wait_for_failure()

        hooks = Hooks(checkpoint=save, should_stop=lambda: writer.has_failed or state.total_step + 1 == LAST)
        train(algorithm, batches(), seed=0, config=LoopConfig(log_every=1, checkpoint_every=1), hooks=hooks)
        writer.finish()
    assert state.total_step == LAST
    assert list_steps(store)[-1] == LAST  # the one before may be replaced while the writer waits
    assert sorted(set(rows)) == list(range(1, LAST + 1))  # what belongs before a skipped one is stored all the same
    for name, network in calm.state.networks.items():
        assert are_equal(weights(network), weights(state.networks[name]))
    restored = distillation()
    assert load_checkpoint(store.folder, restored.state)
    assert restored.state.total_step == LAST
    began, ended = warnings
    assert "step 2" in began
    assert "written" in ended


def test_an_outage_longer_than_the_setting_ends_the_run_and_names_the_last_good_one(store: Store):
    algorithm, warnings = distillation(), list[str]()
    with make_writer(store, warnings, limit_s=0.1) as writer:
        run(algorithm, 1)
        writer.save(algorithm.state.state_dict())
        writer.wait()
        store.is_away = True
        run(algorithm, 2)
        writer.save(algorithm.state.state_dict())
        with pytest.raises(SaveError, match="step 1:"):
            writer.finish()
        assert writer.has_failed
        writer.save(algorithm.state.state_dict())  # returns at once
    assert list_steps(store) == [1]


def test_an_interrupted_command_does_not_wait_for_the_store(store: Store):
    algorithm = distillation()
    run(algorithm, 1)
    store.is_away = True

    def save_and_interrupt() -> None:
        with make_writer(store, []) as writer:
            writer.save(algorithm.state.state_dict())
            store.wait_for_failure()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_and_interrupt()
    assert list_steps(store) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_what_does_not_go_away_by_itself_ends_the_run_at_once(store: Store, number: int):
    algorithm, warnings, store.number, store.is_away = distillation(), list[str](), number, True
    with make_writer(store, warnings) as writer:
        writer.save(algorithm.state.state_dict())
        with pytest.raises(SaveError):
            writer.finish()
    assert warnings == []


@pytest.mark.parametrize(
    ("error", "is_remote", "expected"),
    [
        (OSError("HTTP status 503"), True, True),
        (OSError("curlCode: 7, Couldn't connect"), True, True),
        (OSError("ExpiredToken: The provided token has expired"), True, True),
        (OSError("HTTP status 403"), True, False),
        (OSError("Cannot write: [errno 5] Input/output error"), False, True),
        (OSError(errno.ESTALE, "Stale file handle"), False, True),
        (OSError("Cannot write: [errno 28] No space left on device"), False, False),
        (None, True, False),
    ],
)
def test_which_errors_may_pass(error: OSError | None, is_remote: bool, expected: bool):
    failure = StoreError("x")
    failure.__cause__ = error
    assert may_pass(failure, is_remote=is_remote) == expected


def test_warnings_grow_rarer_the_longer_it_lasts(monkeypatch: pytest.MonkeyPatch):
    clock, warnings, seconds = [0.5], list[str](), list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def warn(message: str) -> None:
        warnings.append(message)
        seconds.append(clock[0])

    outage_timer = OutageTimer(3600, warn)
    failure = StoreError("away")
    failure.__cause__ = OSError("HTTP status 503")
    while clock[0] < 3000:
        outage_timer.note_failure("x cannot be written", failure)
        clock[0] += 10
    gaps = [after - before for before, after in zip(seconds, seconds[1:])]
    assert 5 <= len(warnings) <= 8
    assert gaps == sorted(gaps)


def test_an_action_is_repeated_until_the_store_answers(store: Store):
    answers, failure = [1, 1, 0], StoreError("away")
    failure.__cause__ = OSError("HTTP status 503")

    def act() -> str:
        if answers.pop(0):
            raise failure
        return "done"

    assert retry_while_away(act, OutageTimer(60), "the artifact") == "done"
    assert answers == []
