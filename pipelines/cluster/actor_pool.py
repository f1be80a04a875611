"""Ray Data over items: in order, by actors that load something once, and with a user's mistakes said in rows."""

from __future__ import annotations

import ctypes
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil
from typing import Any

from pipelines.cluster.session import ClusterError, cluster_address
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MALLOC_THRESHOLD_BYTES = 2**28


def dataset_from_items(items: list[dict[str, Any]], *, block_items: int = 1, may_fail: bool = False) -> Any:
    """A Ray Dataset whose rows come out in the items' order.

    Args:
        together: items of a block, which one worker gets, and whose results come at once.
        may_fail: rows of a worker that died each time it tried are left out, instead of ending the run.
    """
    import ray.data

    rows = ray.data.from_items(items, override_num_blocks=ceil(len(items) / block_items))
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = False
    rows.context.max_errored_blocks = -1 if may_fail else 0
    return rows


def map_actors(rows: Any, actor: type, config: ClusterConfig, max_actors: int, *args: Any) -> Any:
    """A Ray Dataset of what actors of a class make of rows, one of one.

    Args:
        actor: class whose `__call__` turns one row into another; its instances live as long as the execution.
        most: actors there can be use for.
        args: for its constructor.
    """
    import ray

    # Restarting an actor helps where other nodes are left; on one machine the run itself is started again.
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
    """Rows of a Ray Dataset as they get done.

    Raises:
        UserError: what a row's `error` says.
        ClusterError: a worker died.
    """
    import ray

    try:
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield row
    except ray.exceptions.RayTaskError:
        raise  # a bug of ours
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"a Ray worker died ({type(error).__name__}; killed, or out of memory?); run the same command to go on"
        ) from error


def map_items(items: list[dict[str, Any]], actor: type, config: ClusterConfig, *args: Any) -> Iterator[Any]:
    """Rows that actors of a class make of items, in the items' order, as they get done.

    Raises:
        UserError: what the actor raised.
    """
    return iter_rows(map_actors(dataset_from_items(items), actor, config, len(items), *args))


class _ErrorCapturing:
    """An actor that says what the user can mend in a row: raised in a task, Ray would bury the sentence."""

    def __init__(self, actor: type, *args: Any) -> None:
        self.factory: Callable[[], Any] = lambda: actor(*args)
        self.instance: Any = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.instance is None:
                self.instance = self.factory()
                gc.freeze()  # Ray asks for a collection every few seconds, which what was imported would make long
                _keep_freed_memory()
            return {**self.instance(item), "error": ""}
        except UserError as error:
            return {"error": str(error)}


def _keep_freed_memory() -> None:
    """Have glibc reuse large blocks: given back to the system, each costs a page fault for every 4 KiB again."""
    with suppress(OSError, AttributeError):  # another C library
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, MALLOC_THRESHOLD_BYTES)


def actor_resources(config: ClusterConfig, items: int) -> dict[str, float]:
    """What `map_with_actors` takes of a cluster."""
    workers = min(config.data_workers, items)
    return {"cpus": workers * config.cpus_per_worker, "gpus": workers * config.gpus_per_worker}
