"""What each stage requests from a cluster, and whether its nodes have it."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.cluster.actor_pool import actor_resources, runs_in_process
from pipelines.cluster.session import (
    ClusterError,
    check_resources,
    count_workers,
    min_workers,
    resources_per_worker,
    training_cpus,
)
from pipelines.stages.table import STAGES
from presto_core.config.schema import IngestStage
from presto_core.config.sections import ClusterConfig


class SkippedError(Exception):
    """A check that does not apply; the message says why."""


def check_stage_fits(stage: str, cluster: ClusterConfig, nodes: list[dict[str, float]]) -> str:
    """Compare a stage's resource requests with a cluster's nodes, in sum and per node; returns the requests as text.

    Raises:
        ClusterError: the nodes have less.
        SkippedError: the stage requests none.
    """
    if STAGES[stage].trains and count_workers(cluster) == 0:
        raise SkippedError(f"not needed: cluster.num_workers={cluster.num_workers} trains in the command's own process")
    if not STAGES[stage].trains and runs_in_process(cluster):
        settings = f"cluster.num_workers={cluster.num_workers} cluster.data_workers=1"
        raise SkippedError(f"not needed: {settings} work in the command's own process")
    needs, worker, count = get_stage_requirements(stage, cluster)
    names = {key for node in nodes for key in node}
    check_resources({key: sum(node.get(key, 0) for node in nodes) for key in names}, **needs)
    num_fitting = count_fitting_workers(nodes, worker)
    worker_text = " and ".join(f"{amount:g} {key}s" for key, amount in worker.items())
    if num_fitting < count:
        raise ClusterError(
            f"{stage} needs {count} workers of {worker_text} each and the nodes have room for {num_fitting}; "
            "lower cluster.num_workers, cluster.data_workers or cluster.cpus_per_worker, or use larger nodes"
        )
    return f"{count} worker{'s'[: count > 1]} of {worker_text}; in all {needs['cpus']:g} CPUs, {needs['gpus']:g} GPUs"


def get_stage_requirements(stage: str, cluster: ClusterConfig) -> tuple[dict[str, float], dict[str, float], int]:
    """What a stage requests in total (cpus, gpus), what one worker requests in Ray's names, and how many workers."""
    from pipelines.ingest.encode import encoding_resources

    worker = resources_per_worker(cluster)
    if STAGES[stage].trains:
        count = min_workers(cluster)
        return {"cpus": training_cpus(cluster), "gpus": count * cluster.gpus_per_worker}, worker, count
    needs = encoding_resources if stage == IngestStage.NAME else actor_resources
    return needs(cluster, cluster.data_workers), worker, cluster.data_workers


def count_fitting_workers(nodes: Iterable[dict[str, float]], worker: dict[str, float]) -> int:
    """How many workers fit on the nodes, each worker on a single node."""
    required = {key: amount for key, amount in worker.items() if amount}
    return sum(int(min(node.get(key, 0) / amount + 1e-6 for key, amount in required.items())) for node in nodes)


def list_stages_with_workers() -> list[str]:
    """Stages that request workers from a cluster."""
    return [name for name, stage in STAGES.items() if stage.workers != "none" and stage.writes_run]
