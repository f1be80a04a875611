"""What a rank does around the loop, without Ray: reports, checkpoints, stops, resumes, and commits only if it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cluster.shutdown import StoppedError, SupersededWorkerError
from pipelines.data.dataset import open_dataset
from pipelines.data.shard_reader import read_with_threads
from pipelines.stages import train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.metric_log import read_rows
from pipelines.train.parallel import make_single_process
from pipelines.train.spec import TrainSpec
from pipelines.train.step_flops import row_flops
from pipelines.train.worker import WorkerCallbacks, train_worker
from presto_core.artifacts.manifest import read_artifact
from presto_core.artifacts.run_layout import CHECKPOINTS
from presto_core.artifacts.store import read_file
from presto_core.config.stage import NOT_IN_RUN_ID, TrainingStage
from presto_core.device import allow_tf32
from presto_core.models.model_card import WEIGHTS, load_model
from tests.pipelines.test_training_stages import teacher_config
from tests.support.synthetic_dataset import make_dataset

STEPS, EVERY = 8, 3  # steps in all, and between two checkpoints


@dataclass
class Driver:
    """The command's end of a worker: keeps what it reports, and asks it to stop after a step."""

    stop_after: int = 99
    is_superseded: bool = False
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def callbacks(self) -> WorkerCallbacks:
        return WorkerCallbacks(
            lambda step, metrics: self.rows.append((step, metrics)),
            self.warnings.append,
            lambda: "enough" if self.rows and self.rows[-1][0] >= self.stop_after else "",
            self.saved.append,
            self.check_current_attempt,
        )

    def check_current_attempt(self) -> None:
        if self.is_superseded:
            raise SupersededWorkerError("other workers")

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.rows]


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    dataset = make_dataset(str(tmp_path / "data"))
    config = teacher_config(str(tmp_path), dataset.uri, **{"loop.log_every": 1, "loop.checkpoint_every": EVERY})
    stage, card = train_teacher.STAGE, train_teacher.make_card(config, {}, dataset).to_dict()
    parents = {"dataset": "0" * 16}
    scratch, artifact = str(tmp_path / "scratch"), str(tmp_path / "artifact")
    return TrainSpec(
        stage, config, {}, "a" * 16, dataset.uri, scratch, artifact, parents, row_flops=row_flops(config, card)
    )


@pytest.fixture
def run() -> Callable[..., Driver]:
    def run_worker(spec: TrainSpec, driver: Driver | None = None) -> Driver:
        driver = driver or Driver()
        parallel = make_single_process(spec.config.loop)
        train_worker(spec, parallel, driver.callbacks(), reader=read_with_threads)
        return driver

    return run_worker


def list_checkpoints(spec: TrainSpec) -> list[int]:
    names = open_folder(spec.scratch_uri).child(CHECKPOINTS).list_folders()
    return [int(name.rpartition("-")[2]) for name in names]


def read_weights(spec: TrainSpec) -> bytes:
    folder = open_folder(spec.artifact_uri)
    return read_file(folder, WEIGHTS, read_artifact(folder).manifest)


def change(spec: TrainSpec, folder: str, **keys: Any) -> TrainSpec:
    config: TrainingStage = spec.config
    loop = config.loop.model_copy(update=keys)
    return replace(
        spec,
        config=config.model_copy(update={"loop": loop}),
        scratch_uri=f"{spec.scratch_uri}-{folder}",
        artifact_uri=f"{spec.artifact_uri}-{folder}",
    )


