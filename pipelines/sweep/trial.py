"""One trial of a sweep, in a process that Ray Tune reuses: the stage's own code, stopped early if it is unpromising.

With `cluster.num_workers=0` that process trains; otherwise the stage starts its Ray Train workers as usual.
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
from presto_core.models.recorded_components import OwnFolders

STOPPED_EARLY = "the sweep stopped this trial early"
Metrics = dict[str, float]


@dataclass
class TrialReporter:
    """Reports validations of a run to Ray Tune, once each, and tells the run whether to stop.

    Attributes:
        send: to Tune; raises SystemExit if the trial should end.
        reported_updates: updates that an earlier attempt reported.
        last_update: its row is sent when the run is finished, since a finished trial is never stopped.
        log_every: steps between two rows of training metrics.
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
        """Take a row of the run; return why it should stop, or an empty string."""
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
        """Send the last result of a trial."""
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
    """Delays Tune's cleanup of a process until its run has ended.

    Tune cleans up at once if no other trial follows in the process: the last stopped trials would lose their state, and
    their workers' resources would stay reserved.
    """

    trial_thread: ClassVar[threading.Thread | None] = None

    def cleanup(self) -> None:
        """Override of Ray Tune's Trainable, called before its process ends."""
        super().cleanup()  # type: ignore[misc]  # notifies the trial without waiting
        if JoinOnCleanup.trial_thread:
            JoinOnCleanup.trial_thread.join(float(os.environ[STOP_TIMEOUT_VAR]))


def run_trial(params: dict[str, Any], *, plan: SweepPlan) -> None:
    """Run one trial; called by Ray Tune.

    Args:
        params: `settings` of the trial, the updates `known` from an earlier attempt, and MLflow's `parent` run.
    """
    from ray import tune

    JoinOnCleanup.trial_thread = threading.current_thread()
    # a cluster that was running before does not have the command's environment
    os.environ.setdefault(STOP_TIMEOUT_VAR, ENVIRONMENT[STOP_TIMEOUT_VAR])
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
        if not reporter.stopped:  # interrupted from outside: it resumes with the sweep
            reporter.finish(interrupted=str(error))
    except UserError as error:
        reporter.finish(failed=str(error))
    except Exception as error:  # a trial whose settings fail must not end the sweep
        reporter.finish(failed=f"{type(error).__name__}: {error}")
    if reporter.stopped:
        raise SystemExit(0)  # Tune waits for it before it reuses this process


setattr(run_trial, "__mixins__", (JoinOnCleanup,))  # noqa: B010  # Ray Tune reads it


def _with_cached_inputs(config: TrainingStage) -> TrainingStage:
    """The configuration with its inputs copied to this node."""
    cached_uris = {role: cache_on_node(uri) for role, uri in config.references().items()}
    return config.model_copy(update={"inputs": config.inputs.model_copy(update=cached_uris)})


def _read_validations(config: TrainingStage, artifact: Artifact) -> list[tuple[int, Metrics]]:
    """Validations of a finished run: its stored rows, or one of its result if it was validated differently."""
    validation = artifact.manifest.get("validation", {})
    if validation.get("judged") == config.validation.comparison_settings():
        return [(step, rename_former_row(metrics)) for step, metrics in validation["rows"]]
    dataset = config.references()["dataset"]
    own = OwnFolders.from_config(config.storage)
    distances = get_validator(config.validation, dataset, config.cluster, own)(artifact.uri)
    steps = config.total_steps
    return [(steps, {UPDATE: float(config.updates)} | {f"{PREFIX}{name}": value for name, value in distances.items()})]
