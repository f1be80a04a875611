"""Checkpoints: written asynchronously, the newest complete one is loaded, a failed save leaves the previous one."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from presto_core.artifacts import resumable_read
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.config.sections import LoopConfig, StepsConfig
from presto_core.training.async_checkpoint import CheckpointWriter, SaveError
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.checkpoint_folders import delete_incomplete, list_checkpoints
from presto_core.training.ema import Ema
from presto_core.training.loop import Hooks, train
from presto_core.training.state import TrainState
from presto_core.training.step_distillation import StepDistillation
from tests.core.test_training import are_equal, distillation, local_folder, run, weights
from tests.support.checkpoints import is_time, save_checkpoint
from tests.support.toy_networks import batches, tiny_dit

STATE = "state.safetensors"


def writer_of(folder: Folder, *, last_good: int = 0, keep: int = 2, every: int = 0) -> CheckpointWriter:
    return CheckpointWriter(folder, last_saved_step=last_good, keep=keep, every=every)


def wait_at(gate: threading.Event) -> None:
    gate.wait(60)


def save_at(folder: Folder, steps: range, *, keep: int = 2, every: int = 0) -> StepDistillation:
    algorithm = distillation()
    for step in steps:
        run(algorithm, step)
        save_checkpoint(folder, algorithm.state, keep=keep, every=every)
    return algorithm


def truncate(checkpoint: Path, file: str = STATE) -> None:
    whole = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(whole[: len(whole) // 2])


def steps_of(folder: Folder) -> list[int]:
    return [name.step for name in list_checkpoints(folder)]


def load_step(folder: Folder, warnings: list[str]) -> int:
    algorithm = distillation()
    assert load_checkpoint(folder, algorithm.state, warnings.append)
    return algorithm.state.total_step


# --- asynchronous saves


def test_what_is_written_is_the_state_of_the_due_step_though_training_went_on(tmp_path):
    algorithm, folder, gate = distillation(), local_folder(tmp_path), threading.Event()
    run(algorithm, 3)
    then = {name: weights(net) for name, net in algorithm.state.networks.items()}
    with writer_of(folder) as writer:
        writer.save(algorithm.state.state_dict(), before_commit=partial(wait_at, gate))
        run(algorithm, 6)
        assert folder.list_folders() == []  # the writer is still blocked, so nothing is committed
        gate.set()
        writer.finish()
    restored = distillation()
    assert load_checkpoint(folder, restored.state)
    assert restored.state.total_step == 3
    for name, net in restored.state.networks.items():
        assert are_equal(then[name], weights(net))
        assert not are_equal(then[name], weights(algorithm.state.networks[name]))


def test_one_save_at_a_time(tmp_path):
    algorithm, gate = distillation(), threading.Event()
    run(algorithm, 1)
    order: list[str] = []

    def finish_first() -> None:
        gate.wait(60)
        order.append("first")

    with writer_of(local_folder(tmp_path)) as writer:
        writer.save(algorithm.state.state_dict(), before_commit=finish_first)
        threading.Timer(0.2, gate.set).start()
        writer.save(algorithm.state.state_dict(), before_commit=lambda: order.append("second"))
    assert order == ["first", "second"]


def test_end_of_the_context_waits_though_the_run_was_interrupted(tmp_path):
    algorithm, folder, gate = distillation(), local_folder(tmp_path), threading.Event()
    run(algorithm, 1)

    def save_and_interrupt() -> None:
        with writer_of(folder) as writer:
            writer.save(algorithm.state.state_dict(), before_commit=partial(wait_at, gate))
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_and_interrupt()
    assert load_step(folder, []) == 1


def test_failed_save_ends_the_run_with_the_last_good_checkpoint_named_and_whole(tmp_path):
    """A file in place of a folder makes the store fail on the background thread in the middle of a run."""
    algorithm, folder = distillation(), local_folder(tmp_path)
    (tmp_path / "step-000000004").write_text("in the way")
    with writer_of(folder) as writer:
        state = algorithm.state
        hooks = Hooks(checkpoint=lambda: writer.save(state.state_dict()), should_stop=lambda: writer.has_failed)
        train(algorithm, batches(), seed=0, config=LoopConfig(log_every=1, checkpoint_every=2), hooks=hooks)
        writer.wait()
        assert writer.has_failed
        writer.save(state.state_dict())  # a later save has no effect
        with pytest.raises(SaveError, match=r"step-000000004.*step 2: .*step-0{8}2\)$"):
            writer.finish()
    assert state.total_step < algorithm.total_steps
    assert load_step(folder, []) == 2


# --- which checkpoint is loaded


def test_newest_complete_checkpoint_wins_and_half_of_one_is_cleaned_up(tmp_path):
    folder = local_folder(tmp_path)
    save_at(folder, range(1, 4))
    assert steps_of(folder) == [2, 3]
    (tmp_path / "step-000000003" / "manifest.json").unlink()  # as if killed during the upload
    warnings: list[str] = []
    assert load_step(folder, warnings) == 2
    assert warnings == []  # an uncommitted checkpoint is not an error
    delete_incomplete(folder)
    assert steps_of(folder) == [2]


@pytest.mark.parametrize("file", [STATE, "state.json", "manifest.json"])
def test_damaged_newest_is_passed_over_aloud(tmp_path, file: str):
    folder = local_folder(tmp_path)
    algorithm = save_at(folder, range(1, 4))
    truncate(tmp_path / "step-000000003", file)
    warnings: list[str] = []
    assert load_step(folder, warnings) == 2
    (warning,) = warnings
    assert "step 2" in warning
    assert f"step-000000003/{file}" in warning
    save_checkpoint(folder, algorithm.state, keep=2)  # the run reaches the same step again
    assert load_step(folder, []) == 3


def test_missing_file_counts_as_damage(tmp_path):
    folder, warnings = local_folder(tmp_path), list[str]()
    save_at(folder, range(1, 4))
    (tmp_path / "step-000000003" / STATE).unlink()
    assert load_step(folder, warnings) == 2
    assert len(warnings) == 1


def test_all_damaged_or_foreign_is_refused(tmp_path):
    folder = local_folder(tmp_path)
    save_at(folder, range(1, 3))
    other = StepDistillation(StepsConfig(), tiny_dit(dim=32), sigma_data=1.0)
    with pytest.raises(StoreError, match="step-000000002"):
        load_checkpoint(folder, other.state)
    for step in (1, 2):
        truncate(tmp_path / f"step-00000000{step}")
    with pytest.raises(StoreError, match=rf"step-000000002/.*{folder.uri}"):
        load_checkpoint(folder, distillation().state)


@pytest.mark.parametrize("position", [3, 40, -1])
def test_a_changed_byte_is_damage_wherever_it_is(tmp_path, position: int):
    """In the length of the header, in the header and in the tensors, which are in use before the hash is known."""
    folder, warnings = local_folder(tmp_path), list[str]()
    algorithm = save_at(folder, range(1, 3))
    path = tmp_path / "step-000000002" / STATE
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert load_step(folder, warnings) == 1
    assert len(warnings) == 1
    restored = distillation()
    load_checkpoint(folder, restored.state)
    run(restored, 2)
    for name, net in restored.state.networks.items():
        assert are_equal(weights(net), weights(algorithm.state.networks[name]))


def test_a_resume_takes_little_more_memory_than_the_state(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """The networks are there before; beyond the moments, which are not, a tensor at a time is in memory."""
    monkeypatch.setattr(resumable_read, "BLOCK_BYTES", 2**20)  # in proportion to so small a state
    network = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(12)))

    def make_state() -> TrainState:
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        return TrainState({"net": network}, {"net": optimizer}, {"net": Ema(network, 0.9)})

    state = make_state()
    sum(p.sum() for p in network.parameters()).backward()
    state.optimizers["net"].step()
    state.optimizers["net"].zero_grad()
    save_checkpoint(local_folder(tmp_path), state, keep=1)
    size = (tmp_path / "step-000000000" / STATE).stat().st_size
    del state
    state = make_state()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = read_memory("VmRSS")
    assert load_checkpoint(local_folder(tmp_path), state)
    extra = read_memory("VmHWM") - before
    assert extra <= 0.5 * size + 0.2 * size  # half of the state are the moments


def read_memory(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert not load_checkpoint(local_folder(tmp_path / "none"), distillation().state)


# --- which checkpoints are kept


def test_newest_and_every_nth_are_kept(tmp_path):
    folder = local_folder(tmp_path)
    save_at(folder, range(1, 11), keep=2, every=4)
    assert steps_of(folder) == [4, 8, 9, 10]


def test_a_damaged_newer_one_replaces_no_good_one_and_is_written_again(tmp_path):
    folder = local_folder(tmp_path)
    save_at(folder, range(1, 4), keep=3)
    truncate(tmp_path / "step-000000003")
    again = distillation()
    load_checkpoint(folder, again.state, lambda message: None)
    save_checkpoint(folder, again.state, keep=1)
    assert steps_of(folder) == [2, 3]
    assert load_step(folder, []) == 2
    run(again, 3)
    save_checkpoint(folder, again.state, keep=1)
    assert steps_of(folder) == [3]
    assert load_step(folder, []) == 3


def test_nothing_is_deleted_before_the_new_one_is_there(tmp_path):
    folder = local_folder(tmp_path)
    algorithm = save_at(folder, range(1, 3), keep=1)
    run(algorithm, 3)
    (tmp_path / "step-000000003").write_text("in the way")
    with pytest.raises(StoreError):
        save_checkpoint(folder, algorithm.state, keep=1)
    assert load_step(folder, []) == 2


# --- metrics across a stop and resume


@pytest.mark.parametrize("stops", [(3,), (5, 6, 7)])
def test_rows_are_those_of_a_run_that_was_not_stopped(tmp_path, stops: tuple[int, ...]):
    """After a stop between two rows, the next row includes the metrics from before the stop."""

    def rows_of(stops: tuple[int, ...]) -> list[tuple[int, dict[str, float]]]:
        rows: list[tuple[int, dict[str, float]]] = []
        folder = local_folder(tmp_path / str(len(stops)))
        for stop in (*stops, 12):
            algorithm = distillation()
            load_checkpoint(folder, algorithm.state)
            state = algorithm.state

            def save(state: TrainState = state) -> None:
                save_checkpoint(folder, state, keep=1)

            def is_at_stop(state: TrainState = state, at: int = stop) -> bool:
                return state.total_step + 1 == at

            hooks = Hooks(
                log=lambda step, metrics: rows.append((step, metrics)), checkpoint=save, should_stop=is_at_stop
            )
            stream = batches(cursor=state.cursor)
            train(algorithm, stream, seed=0, config=LoopConfig(log_every=4, checkpoint_every=100), hooks=hooks)
        return [(s, {k: v for k, v in m.items() if not is_time(k)}) for s, m in rows]

    undisturbed = rows_of(())
    assert [step for step, _ in undisturbed] == [4, 8, 12]
    assert rows_of(stops) == undisturbed
    assert torch.isfinite(torch.tensor([v for _, m in undisturbed for v in m.values()])).all()
