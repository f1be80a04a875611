"""One trial of a sweep, in a process that Ray Tune keeps for several: the stage's own code, told to end if it is lost.

Where `cluster.num_workers=0`, that process trains, and no worker group has to be started for it; else the stage starts
its Ray Train workers as it always does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

from pipelines.cluster.shutdown import StoppedError
from pipelines.evaluate.validator import judge_of
from pipelines.storage.node_cache import near_copy
from pipelines.sweep.environment import ENVIRONMENT, PATIENCE
from pipelines.sweep.plan import Plan
from pipelines.train.resume import Resume
from pipelines.train.sweep_hook import Trial
from pipelines.train.validation import PREFIX, UPDATE
from presto_core.artifacts.manifest import Artifact
from presto_core.config.schema import TrainingStage
from presto_core.errors import UserError

MODULES = {"train-teacher": "train_teacher", "distill-layers": "distill_layers", "distill-steps": "distill_steps"}
STOPPED_EARLY = "the sweep stopped this trial early"
Metrics = dict[str, float]


@dataclass
class Reporter:
    """Between a run and Ray Tune: hands on validations, once each, and hears whether the trial should go on.

    Attributes:
        send: to Tune; raises SystemExit where the trial is to end.
        known: updates that the sweep has heard of in an earlier life.
        last: the last update, whose row is handed on when the run is done: nobody is stopped then.
        every: steps between two rows of training metrics.
    """

    send: Callable[[dict[str, Any]], None]
    known: set[int]
    last: int
    every: int
    stopped: bool = False
    steps: int = 0
    logged: int = 0
    trained_s: float = 0.0
    judged_s: float = 0.0
    held_back: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def tell(self, step: int, metrics: Metrics) -> str:
        """A row of the run; answers why it should end, or nothing."""
        if "step_seconds" in metrics:
            since = step - (self.logged or max(step - self.every, 0))
            self.trained_s += metrics["step_seconds"] * max(since, 0)
            self.logged = step
        self.steps = max(self.steps, step)
        if UPDATE in metrics and int(metrics[UPDATE]) not in self.known:
            self.known.add(int(metrics[UPDATE]))
            self.judged_s += metrics.get(f"{PREFIX}seconds", 0.0)
            result = {k.removeprefix(PREFIX): v for k, v in metrics.items()} | {"row": metrics}
            if int(metrics[UPDATE]) == self.last:
                self.held_back = result
            else:
                self._send(result)
        return STOPPED_EARLY if self.stopped else ""

    def end(self, **result: Any) -> None:
        """The last word of a trial."""
        self._send(self.held_back | result)

    @property
    def costs(self) -> dict[str, float]:
        return {
            "steps": self.steps,
            "wall_s": time.monotonic() - self.began,
            "trained_s": self.trained_s,
            "judged_s": self.judged_s,
        }

    def _send(self, result: dict[str, Any]) -> None:
        if self.stopped:
            return
        try:
            self.send(result | {"costs": self.costs})
        except SystemExit:  # how Tune ends a trial that reports; the run ends in order instead, with its state saved
            self.stopped = True


class EndsInOrder:
    """Where no other trial follows in a process, Tune frees what it holds at once: here, when the run has ended.

    Else the last trials that are stopped would lose their state, and their workers' places stay taken.
    """

    at_work: ClassVar[threading.Thread | None] = None

    def cleanup(self) -> None:
        """Of Ray Tune's Trainable, called when its process is given up."""
        super().cleanup()  # type: ignore[misc]  # tells the trial, and does not wait
        if EndsInOrder.at_work:
            EndsInOrder.at_work.join(float(os.environ[PATIENCE]))


def run_trial(given: dict[str, Any], *, plan: Plan) -> None:
    """What Ray Tune calls.

    Args:
        given: `settings` of the trial, and the updates `known` of it.
    """
    from ray import tune

    EndsInOrder.at_work = threading.current_thread()
    os.environ.setdefault(PATIENCE, ENVIRONMENT[PATIENCE])  # a cluster that runs already does not have the command's
    config = plan.config(given["settings"])
    reporter = Reporter(tune.report, set(given["known"]) - {config.updates}, config.updates, config.loop.log_every)
    stage = import_module(f"pipelines.stages.{MODULES[plan.sweep.sweep.stage]}")
    try:
        placed = _near(config)
        artifact = stage.run(placed, Resume(), Trial(reporter.tell, {"mlflow.parentRunId": given["parent"]}))
        for step, metrics in _validations(placed, artifact):
            reporter.tell(step, metrics)
        reporter.end(artifact=artifact.id)
    except StoppedError as error:
        if not reporter.stopped:  # told by someone else: it goes on with the sweep
            reporter.end(interrupted=str(error))
    except UserError as error:
        reporter.end(failed=str(error))
    except Exception as error:  # settings that some code cannot work with must not end the sweep
        reporter.end(failed=f"{type(error).__name__}: {error}")
    if reporter.stopped:
        raise SystemExit(0)  # what Tune waits for before it gives this process another trial


setattr(run_trial, "__mixins__", (EndsInOrder,))  # noqa: B010  # which Ray Tune looks for


def _near(config: TrainingStage) -> TrainingStage:
    """The configuration with what it reads copied to this node."""
    names = {role: near_copy(uri) for role, uri in config.references().items()}
    return config.model_copy(update={"inputs": config.inputs.model_copy(update=names)})


def _validations(config: TrainingStage, artifact: Artifact) -> list[tuple[int, Metrics]]:
    """What was said of a run that is done: the rows it keeps; where it was not validated like this, of its result."""
    said = artifact.manifest.get("validation", {})
    if said.get("judged") == config.validation.judged_alike():
        return [(step, dict(metrics)) for step, metrics in said["rows"]]
    dataset = config.references()["dataset"]
    found = judge_of(config.validation, dataset, torch_threads=config.cluster.torch_threads)(artifact.uri)
    steps = int(config.derived().get("total_steps", config.updates))
    return [(steps, {UPDATE: float(config.updates)} | {f"{PREFIX}{name}": value for name, value in found.items()})]