def test_a_run_reports_its_start_and_every_row_and_commits_its_average(spec: TrainSpec, run: Callable[..., Driver]):
    driver = run(spec)
    assert driver.steps == [0, *range(1, STEPS + 1)]
    assert driver.rows[0] == (0, {})
    assert all({"dsm_loss", "grad_norm", "step_seconds"} <= metrics.keys() for _, metrics in driver.rows[1:])
    assert driver.saved == [3, 6, 8]
    assert list(read_rows(open_folder(spec.scratch_uri))) == driver.rows[1:]
    artifact = read_artifact(open_folder(spec.artifact_uri))
    assert (artifact.id, artifact.kind, artifact.manifest["parents"]) == ("a" * 16, "teacher", spec.parent_ids)
    network, card = load_model(open_folder(spec.artifact_uri), artifact.manifest)
    assert card == spec.make_card(open_dataset(spec.dataset_uri))
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_tf32_is_set_for_a_run_and_as_before_after_it(spec: TrainSpec, tf32: bool, before: bool):
    """Also if the run fails; it is a setting of the process, and not part of the run id."""
    seen: list[bool] = []

    def report(step: int, metrics: dict[str, float]) -> None:
        if metrics:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
        if step == 2:
            raise OSError("the driver is gone")

    set_up = change(spec, "tf32", tf32=tf32)
    callbacks = replace(Driver().callbacks(), report=report)
    with allow_tf32(before):
        with pytest.raises(OSError, match="gone"):
            train_worker(set_up, make_single_process(set_up.config.loop), callbacks, reader=read_with_threads)
        assert torch.backends.cuda.matmul.allow_tf32 is before
    assert not torch.backends.cuda.matmul.allow_tf32
    assert seen == [tf32, tf32]
    assert "loop" in NOT_IN_RUN_ID


def test_a_run_stopped_on_request_commits_nothing_and_resumes_with_the_same_bits(
    spec: TrainSpec, run: Callable[..., Driver]
):
    whole = change(spec, "whole")
    run(whole)
    first = Driver(stop_after=4)
    with pytest.raises(StoppedError, match="enough"):
        run(spec, first)
    assert first.steps[-1] == first.saved[-1] == list_checkpoints(spec)[-1]
    assert not Path(spec.artifact_uri).exists()
    again = run(spec)
    assert again.rows[0] == (first.steps[-1], {})
    assert again.steps[-1] == STEPS
    assert read_weights(spec) == read_weights(whole)


def test_a_worker_that_was_replaced_commits_nothing(spec: TrainSpec, run: Callable[..., Driver]):
    with pytest.raises(SupersededWorkerError):
        run(spec, Driver(is_superseded=True))
    assert not Path(spec.artifact_uri).exists()
    assert list_checkpoints(spec) == []


def test_checkpoints_without_a_manifest_are_deleted_and_ignored(spec: TrainSpec, run: Callable[..., Driver]):
    incomplete = Path(spec.scratch_uri, CHECKPOINTS, "step-000000007")
    incomplete.mkdir(parents=True)
    (incomplete / "state.json").write_text("{}")
    assert run(spec).rows[0] == (0, {})
    assert 7 not in list_checkpoints(spec)


@pytest.mark.parametrize(
    ("keys", "kept"), [({"keep_checkpoints": 1}, [8]), ({"keep_checkpoints": 1, "keep_every": 3}, [3, 6, 8])]
)
def test_as_many_checkpoints_are_kept_as_wanted(
    spec: TrainSpec, run: Callable[..., Driver], keys: dict[str, int], kept: list[int]
):
    changed = change(spec, "kept", **keys)
    run(changed)
    assert list_checkpoints(changed) == kept


def test_rows_of_skipped_shards_are_left_out_and_remembered(spec: TrainSpec, run: Callable[..., Driver]):
    skipping = replace(change(spec, "skipping"), skipped=("shards/1.parquet",))
    run(skipping)
    assert read_artifact(open_folder(skipping.artifact_uri)).manifest["skipped_shards"] == ["shards/1.parquet"]


def test_the_state_of_other_random_numbers_does_not_matter(spec: TrainSpec, run: Callable[..., Driver]):
    one, other = change(spec, "one"), change(spec, "other")
    run(one)
    torch.rand(7)
    run(other)
    assert read_weights(one) == read_weights(other)
