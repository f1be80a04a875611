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
    cluster_address,
    min_workers,
    training_cpus,
)
from presto_core.config.sections import ClusterConfig

VALIDATOR_CPUS = 0.1  # reserved for what validates; it sleeps but for some seconds a validation
STARTER_CPUS = 0.01  # of a trial whose workers Ray Train places; with more, trials and their workers would lock up


@dataclass(frozen=True)
class TrialResources:
    """What one trial takes of a cluster, and the largest piece of it that must fit one node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float

    @staticmethod
    def from_cluster_config(config: ClusterConfig) -> TrialResources:
        if config.num_workers == 0:
            return TrialResources(
                config.cpus_per_worker, config.gpus_per_worker, config.cpus_per_worker, config.gpus_per_worker
            )
        cpus = training_cpus(config) + STARTER_CPUS
        node = config.cpus_per_worker + READER_CPUS
        return TrialResources(cpus, min_workers(config) * config.gpus_per_worker, node, config.gpus_per_worker)

    @staticmethod
    def tune_resources(config: ClusterConfig) -> dict[str, float]:
        """What Tune itself reserves for a trial: a worker in the trial's process, or next to nothing."""
        if config.num_workers:
            return {"CPU": STARTER_CPUS}
        return {"CPU": config.cpus_per_worker, **({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})}


def check_fits_locally(config: ClusterConfig) -> None:
    """Where a command starts its own Ray: one trial and the judge must fit this machine's cores, known at once.

    Raises:
        ClusterError: they do not.
    """
    if not cluster_address(config):
        cores = float(config.cpus or os.cpu_count() or 1)
        check_fits(TrialResources.from_cluster_config(config), [{"CPU": cores, "GPU": _count_local_gpus(config)}])


def check_fits(resources: TrialResources, nodes: list[dict[str, Any]]) -> None:
    """One trial and the judge must fit these nodes.

    Raises:
        ClusterError: they do not; names what is missing.
    """
    for name, key, total, per_node in (
        ("CPUs", "CPU", resources.cpus + VALIDATOR_CPUS, resources.node_cpus),
        ("GPUs", "GPU", resources.gpus, resources.node_gpus),
    ):
        available, largest = sum(n.get(key, 0.0) for n in nodes), max((n.get(key, 0.0) for n in nodes), default=0.0)
        if total > available + 1e-6 or per_node > largest + 1e-6:
            shortage = (
                f"has {available:g}"
                if total > available + 1e-6
                else f"has no node with {per_node:g} (the largest: {largest:g})"
            )
            raise ClusterError(
                f"a trial needs {total:g} {name} with its validation and the cluster {shortage}, so no trial would "
                "ever start; lower cluster.num_workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
            )


def max_concurrent_trials(resources: TrialResources, nodes: list[dict[str, Any]], *, limit: int) -> int:
    """Trials that fit at a time; `most` of them, where that is not 0."""
    available = {key: sum(n.get(key, 0.0) for n in nodes) for key in ("CPU", "GPU")}
    fit = [int((available["CPU"] - VALIDATOR_CPUS + 1e-6) // resources.cpus)]
    if resources.gpus:
        fit.append(int((available["GPU"] + 1e-6) // resources.gpus))
    return max(1, min([*fit, limit] if limit else fit))


def same_node_affinity() -> Any:
    """Where an actor is placed so that no other node's death ends it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _count_local_gpus(config: ClusterConfig) -> float:
    if not config.gpus_per_worker:
        return 0.0
    import torch

    return float(torch.cuda.device_count())
