"""How long a call takes, part by part, and how much memory it needs: percentiles of single calls on the device used."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

TOTAL = "total"  # beside the names of the parts
POLL_S = 0.002
MIB = 2**20


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call takes."""

    p50_ms: float
    p95_ms: float
    calls: int

    @staticmethod
    def from_times(times_ms: Iterable[float]) -> Latency:
        """Percentiles of calls that were timed one by one, interpolated linearly."""
        values = list(times_ms)
        return Latency(float(np.percentile(values, 50)), float(np.percentile(values, 95)), len(values))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def measure_latency(call: Callable[[], object], *, calls: int = 5, warmup: int = 1) -> Latency:
    """Time `call` one at a time; on CUDA, waits for the device before each reading of the clock."""
    for _ in range(warmup):
        call()
    return Latency.from_times(time_parts({"call": lambda _: call()})[TOTAL] for _ in range(calls))


def time_parts(
    parts: Mapping[str, Callable[[Any], Any]], *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Make one call from end to end and time each of its parts.

    Args:
        parts: name -> function of what the part before it returned; the first receives None.
        clock: seconds.

    Returns:
        name -> milliseconds, and `total` from the start of the first part to the end of the last. On CUDA the device
        is waited for between parts, so the total is an upper bound of a call that nobody times.
    """
    _synchronize()
    value, start = None, clock()
    times_ms, before = {}, start
    for name, part in parts.items():
        value = part(value)
        _synchronize()
        now = clock()
        times_ms[name], before = (now - before) * 1e3, now
    return {**times_ms, TOTAL: (before - start) * 1e3}


def summarize_calls(calls: list[dict[str, float]]) -> dict[str, Latency]:
    """Part -> percentiles over calls timed by `time_parts`; those of parts do not add up to the total's."""
    return {name: Latency.from_times(call[name] for call in calls) for name in calls[0]}


def choose_calls(call_ms: float, *, budget_s: float = 3.0, least: int = 3, most: int = 20) -> int:
    """How many calls of about `call_ms` fit into `budget_s`, but from `least` to `most`."""
    return min(max(int(budget_s * 1e3 / max(call_ms, 1e-6)), least), most)


def measure_peak_memory(call: Callable[[], object], *, device: torch.device | str = "cpu") -> float:
    """MiB that a call needs at its peak beyond what was in use before it, on `device`.

    On CUDA: of PyTorch's allocator, exact. On the CPU: growth of the process's resident memory, read every 2 ms, after
    free pages were given back to the system (glibc; elsewhere memory that is reused is not seen): a peak that is
    shorter is missed, and what other threads allocate is counted.
    """
    if torch.device(device).type == "cuda":
        return _measure_cuda_peak(call, torch.device(device))
    return _measure_resident_peak(call)


def _measure_cuda_peak(call: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def _measure_resident_peak(call: Callable[[], object]) -> float:
    import psutil

    process, done = psutil.Process(), Event()
    _release_free_pages()
    before = process.memory_info().rss
    readings = [before]

    def poll() -> None:
        while not done.wait(POLL_S):
            readings.append(process.memory_info().rss)

    thread = Thread(target=poll, daemon=True)
    thread.start()
    try:
        result = call()
        readings.append(process.memory_info().rss)
        del result  # kept until the last reading
    finally:
        done.set()
        thread.join()
    return (max(readings) - before) / MIB


def _release_free_pages() -> None:
    """Return the allocator's free pages to the system, so that using them again counts as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def describe_hardware(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The hardware that a latency was measured on."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor_name()
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def find_device(component: object) -> torch.device:
    """The device a component names, else that of its first parameter or buffer, else the CPU."""
    if isinstance(named := getattr(component, "device", None), torch.device):
        return named
    held = [component, *getattr(component, "__dict__", {}).values()]
    tensors = (t for m in held if isinstance(m, torch.nn.Module) for t in (*m.parameters(), *m.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _processor_name() -> str:
    """The processor's name; Python's own `platform` gives only its architecture on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
