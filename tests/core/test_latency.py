"""Latency and memory of calls: known clocks, allocations of known size, devices of known components."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from presto_core.metrics.latency import (
    Latency,
    choose_calls,
    describe_hardware,
    find_device,
    measure_latency,
    measure_peak_memory,
    summarize_calls,
    time_parts,
)


def make_clock(*readings_s: float) -> Callable[[], float]:
    readings: Iterator[float] = iter(readings_s)
    return lambda: next(readings)


def allocate(mib: int) -> torch.Tensor:
    return torch.ones(mib, 2**18)  # 4 bytes each, written


def test_each_part_is_given_what_the_one_before_returned():
    given = []

    def note(value: Any, result: Any) -> Any:
        given.append(value)
        return result

    time_parts({"text": lambda v: note(v, "cond"), "network": lambda v: note(v, "x0"), "decode": lambda v: note(v, "")})
    assert given == [None, "cond", "x0"]


def test_parts_of_one_call_add_up_to_its_total():
    parts = {name: lambda _: None for name in ("text", "network", "decode")}
    times = time_parts(parts, clock=make_clock(1.0, 1.25, 3.25, 3.75))
    assert times == {"text": 250.0, "network": 2000.0, "decode": 500.0, "total": 2750.0}


def test_percentiles_are_interpolated():
    """Of 10, 20, ..., 50 the 95th percentile lies 0.95 * 4 = 3.8 steps from the smallest."""
    latency = Latency.from_times([50, 10, 30, 20, 40])
    assert (latency.p50_ms, latency.p95_ms, latency.calls) == (30.0, pytest.approx(48.0), 5)


def test_medians_of_parts_need_not_add_up_to_the_median_of_totals():
    calls = [
        {"text": 1.0, "network": 9.0, "total": 10.0},
        {"text": 5.0, "network": 6.0, "total": 11.0},
        {"text": 6.0, "network": 1.0, "total": 7.0},
    ]
    found = summarize_calls(calls)
    assert {name: latency.p50_ms for name, latency in found.items()} == {"text": 5.0, "network": 6.0, "total": 10.0}


@pytest.mark.parametrize(
    ("call_ms", "calls"), [(0.0, 20), (1, 20), (150, 20), (300, 10), (999, 3), (1001, 3), (60_000, 3)]
)
def test_calls_fill_three_seconds_between_three_and_twenty(call_ms: float, calls: int):
    assert choose_calls(call_ms) == calls


def test_warm_up_calls_are_made_and_not_counted():
    made = []
    measured = measure_latency(lambda: made.append(1), calls=7, warmup=3)
    assert (len(made), measured.calls) == (10, 7)
    assert 0 <= measured.p50_ms <= measured.p95_ms


def test_peak_memory_is_what_was_held_at_once():
    """96 MiB, of which 32 are left when 64 more come: the peak is 96, not the sum of 160 nor the 32 at the end."""

    def call() -> torch.Tensor:
        first = allocate(96)
        total = first.sum()
        del first
        kept = allocate(32)
        return kept + total

    assert 94 <= measure_peak_memory(call) <= 110


def test_memory_that_is_used_again_counts_again():
    found = [measure_peak_memory(lambda: allocate(48)) for _ in range(3)]
    assert all(47 <= mib <= 60 for mib in found), found


def test_a_call_that_fails_fails_and_leaves_no_thread():
    import threading

    before = threading.active_count()
    with pytest.raises(ValueError, match="no music"):
        measure_peak_memory(lambda: (_ for _ in ()).throw(ValueError("no music")).__next__())
    assert threading.active_count() == before


def test_a_components_device_is_that_of_its_tensors():
    meta = nn.Linear(2, 2, device="meta")
    assert find_device(meta).type == "meta"
    assert find_device(SimpleNamespace(name="encoder", _model=meta)).type == "meta"
    assert find_device(SimpleNamespace(name="codec without PyTorch modules")).type == "cpu"


def test_hardware_names_what_was_measured_on():
    found = describe_hardware()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu_is_that_of_its_allocator():
    def call() -> torch.Tensor:
        first = torch.ones(96, 2**18, device="cuda")
        return first[:32] * 2

    assert measure_peak_memory(call, device="cuda") == pytest.approx(128, abs=1)
