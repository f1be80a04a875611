"""Compute the resources of a sweep trial and check that they fit, before any heavy import.

Ray Tune waits silently for resources that never become available, so impossible requests are rejected here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.session import (
    READER_CPUS,
    ClusterError,
    cluster_address,
    count_workers,
    min_workers,
    training_cpus,
)
from presto_core.config.sections import ClusterConfig

VALIDATOR_CPUS = 0.1  # reserved for the validator, which is idle except for some seconds per validation
STARTER_CPUS = 0.01  # of a trial whose workers Ray Train places; with more, trials and their workers would deadlock


@dataclass(frozen=True)
class TrialResources:
    """The resources of one trial, and the largest part that must fit on one node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float

    @staticmethod
    def from_cluster_config(config: ClusterConfig) -> TrialResources:
        if count_workers(config, in_sweep=True) == 0:
            return TrialResources(
                config.cpus_per_worker, config.gpus_per_worker, config.cpus_per_worker, config.gpus_per_worker
            )
        cpus = training_cpus(config) + STARTER_CPUS
        node = config.cpus_per_worker + READER_CPUS
        return TrialResources(cpus, min_workers(config) * config.gpus_per_worker, node, config.gpus_per_worker)

    @staticmethod
    def tune_resources(config: ClusterConfig) -> dict[str, float]:
        """Return what Tune itself reserves for a trial: a worker in the trial's process, or almost nothing."""
        if count_workers(config, in_sweep=True):
            return {"CPU": STARTER_CPUS}
        return {"CPU": config.cpus_per_worker, **({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})}


def check_fits_locally(config: ClusterConfig) -> None:
    """Check that one trial and the validator fit on this machine, if the command starts its own Ray.

    Raises:
        ClusterError: they do not fit.
    """
    if not cluster_address(config):
        cores = float(config.cpus or os.cpu_count() or 1)
        check_fits(TrialResources.from_cluster_config(config), [{"CPU": cores, "GPU": _count_local_gpus(config)}])


def check_fits(resources: TrialResources, nodes: list[dict[str, Any]]) -> None:
    """Check that one trial and the validator fit on these nodes.

    Raises:
        ClusterError: they do not fit; the message names what is missing.
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
                f"a trial with its validation needs {total:g} {name} and the cluster {shortage}, so none can start; "
                "lower cluster.num_workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
            )


def max_concurrent_trials(resources: TrialResources, nodes: list[dict[str, Any]], *, limit: int) -> int:
    """Return how many trials fit at the same time, at most `limit` unless that is 0."""
    available = {key: sum(n.get(key, 0.0) for n in nodes) for key in ("CPU", "GPU")}
    fit = [int((available["CPU"] - VALIDATOR_CPUS + 1e-6) // resources.cpus)]
    if resources.gpus:
        fit.append(int((available["GPU"] + 1e-6) // resources.gpus))
    return max(1, min([*fit, limit] if limit else fit))


def same_node_affinity() -> Any:
    """Return the scheduling strategy that places an actor on this node, so that no other node's failure ends it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _count_local_gpus(config: ClusterConfig) -> float:
    if not config.gpus_per_worker:
        return 0.0
    import torch

    return float(torch.cuda.device_count())
