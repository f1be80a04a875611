"""Training runs as real processes for fault injection: their outcome, and the table of measured losses."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pipelines.stages import distill_layers, distill_steps, train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.run_layout import CHECKPOINTS
from presto_core.config.loader import load_config
from presto_core.config.schema import stage_configs
from presto_core.config.sections import TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.training.checkpoint import TENSORS
from presto_core.training.checkpoint_folders import list_checkpoints
from tests.pipelines.test_training_stages import TINY, weights_of
from tests.support.checkpoints import is_time
from tests.support.processes import PATIENCE_S, Attempt, wait_for

# the command line, but printing a progress line per log row, so that a test knows which step was reached; and none
# while it waits for the first one, of which there would be thousands
PRESTO = (
    "-c",
    (
        "from pipelines import console; from infra.cli import main as cli; "
        "console.LINE_EVERY_S, console.FIRST_LINE_S = 0.0, 3600.0; cli.main()"
    ),
)
COMMANDS = {"teacher": "train-teacher", "L": "distill-layers", "S": "distill-steps", "LS": "distill-steps"}
RUN: dict[str, Any] = {
    "train-teacher": train_teacher.run,
    "distill-layers": distill_layers.run,
    "distill-steps": distill_steps.run,
}
EVERY = 4  # steps between two checkpoints
SAME = "same bits, same series"
Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Parents:
    """Artifacts that every run starts from: their URIs."""

    dataset: str
    teacher: str = ""
    layers: str = ""


@dataclass
class Training:
    """One run of a stage in its own folder, with its own store and its own MLflow.

    Attributes:
        stage: teacher, L, S or LS.
        cwd: working directory.
        settings: additional dotted keys.
        attempts: processes started so far.
    """

    stage: str
    cwd: Path
    parents: Parents
    steps: int = 24
    workers: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def command(self) -> str:
        return COMMANDS[self.stage]

    @property
    def keys(self) -> dict[str, Any]:
        """Settings that define the run, without its storage root."""
        keys: dict[str, Any] = {"loop.checkpoint_every": EVERY, "loop.log_every": 1, "seed": 7}
        keys |= {"cluster.num_workers": self.workers, "cluster.cpus_per_worker": 0.7, "cluster.max_failures": 20}
        keys |= {"cluster.object_store_mb": 100, "inputs.dataset": self.parents.dataset}
        if self.stage == "teacher":
            small = {k: v for k, v in TINY.items() if k.startswith("network")}
            return keys | small | {"teacher.steps": self.steps, "teacher.global_batch_size": 4} | self.settings
        keys |= {"inputs.teacher": self.parents.teacher}
        if self.stage == "L":
            return keys | {"layers.steps": self.steps, "layers.global_batch_size": 4} | self.settings
        keys |= {"steps.generator_updates": self.steps // 3, "steps.fake_updates_per_generator_update": 2}
        keys |= {"steps.global_batch_size": 4, "steps.gan.head_layers": 1}
        return keys | ({"inputs.layers": self.parents.layers} if self.stage == "LS" else {}) | self.settings

    @property
    def root(self) -> str:
        return str(self.settings.get("storage.root", self.cwd / "store"))

    @property
    def config(self) -> StageConfig:
        return load_config(stage_configs()[self.command], None, {"storage.root": self.root} | self.keys)

    def begin(self, begin: Callable[..., Attempt]) -> Attempt:
        """Start another attempt of the run as a process."""
        args = [f"{key}={value}" for key, value in ({"storage.root": self.root} | self.keys).items()]
        self.cwd.mkdir(exist_ok=True)
        self.attempts.append(begin([sys.executable, *PRESTO, self.command, *args], self.cwd, self.environment))
        return self.attempts[-1]

    def finish_in_process(self) -> Artifact:
        """Run the same command in this process, where nothing kills it."""
        self.cwd.mkdir(exist_ok=True)
        os.chdir(self.cwd)
        return RUN[self.command](self.config)

    def checkpoints(self) -> list[int]:
        """Return the steps of the checkpoints, finished or not."""
        runs = open_folder(self.root).child("runs")
        names = [name for run in runs.list_folders() for name in list_checkpoints(runs.child(run).child(CHECKPOINTS))]
        return sorted(name.step for name in names)

    @property
    def newest_checkpoint(self) -> Path:
        (checkpoints,) = Path(self.root).glob(f"runs/*/{CHECKPOINTS}")
        return checkpoints / str(list_checkpoints(open_folder(str(checkpoints)))[-1])

    def weights_are_finite(self) -> bool:
        return all(tensor.isfinite().all() for tensor in load_file(self.newest_checkpoint / TENSORS).values())

    def outcome(self) -> tuple[str, Series]:
        """Return the hash of all weights, and every metric except times of the only MLflow run, by step."""
        artifacts = open_folder(self.root).child("artifacts")
        (name,) = artifacts.list_folders()
        artifact = read_artifact(artifacts.child(name))
        os.chdir(self.cwd)
        tracker = open_tracker(TrackingConfig(uri=self.settings.get("tracking.uri", "")))
        (run,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{name}'")
        assert run.info.status == "FINISHED"
        names = sorted(name for name in run.data.metrics if not is_time(name) and not name.startswith("system/"))
        histories = {name: tracker.client.get_metric_history(run.info.run_id, name) for name in names}
        return weights_of(artifact), {name: [(p.step, p.value) for p in ps] for name, ps in histories.items()}


def last_step(attempt: Attempt) -> int:
    """Return the last step that an attempt printed."""
    steps = re.findall(r": (\d+)/\d+", attempt.stderr)
    return int(steps[-1]) if steps else 0


def resume_step(attempt: Attempt) -> int:
    """Return the step that an attempt, or the last restart of its workers, resumed at; 0 if it did not resume."""
    steps = re.findall(r"resumed at step (\d+)", attempt.stderr)
    return int(steps[-1]) if steps else 0


def count_lost_steps(*attempts: Attempt) -> int:
    """Return the most printed steps that one resume repeated, over all attempts of a run."""
    most, logged = 0, 0
    for resumed, step in re.findall(
        r"resumed at step (\d+)|: (\d+)/\d+", "".join(attempt.stderr for attempt in attempts)
    ):
        most = max(most, logged - int(resumed)) if resumed else most
        logged = int(resumed or step)
    return most


def wait_until(attempt: Attempt, step: int) -> bool:
    """Wait for a step; return False if the attempt ended before."""
    wait_for(lambda: not attempt.is_running or last_step(attempt) >= step, PATIENCE_S)
    return attempt.is_running


# --- the table


@dataclass(frozen=True)
class FaultRow:
    """A row of the table: the most steps that any of these faults cost, and the outcome of the run."""

    fault: str
    stage: str
    workers: int
    kills: int
    lost: int
    outcome: str


TABLE: list[FaultRow] = []
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"


def write_table(path: Path) -> None:
    """Write the table between the two marks of a page."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = ["| fault | stage | workers | times | most steps lost | outcome |", "|---|---|---|---|---|---|"]
    for line in TABLE:
        workers = str(line.workers) if line.workers else "in process"
        rows.append(f"| {line.fault} | {line.stage} | {workers} | {line.kills} | {line.lost} | {line.outcome} |")
    path.write_text(before + BEGIN + "\n" + "\n".join(rows) + "\n\n" + END + after)
