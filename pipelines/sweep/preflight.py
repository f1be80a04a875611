"""Before a sweep's first trial: what its trials start from fits together, and they can tell MLflow how they do."""

from __future__ import annotations

from pipelines.data.dataset import open_dataset
from pipelines.evaluate.validator import require_judgeable
from pipelines.registry.compatibility import require_layers_of, require_teacher_of
from pipelines.sweep.plan import Plan
from pipelines.tracking.client import Tracker
from presto_core.artifacts.manifest import Artifact
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import (
    LayersStage,
    StepsStage,
    TrainingStage,
)
from presto_core.errors import UserError
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.table import network_depth


def require_parents(plan: Plan, parents: dict[str, Artifact]) -> None:
    """Data set, base and layer-distilled model must fit each other, the validation, and the tables of the space.

    Raises:
        UserError: they do not.
    """
    dataset = open_dataset(parents["dataset"].uri)
    require_judgeable(plan.base.validation, dataset)
    if "teacher" not in parents:
        return
    require_teacher_of(parents["teacher"], parents["dataset"])
    if "layers" in parents:
        require_layers_of(parents["layers"], parents["teacher"])
    depth = network_depth(parents["teacher"].manifest["model"]["network"])
    budgets = any(key.endswith(".budget") for key in plan.space)
    if budgets and depth != plan.depth:
        raise UserError(
            f"the space's layer budgets are made for {plan.depth} blocks and teacher {parents['teacher'].id} has "
            f"{depth}; set sweep.depth={depth}"
        )
    for proposal in plan.proposals() if budgets and plan.sweep.sweep.search != "optuna" else ():
        _require_budget(plan.config(proposal.settings), depth)


def _require_budget(config: TrainingStage, depth: int) -> None:
    """A trial's table must fit the network; a worker would find that out only later."""
    wanted = None
    if isinstance(config, StepsStage):
        wanted = config.steps.budget
    elif isinstance(config, LayersStage):
        wanted = config.layers.budget
    if wanted:
        LayerBudget.over(KarrasNoise(), wanted, depth=depth)


def estimate(plan: Plan, tracker: Tracker, trials: int, at_once: int) -> str:
    """What the search would take if no trial were stopped, at the pace of the newest run of this stage."""
    stage, base = plan.sweep.sweep.stage, plan.base
    steps = int(base.derived().get("total_steps", base.updates))
    found = tracker.client.search_runs(
        [tracker.experiment_id],
        f"tags.`presto.stage` = '{stage}' and metrics.step_seconds > 0",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    what = f"sweep: {trials} trials of {steps} steps, {at_once} at a time"
    if not found:
        return f"{what}; how long a step takes is not known yet"
    seconds = float(found[0].data.metrics["step_seconds"])
    minutes = trials * steps * seconds / at_once / 60
    return f"{what}, at most {minutes:.0f} min and what validation takes, at {seconds:.2g} s a step as in the last run"


def require_reachable_record(tracking_uri: str, nodes: int) -> None:
    """Trials on other nodes must reach MLflow.

    Raises:
        UserError: it is a file of this machine, and there are other nodes.
    """
    if nodes > 1 and tracking_uri.startswith("sqlite"):
        raise UserError(
            f"the sweep would run on {nodes} nodes and MLflow is a file of this one; set tracking.uri to a server"
        )
