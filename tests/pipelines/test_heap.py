"""Freed memory of a large network's activations goes back to the system: pipelines/cluster/heap.py."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# activations of two sizes, freed in another order than they were made, with something that lives on between them
PROGRAM = """
import psutil, torch
from pipelines.cluster.heap import return_freed_memory

torch.empty(2**22)  # 16 MiB, freed: from now on, malloc takes blocks of up to this size from the heap
if {returns}:
    return_freed_memory()
live, before = [], psutil.Process().memory_info().rss
for size in (5, 6, 7, 8, 9, 10):
    activations = []
    for _ in range(20):
        activations.append(torch.ones(size * 2**18))  # size MiB
        live.append(torch.ones(2**10))
    del activations
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def measure_growth_mib(*, returns: bool) -> float:
    program = PROGRAM.format(returns=returns)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_activations_are_returned_to_the_system() -> None:
    kept, returned = measure_growth_mib(returns=False), measure_growth_mib(returns=True)
    assert kept > 100, "without it, gaps stay in the process; otherwise it is not needed any more"
    assert returned < 30
