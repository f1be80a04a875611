"""Messages from workers to the waiting command: only the current group is listened to, and may write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pipelines.cluster.shutdown import (
    SUPERSEDED,
    SupersededWorkerError,
    attempt_id,
)
from pipelines.storage.filesystem import open_folder
from pipelines.train.driver import DriverMailbox
from presto_core.training.async_checkpoint import CheckpointWriter


def test_the_worker_of_a_lost_node_is_not_heard_beside_those_that_took_over():
    board = DriverMailbox()
    board.begin("first")
    board.begin("second")
    board.push(7, {"loss": 1.0}, "first")
    board.warn("strange", "first")
    board.fail("its checkpoint was cleared away", "first")
    assert board.drain() == ([], [], "", False)
    assert board.stop_reason("first") == SUPERSEDED
    board.push(7, {"loss": 2.0}, "second")
    board.fail("the disk is full", "second")
    board.fail("and therefore this", "second")
    assert board.drain() == ([(7, {"loss": 2.0})], [], "the disk is full", False)
    assert board.stop_reason("second") == ""


def test_a_group_that_was_given_up_cannot_begin_again():
    board = DriverMailbox()
    for attempt in ("first", "second", "first"):
        board.begin(attempt)
    assert board.is_current_attempt("second")
    assert not board.is_current_attempt("first")


def test_an_error_before_a_restart_is_forgotten():
    board = DriverMailbox()
    board.begin("first")
    board.fail("worker 0 cannot read", "first", stopped=True)
    board.begin("second")
    assert board.drain()[2:] == ("", False)


def test_a_rank_is_heard_that_fails_before_the_first_one_begins():
    board = DriverMailbox()
    board.begin("first")
    board.fail("worker 1: a shard is damaged", "second")
    assert board.drain().error == "worker 1: a shard is damaged"


def test_a_worker_that_others_took_over_from_writes_and_deletes_no_checkpoint(tmp_path: Path):
    board, folder = DriverMailbox(), open_folder(str(tmp_path))
    board.begin("first")

    def require_at_work() -> None:
        if not board.is_current_attempt("first"):
            raise SupersededWorkerError(SUPERSEDED)

    with CheckpointWriter(folder, last_saved_step=0, keep=1, every=0, check_current_attempt=require_at_work) as writer:
        writer.save({"total_step": 4, "weight": torch.ones(2)})
        writer.finish()
        there = sorted(folder.list_folders())
        board.begin("second")
        written: list[int] = []
        writer.save({"total_step": 8, "weight": torch.ones(2)}, before_commit=lambda: written.append(8))
        with pytest.raises(SupersededWorkerError, match=SUPERSEDED):
            writer.finish()
        assert writer.has_failed
    assert sorted(folder.list_folders()) == there == ["step-000000004"]
    assert written == []


def _report_and_fail_first(config: dict[str, str]) -> None:
    import ray.train

    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    (folder / f"{attempt_id()}-{rank}").touch()
    ray.train.report({})  # all ranks have reported before one fails
    if len(list(folder.iterdir())) == 2:
        raise RuntimeError("the first group fails")


@pytest.mark.slow
@pytest.mark.ray
def test_ranks_of_a_group_know_that_they_are_of_one_and_another_group_is_another(shared_ray, tmp_path: Path):
    folder = tmp_path / "attempts"
    folder.mkdir()
    TorchTrainer(
        _report_and_fail_first,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path / "runs"), failure_config=FailureConfig(max_failures=2)),
    ).fit()
    attempts = [path.name.rpartition("-")[0] for path in folder.iterdir()]
    assert "None" not in attempts
    assert sorted(attempts.count(attempt) for attempt in set(attempts)) == [2, 2]
