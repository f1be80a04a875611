"""Measure the constants of this machine's CPU: a transformer block, the rest of a network, updates, exchange.

As many processes measure at once as there will be workers, since they share caches and memory bandwidth.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from infra.planning.device_model import CPU_COPY_BYTES_S, CPU_READ_BYTES_S, CPU_READING, DeviceModel, LinearCost
from infra.planning.microbenchmarks import make_timer, measure_constants
from pipelines.cluster.shutdown import block_ctrl_c
from pipelines.train.step_flops import FORWARD_EQUIVALENTS, PassKind
from presto_core.config.sections import GanConfig, NetworkConfig
from presto_core.networks.flops import LatentShape


def measure_device(
    network: NetworkConfig,
    shape: LatentShape,
    *,
    rows: int,
    workers: int,
    threads: int = 1,
    gan: GanConfig = GanConfig(),
) -> DeviceModel:
    """Measure the constants of one of `workers` processes on this machine, each with `threads` threads.

    Args:
        rows: rows per pass through a network; half of them are timed as well.
        gan: settings of the discriminator head.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, threads, folder, network.model_dump(), asdict(shape), rows, gan.model_dump())
        _run_workers(arguments, workers)
        found = json.loads((Path(folder) / "constants.json").read_text())
    costs: dict[PassKind, dict[str, LinearCost]] = {
        kind: {part: LinearCost(*found[f"{part} {kind}"]) for part in ("block", "outer", "head")}
        for kind in FORWARD_EQUIVALENTS
    }
    latency, bytes_s = found["exchange"]
    return DeviceModel(
        device="here",
        block={work: parts["block"] for work, parts in costs.items()},
        outer={work: parts["outer"] for work, parts in costs.items()},
        head={work: parts["head"] for work, parts in costs.items()},
        update=LinearCost(*found["update"]),
        average=LinearCost(*found["average"]),
        draw=found["draw"],
        overhead=found["overhead"],
        exchange_latency=latency,
        exchange_bytes_s=bytes_s,
        overlap=0.0,
        reads_overlap=False,
        read_bytes_s=CPU_READ_BYTES_S,
        copy_bytes_s=CPU_COPY_BYTES_S,
        assumptions=_list_assumptions(workers=workers, threads=threads),
    )


def _list_assumptions(*, workers: int, threads: int) -> tuple[str, ...]:
    from presto_core.metrics.latency import describe_hardware

    return (
        (
            f"measured now on {describe_hardware()['device']}, {workers} process{'es'[: 2 * (workers > 1)]} at once, "
            f"{threads} thread{'s' if threads > 1 else ''} each; other load on this machine slows it down"
        ),
        "gradients are exchanged after the backward pass, since the same cores do both",
        CPU_READING,
    )


def _run_workers(arguments: tuple[Any, ...], workers: int) -> None:
    """Measure in so many processes; Ctrl-C and SIGTERM end them."""
    with block_ctrl_c():
        context = spawn(_measure_in_worker, arguments, nprocs=workers, join=False, daemon=True)
    assert context is not None
    try:
        while not context.join():
            pass
    finally:
        for process in context.processes:
            process.terminate()


def _measure_in_worker(
    rank: int, workers: int, threads: int, folder: str, network: Any, shape: Any, rows: int, gan: Any
) -> None:
    torch.set_num_threads(threads)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    try:
        # with one thread per process, the CPU clock leaves out the time in which other processes run
        clock = time.process_time if threads == 1 else time.perf_counter
        what = NetworkConfig(**network), LatentShape(**shape), GanConfig(**gan)
        found = measure_constants(*what, rows=rows, seconds=make_timer(clock))
        everyones: list[Any] = [None] * workers
        distributed.all_gather_object(everyones, found)
        if rank == 0:
            (Path(folder) / "constants.json").write_text(json.dumps(_mean(everyones)))
    finally:
        distributed.destroy_process_group()


def _mean(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Average dictionaries of numbers and of lists of numbers."""
    return {
        name: [sum(column) / len(found) for column in zip(*(f[name] for f in found))]
        if isinstance(first, list)
        else sum(f[name] for f in found) / len(found)
        for name, first in found[0].items()
    }


def cores() -> int:
    return len(os.sched_getaffinity(0))
