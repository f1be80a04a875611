"""What a trial takes of a cluster, and how many fit: known before anything heavy is imported.

Ray Tune waits without a word for resources that never come, so what cannot be placed is refused here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.session import (
    READER_CPUS,
    ClusterError,
    joined_address,
    least_workers,
    training_cpus,
)
from presto_core.config.sections import ClusterConfig

JUDGE_CPUS = 0.1  # reserved for what validates; it sleeps but for some seconds a validation
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
        cpus = training_cpus(config) + STARTER_CPUS
        node = config.cpus_per_worker + READER_CPUS
        return Needs(cpus, least_workers(config) * config.gpus_per_worker, node, config.gpus_per_worker)

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
        require_room(Needs.of(config), [{"CPU": cores, "GPU": _gpus_here(config)}])


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


def beside_this_process() -> Any:
    """Where an actor is placed so that no other node's death ends it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _gpus_here(config: ClusterConfig) -> float:
    if not config.gpus_per_worker:
        return 0.0
    import torch

    return float(torch.cuda.device_count())
