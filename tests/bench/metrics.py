"""Time and memory of the metrics of quality: `make bench BENCH="--only metrics"` (`--rows 50000` at most)."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

DIM, TRACK_ROWS = 512, 2
KIB_PER_MIB = 2**10


def measure(*, rows: int, threads: int) -> list[tuple[str, float, float, float]]:
    """What, seconds, seconds of processors, and peak MiB of a process that does only this, with its embeddings.

    Args:
        rows: embeddings of each set, of 512 dimensions; two of each track.
        threads: of matrix products.
    """
    tasks = ("embeddings alone", "MMD", "precision, recall, density, coverage", "FD∞", "all three")
    return [(task, *_run_in_process(task, rows, threads)) for task in tasks]


def _run_in_process(task: str, rows: int, threads: int) -> tuple[float, float, float]:
    """In a process of its own, for the peak of memory never falls."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_task, (task, rows, threads))


def _measure_task(task: str, rows: int, threads: int) -> tuple[float, float, float]:
    from threadpoolctl import threadpool_limits

    from presto_core.metrics.embedding_sets import EmbeddingSets, compute_fd_inf, compute_mmd

    parts: dict[str, Callable[[EmbeddingSets], Any]] = {
        "MMD": compute_mmd,
        "precision, recall, density, coverage": lambda sets: sets.prdc,
        "FD∞": compute_fd_inf,
    }
    rng = np.random.default_rng(0)
    generated, reference = (rng.standard_normal((rows, DIM), dtype=np.float32) for _ in range(2))
    tracks = np.arange(rows) // TRACK_ROWS
    sets = EmbeddingSets(generated, reference, nearest_k=5, generated_groups=tracks, reference_groups=tracks + rows)
    with threadpool_limits(threads):
        began, processors_began = time.perf_counter(), time.process_time()
        for name, compute in parts.items():
            if task in (name, "all three"):
                compute(sets)
        return time.perf_counter() - began, time.process_time() - processors_began, _read_peak_mib()


def _read_peak_mib() -> float:
    """Peak resident memory of this process; getrusage would give the parent's if that was higher."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / KIB_PER_MIB
