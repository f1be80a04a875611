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
from typing import Any, ClassVar

from pipelines.cluster.shutdown import StoppedError
from pipelines.evaluate.validator import get_validator
from pipelines.stages.table import STAGES
from pipelines.storage.node_cache import cache_on_node
from pipelines.sweep.environment import ENVIRONMENT, STOP_TIMEOUT_VAR
from pipelines.sweep.plan import SweepPlan
from pipelines.train.resume import ResumeOptions
from pipelines.train.sweep_hook import Trial
from pipelines.train.validation import PREFIX, UPDATE, rename_former_row
from presto_core.artifacts.manifest import Artifact
from presto_core.config.stage import TrainingStage
from presto_core.errors import UserError

STOPPED_EARLY = "the sweep stopped this trial early"
Metrics = dict[str, float]


@dataclass
class TrialReporter:
    """Between a run and Ray Tune: hands on validations, once each, and hears whether the trial should go on.

    Attributes:
        send: to Tune; raises SystemExit where the trial is to end.
        known: updates that the sweep has heard of in an earlier life.
        last: the last update, whose row is handed on when the run is done: nobody is stopped then.
        every: steps between two rows of training metrics.
    """

    send: Callable[[dict[str, Any]], None]
    reported_updates: set[int]
    last_update: int
    log_every: int
    stopped: bool = False
    steps: int = 0
    last_logged_step: int = 0
    trained_s: float = 0.0
    validation_s: float = 0.0
    pending_result: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def on_row(self, step: int, metrics: Metrics) -> str:
        """A row of the run; answers why it should end, or nothing."""
        if "step_seconds" in metrics:
            num_steps = step - (self.last_logged_step or max(step - self.log_every, 0))
            self.trained_s += metrics["step_seconds"] * max(num_steps, 0)
            self.last_logged_step = step
        self.steps = max(self.steps, step)
        if UPDATE in metrics and int(metrics[UPDATE]) not in self.reported_updates:
            self.reported_updates.add(int(metrics[UPDATE]))
            self.validation_s += metrics.get(f"{PREFIX}seconds", 0.0)
            result = {k.removeprefix(PREFIX): v for k, v in metrics.items()} | {"row": metrics}
            if int(metrics[UPDATE]) == self.last_update:
                self.pending_result = result
            else:
                self._send(result)
        return STOPPED_EARLY if self.stopped else ""

    def finish(self, **result: Any) -> None:
        """The last word of a trial."""
        self._send(self.pending_result | result)

    @property
    def costs(self) -> dict[str, float]:
        return {
            "steps": self.steps,
            "wall_s": time.monotonic() - self.started,
            "trained_s": self.trained_s,
            "judged_s": self.validation_s,
        }

    def _send(self, result: dict[str, Any]) -> None:
        if self.stopped:
            return
        try:
            self.send(result | {"costs": self.costs})
        except SystemExit:  # how Tune ends a trial that reports; the run ends in order instead, with its state saved
            self.stopped = True


class JoinOnCleanup:
    """Where no other trial follows in a process, Tune frees what it holds at once: here, when the run has ended.

    Else the last trials that are stopped would lose their state, and their workers' places stay taken.
    """

    trial_thread: ClassVar[threading.Thread | None] = None

    def cleanup(self) -> None:
        """Of Ray Tune's Trainable, called when its process is given up."""
        super().cleanup()  # type: ignore[misc]  # tells the trial, and does not wait
        if JoinOnCleanup.trial_thread:
            JoinOnCleanup.trial_thread.join(float(os.environ[STOP_TIMEOUT_VAR]))


def run_trial(params: dict[str, Any], *, plan: SweepPlan) -> None:
    """What Ray Tune calls.

    Args:
        given: `settings` of the trial, and the updates `known` of it.
    """
    from ray import tune

    JoinOnCleanup.trial_thread = threading.current_thread()
    os.environ.setdefault(
        STOP_TIMEOUT_VAR, ENVIRONMENT[STOP_TIMEOUT_VAR]
    )  # a cluster that runs already does not have the command's
    config = plan.make_config(params["settings"])
    reporter = TrialReporter(
        tune.report, set(params["known"]) - {config.updates}, config.updates, config.loop.log_every
    )
    stage = STAGES[plan.sweep.sweep.stage]
    try:
        cached_config = _with_cached_inputs(config)
        artifact = stage.run(
            cached_config, ResumeOptions(), Trial(reporter.on_row, {"mlflow.parentRunId": params["parent"]})
        )
        for step, metrics in _read_validations(cached_config, artifact):
            reporter.on_row(step, metrics)
        reporter.finish(artifact=artifact.id)
    except StoppedError as error:
        if not reporter.stopped:  # told by someone else: it goes on with the sweep
            reporter.finish(interrupted=str(error))
    except UserError as error:
        reporter.finish(failed=str(error))
    except Exception as error:  # settings that some code cannot work with must not end the sweep
        reporter.finish(failed=f"{type(error).__name__}: {error}")
    if reporter.stopped:
        raise SystemExit(0)  # what Tune waits for before it gives this process another trial


setattr(run_trial, "__mixins__", (JoinOnCleanup,))  # noqa: B010  # which Ray Tune looks for


def _with_cached_inputs(config: TrainingStage) -> TrainingStage:
    """The configuration with what it reads copied to this node."""
    cached_uris = {role: cache_on_node(uri) for role, uri in config.references().items()}
    return config.model_copy(update={"inputs": config.inputs.model_copy(update=cached_uris)})


def _read_validations(config: TrainingStage, artifact: Artifact) -> list[tuple[int, Metrics]]:
    """What was said of a run that is done: the rows it keeps; where it was not validated like this, of its result."""
    validation = artifact.manifest.get("validation", {})
    if validation.get("judged") == config.validation.comparison_settings():
        return [(step, rename_former_row(metrics)) for step, metrics in validation["rows"]]
    dataset = config.references()["dataset"]
    distances = get_validator(config.validation, dataset, torch_threads=config.cluster.torch_threads)(artifact.uri)
    steps = config.total_steps
    return [(steps, {UPDATE: float(config.updates)} | {f"{PREFIX}{name}": value for name, value in distances.items()})]
