"""How long a call takes at steady state: warm-up, then percentiles of single calls."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call takes."""

    p50_ms: float
    p95_ms: float
    calls: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def measure_latency(call: Callable[[], object], *, calls: int = 5, warmup: int = 1) -> Latency:
    """Time `call` one at a time; on CUDA, waits for the device before each reading of the clock."""
    for _ in range(warmup):
        call()
    times_ms = []
    for _ in range(calls):
        _synchronize()
        started = time.perf_counter()
        call()
        _synchronize()
        times_ms.append((time.perf_counter() - started) * 1e3)
    return Latency(float(np.percentile(times_ms, 50)), float(np.percentile(times_ms, 95)), calls)


def describe_hardware(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The hardware that a latency was measured on."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor_name()
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def _processor_name() -> str:
    """The processor's name; Python's own `platform` gives only its architecture on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
