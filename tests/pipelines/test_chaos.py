"""Faults that befall a training run in one process: the same command goes on, and ends with the same bits.

The short half of `make test-chaos`; test_chaos_ray.py has workers, nodes and servers.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from presto_core.errors import UserError
from tests.support.fault_runs import (
    EVERY,
    SAME,
    TABLE,
    FaultRow,
    Parents,
    Training,
    count_lost_steps,
    last_step,
    wait_until,
)
from tests.support.processes import wait_for
from tests.support.synthetic_dataset import make_dataset

pytestmark = [pytest.mark.chaos, pytest.mark.services, pytest.mark.timeout(3000)]


def truncate(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


# over 10 s: one training in this process and two as processes of their own, each importing torch and MLflow
@pytest.mark.slow
def test_kill_9_then_a_damaged_checkpoint_then_sigterm(begin, tmp_path: Path, parents: Parents):
    """One run, three lives: LS has every network there is."""
    calm, run = (Training("LS", tmp_path / name, parents) for name in ("calm", "run"))
    calm.finish_in_process()
    killed = run.begin(begin)
    assert wait_until(killed, 3 * EVERY - 2)
    killed.kill()
    truncate(run.newest_checkpoint / "state.safetensors")

    stopped = run.begin(begin)
    assert wait_until(stopped, last_step(killed) + 1)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.exit_code() == 143
    assert "damaged checkpoint" in stopped.stderr
    assert "SIGTERM" in stopped.stderr
    assert run.checkpoints()[-1] >= last_step(stopped)

    run.finish_in_process()
    assert run.outcome() == calm.outcome()
    TABLE.append(
        FaultRow(
            "driver SIGKILL, then newest checkpoint truncated", "LS", 0, 1, count_lost_steps(killed, stopped), SAME
        )
    )
    TABLE.append(FaultRow("driver SIGTERM", "LS", 0, 1, 0, f"saved, exit status 143; then {SAME}"))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own that can get full."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Write until nothing more fits."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    return filler


# over 10 s: a training of 120 steps, three times: there must be checkpoints before and after the disk is full
@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(begin, tmp_path: Path, parents: Parents):
    calm = Training("L", tmp_path / "calm", parents, steps=120)
    calm.finish_in_process()
    disk = tmp_path / "disk"
    with small_disk(disk, "8m"):
        run = replace(calm, cwd=tmp_path / "run", settings={"storage.root": str(disk / "store")}, attempts=[])
        attempt = run.begin(begin)
        assert wait_for(lambda: len(run.checkpoints()) >= 2, 120)
        filler = fill(disk)
        assert attempt.exit_code() == 1
        good = run.checkpoints()[-1]
        assert f"step {good}:" in attempt.stderr
        assert "disk" in attempt.stderr
        filler.unlink()
        run.finish_in_process()
        assert run.outcome() == calm.outcome()
    TABLE.append(FaultRow("disk full", "L", 0, 1, last_step(attempt) - good, f"one message; with space freed {SAME}"))


def test_a_nan_in_the_data_stops_before_it_is_learnt(tmp_path: Path, parents: Parents):
    poisoned = make_dataset(str(tmp_path / "poisoned"), poisoned_row=3).uri
    run = Training("teacher", tmp_path / "run", Parents(poisoned), settings={"loop.checkpoint_every": 1})
    with pytest.raises(UserError, match=r"dsm_loss is nan on rank 0, .*sigma .*\(total_step (\d+)\)") as caught:
        run.finish_in_process()
    assert f"step {run.checkpoints()[-1]};" in str(caught.value)
    assert run.weights_are_finite()
    TABLE.append(
        FaultRow("NaN in a batch", "teacher", 0, 1, 1, "loss, step, noise levels, rank and last checkpoint named")
    )
