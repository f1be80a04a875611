"""Map items with Ray Data: in order, with actors that load their state once, and with user errors passed in rows."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import ceil
from typing import Any

from pipelines.cluster.heap import keep_freed_memory
from pipelines.cluster.session import ClusterError, cluster_address, count_workers, ray_session
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError


def dataset_from_items(items: list[dict[str, Any]], *, block_items: int = 1, may_fail: bool = False) -> Any:
    """Make a Ray Dataset that preserves the items' order.

    Args:
        block_items: items per block; one worker processes a block, and its results arrive together.
        may_fail: drop the rows of a block whose worker died in every attempt, instead of ending the run.
    """
    import ray.data

    rows = ray.data.from_items(items, override_num_blocks=ceil(len(items) / block_items))
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = False
    rows.context.max_errored_blocks = -1 if may_fail else 0
    return rows


def map_actors(rows: Any, actor: type, config: ClusterConfig, max_actors: int, *args: Any) -> Any:
    """Map each row of a Ray Dataset to one row with a pool of actors.

    Args:
        actor: class whose `__call__` maps one row to another; its instances live for the whole execution.
        max_actors: upper limit of the number of actors.
        args: arguments of its constructor.
    """
    import ray

    # Restarting an actor helps if other nodes remain; on one machine the run itself is restarted.
    restarts = {} if cluster_address(config) else {"max_restarts": 0, "max_task_retries": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        return rows.map(
            _ErrorCapturing,
            fn_constructor_args=(actor, *args),
            concurrency=min(config.data_workers, max_actors),
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker or None,
            **restarts,
        )


def iter_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Ray Dataset as they finish.

    Raises:
        UserError: the message in a row's `error`.
        ClusterError: a worker died.
    """
    import ray

    try:
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield row
    except ray.exceptions.RayTaskError:
        raise  # a bug in Presto
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"a Ray worker died ({type(error).__name__}, killed or out of memory); re-run the same command to resume"
        ) from error


def map_items(items: list[dict[str, Any]], actor: type, config: ClusterConfig, *args: Any) -> Iterator[Any]:
    """Map items with a pool of actors, or in this process, and yield the rows in the items' order, as they finish.

    Raises:
        UserError: an actor raised it.
        ClusterError: a worker died.
    """
    if runs_in_process(config):
        return map_in_process(items, actor, *args)
    return iter_rows(map_actors(dataset_from_items(items), actor, config, len(items), *args))


def map_in_process(items: list[dict[str, Any]], actor: type, *args: Any) -> Iterator[dict[str, Any]]:
    """Map items in this process; what the actor raises passes through."""
    instance = actor(*args)
    return ({**instance(item), "error": ""} for item in items)


def runs_in_process(config: ClusterConfig) -> bool:
    """Whether items are mapped here: by a command that trains here too, and has one worker. Ray would add its start."""
    return count_workers(config) == 0 and config.data_workers == 1 and not cluster_address(config)


@contextmanager
def open_pool(config: ClusterConfig, items: int) -> Iterator[None]:
    """A Ray session with the resources that `map_items` needs for so many items; none if it needs no Ray.

    Raises:
        ClusterError: Ray cannot start, or the cluster is too small.
    """
    with nullcontext() if runs_in_process(config) else ray_session(config, **actor_resources(config, items)):
        yield


class _ErrorCapturing:
    """An actor that returns a UserError in a row, because Ray would wrap one raised in a task and hide its message."""

    def __init__(self, actor: type, *args: Any) -> None:
        self.factory: Callable[[], Any] = lambda: actor(*args)
        self.instance: Any = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.instance is None:
                self.instance = self.factory()
                gc.freeze()  # Ray collects garbage every few seconds, which imported modules would slow down
                keep_freed_memory()
            return {**self.instance(item), "error": ""}
        except UserError as error:
            return {"error": str(error)}


def actor_resources(config: ClusterConfig, items: int) -> dict[str, float]:
    """Return the cluster resources that `map_actors` needs."""
    workers = min(config.data_workers, items)
    return {"cpus": workers * config.cpus_per_worker, "gpus": workers * config.gpus_per_worker}
