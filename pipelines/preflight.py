"""Before a sweep's first trial: what one needs, whether there is that much, and what all of them will cost.

Ray Tune waits without a word for resources that never come, so what cannot be placed is refused here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipelines.cluster import READER_CPUS, ClusterError, joined_address, training_cpus
from pipelines.dataset import open_dataset
from pipelines.judge import JUDGE_CPUS, require_judgeable
from pipelines.lineage import require_layers_of, require_teacher_of
from pipelines.sweep_plan import Plan
from presto_core.config.errors import UserError
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import LayersStage, StepsStage, TrainingStage
from presto_core.config.sections import ClusterConfig
from presto_core.diffusion.noise import noise_from_config
from presto_core.networks.layer_budget import LayerBudget
from presto_core.registry.manifest import Artifact

STARTER_CPUS = 0.01  # of a trial whose workers Ray Train places; with more, trials and their workers would lock up


@dataclass(frozen=True)
class Needs:
    """What one trial takes of a cluster, and the largest piece of it that must fit one node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float

    @staticmethod
    def of(config: ClusterConfig) -> Needs:
        if config.num_workers == 0:
            return Needs(config.cpus_per_worker, config.gpus_per_worker, config.cpus_per_worker, config.gpus_per_worker)
        workers = max(config.min_workers or config.num_workers, 1)
        cpus = training_cpus(config) + STARTER_CPUS
        node = config.cpus_per_worker + READER_CPUS
        return Needs(cpus, workers * config.gpus_per_worker, node, config.gpus_per_worker)

    @staticmethod
    def for_tune(config: ClusterConfig) -> dict[str, float]:
        """What Tune itself reserves for a trial: a worker in the trial's process, or next to nothing."""
        if config.num_workers:
            return {"CPU": STARTER_CPUS}
        return {"CPU": config.cpus_per_worker, **({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})}


def require_room_here(config: ClusterConfig) -> None:
    """Where a command starts its own Ray: one trial and the judge must fit this machine's cores, known at once.

    Raises:
        ClusterError: they do not.
    """
    if not joined_address(config):
        cores = float(config.cpus or os.cpu_count() or 1)
        require_room(Needs.of(config), [{"CPU": cores, "GPU": _gpus_here()}])


def require_room(needs: Needs, nodes: list[dict[str, Any]]) -> None:
    """One trial and the judge must fit these nodes.

    Raises:
        ClusterError: they do not; names what is missing.
    """
    for name, key, all_of_it, piece in (
        ("CPUs", "CPU", needs.cpus + JUDGE_CPUS, needs.node_cpus),
        ("GPUs", "GPU", needs.gpus, needs.node_gpus),
    ):
        have, most = sum(n.get(key, 0.0) for n in nodes), max((n.get(key, 0.0) for n in nodes), default=0.0)
        if all_of_it > have + 1e-6 or piece > most + 1e-6:
            short = (
                f"has {have:g}" if all_of_it > have + 1e-6 else f"has no node with {piece:g} (the largest: {most:g})"
            )
            raise ClusterError(
                f"a trial needs {all_of_it:g} {name} with its validation and the cluster {short}, so no trial would "
                "ever start; lower cluster.num_workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
            )


def concurrent(needs: Needs, nodes: list[dict[str, Any]], *, most: int) -> int:
    """Trials that fit at a time; `most` of them, where that is not 0."""
    have = {key: sum(n.get(key, 0.0) for n in nodes) for key in ("CPU", "GPU")}
    fit = [int((have["CPU"] - JUDGE_CPUS + 1e-6) // needs.cpus)]
    if needs.gpus:
        fit.append(int((have["GPU"] + 1e-6) // needs.gpus))
    return max(1, min([*fit, most] if most else fit))


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
    depth = parents["teacher"].manifest["model"]["network"]["depth"]
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
        LayerBudget.over(noise_from_config(KarrasNoise()), wanted, depth=depth)


def require_reachable_record(tracking_uri: str, nodes: int) -> None:
    """Trials on other nodes must reach MLflow.

    Raises:
        UserError: it is a file of this machine, and there are other nodes.
    """
    if nodes > 1 and tracking_uri.startswith("sqlite"):
        raise UserError(
            f"the sweep would run on {nodes} nodes and MLflow is a file of this one; set tracking.uri to a server"
        )


def _gpus_here() -> float:
    import torch

    return float(torch.cuda.device_count())
