"""How a global batch is shared among workers."""

from __future__ import annotations

from typing import Any

from presto_core.config.sections import ClusterConfig, LoopConfig


def check_divisible(name: str, batch: int, cluster: ClusterConfig) -> None:
    """Refuse a global batch that the workers cannot share evenly; raises ValueError."""
    for key, workers in (("num_workers", count_sharing(cluster)), ("min_workers", max(cluster.min_workers, 1))):
        if batch % workers:
            possible = ", ".join(map(str, valid_worker_counts(batch, max_workers=workers)))
            raise ValueError(f"{name}={batch} must be a multiple of cluster.{key}={workers}, as it is of {possible}")


def count_sharing(cluster: ClusterConfig) -> int:
    """How many workers, or this process alone, share a batch; `auto` is never more than one."""
    return 1 if cluster.num_workers == "auto" else max(cluster.num_workers, 1)


def valid_worker_counts(batch: int, *, min_workers: int = 1, max_workers: int) -> list[int]:
    """Numbers of workers that share a global batch evenly, in ascending order."""
    return [count for count in range(max(min_workers, 1), max_workers + 1) if batch % count == 0]


def derive_per_worker(batch: int, cluster: ClusterConfig, loop: LoopConfig) -> dict[str, Any]:
    """What each worker does of a global batch, and in how many micro-batches; where elastic, for each group size."""
    max_workers = count_sharing(cluster)
    rows_per_worker = {
        count: batch // count
        for count in valid_worker_counts(batch, min_workers=cluster.min_workers or max_workers, max_workers=max_workers)
    }
    accumulation_steps = {
        count: -(-share // (loop.micro_batch_size or share)) for count, share in rows_per_worker.items()
    }
    values: dict[str, Any] = {
        "batch_size_per_worker": rows_per_worker[max_workers],
        "gradient_accumulation_steps": accumulation_steps[max_workers],
    }
    if cluster.min_workers:
        values["by_number_of_workers"] = {
            count: f"{share} per worker, accumulated in {accumulation_steps[count]}"
            for count, share in rows_per_worker.items()
        }
    return values
