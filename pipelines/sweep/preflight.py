"""Checks before a sweep's first trial: packages, inputs that fit together, and MLflow within reach of all nodes."""

from __future__ import annotations

from pipelines.data.dataset import open_dataset
from pipelines.evaluate.validator import check_validatable
from pipelines.registry.compatibility import check_layers_match_teacher, check_teacher_matches_dataset
from pipelines.sweep.plan import SweepPlan
from pipelines.tracking.client import Tracker
from presto_core.artifacts.manifest import Artifact
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.stage import TrainingStage
from presto_core.errors import UserError
from presto_core.extras import check_extra
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.table import network_depth


def check_packages() -> None:
    """Check that the packages that a sweep's end needs are installed: importance and plots come after all trials.

    Raises:
        MissingPackageError: one is not installed.
    """
    check_extra("sweep", "presto sweep run")
    check_extra("plots", "a sweep's report")


def check_parents(plan: SweepPlan, parents: dict[str, Artifact]) -> None:
    """Check that data set, teacher, layer-distilled model, validation and the space's layer budgets fit together.

    Raises:
        UserError: they do not.
    """
    dataset = open_dataset(parents["dataset"].uri)
    check_validatable(plan.base.validation, dataset)
    if "teacher" not in parents:
        return
    check_teacher_matches_dataset(parents["teacher"], parents["dataset"])
    if "layers" in parents:
        check_layers_match_teacher(parents["layers"], parents["teacher"])
    depth = network_depth(parents["teacher"].manifest["model"]["network"])
    budgets = any(key.endswith(".budget") for key in plan.space)
    if budgets and depth != plan.depth:
        raise UserError(
            f"the space's layer budgets are made for {plan.depth} blocks and teacher {parents['teacher'].id} has "
            f"{depth}; set sweep.depth={depth}"
        )
    for proposal in plan.iter_proposals() if budgets and plan.sweep.sweep.search != "optuna" else ():
        _check_budget(plan.make_config(proposal.settings), depth)


def _check_budget(config: TrainingStage, depth: int) -> None:
    """Check that a trial's layer budget fits the network; a worker would find out only later."""
    budget = None
    if isinstance(config, StepsStage):
        budget = config.steps.budget
    elif isinstance(config, LayersStage):
        budget = config.layers.budget
    if budget:
        LayerBudget.from_distribution(KarrasNoise(), budget, depth=depth)


def estimate_duration(plan: SweepPlan, tracker: Tracker, trials: int, max_concurrent: int) -> str:
    """Describe how long the search takes without early stopping, at the pace of the newest run of this stage."""
    stage, base = plan.sweep.sweep.stage, plan.base
    steps = base.total_steps
    runs = tracker.client.search_runs(
        [tracker.experiment_id],
        f"tags.`presto.stage` = '{stage}' and metrics.step_seconds > 0",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    summary = f"sweep: {trials} trials of {steps} steps, {max_concurrent} at a time"
    if not runs:
        return f"{summary}; the time per step is not known yet"
    seconds = float(runs[0].data.metrics["step_seconds"])
    minutes = trials * steps * seconds / max_concurrent / 60
    return f"{summary}, at most {minutes:.0f} min plus validation, at {seconds:.2g} s per step as in the last run"


def check_mlflow_reachable(tracking_uri: str, nodes: int) -> None:
    """Check that trials on other nodes can reach MLflow.

    Raises:
        UserError: it is a file on this machine, and there are other nodes.
    """
    if nodes > 1 and tracking_uri.startswith("sqlite"):
        raise UserError(
            f"the sweep would run on {nodes} nodes and MLflow is a file on this one; set tracking.uri to a server"
        )
