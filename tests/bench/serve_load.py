"""Load on a real service on loopback: throughput with batches against without, latency, errors, growth of memory.

Each client asks for its next clip when it has the last one. Services with and without batches take turns (off, on, on,
off) in one Ray session, with the same model, threads and clients: what the machine does meanwhile befalls both.

    python -m tests.bench.serve_load                                two minutes
    python -m tests.bench.serve_load --soak 600 --requests 5000     ten minutes of batches, 5,000 requests at least
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import requests

from pipelines.cluster.session import ray_session
from pipelines.serve.run import serving
from pipelines.serve.settings import ServeSettings
from presto_core.config.sections import ClusterConfig

PROMPTS = ("slow piano in A minor", "techno, 128 bpm", "a string quartet", "jazz trio", "folk guitar in G", "waltz")
WARM_UP_S, SAMPLE_S = 5.0, 1.0
MIB = 2**20


@dataclass
class Phase:
    """What one phase measured."""

    max_batch: int
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def clips_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def memory_mib_per_min(self) -> float:
        """Slope of the processes' memory over the last two thirds."""
        times, amounts = np.array(self.memory[len(self.memory) // 3 :]).T
        return float(60 * np.polyfit(times, amounts, 1)[0]) if len(times) > 2 else float("nan")

    def describe(self) -> dict[str, object]:
        p50, p95 = np.percentile(self.latencies_s or [np.nan], [50, 95])
        return {
            "max_batch": self.max_batch,
            "seconds": round(self.seconds, 1),
            "clips": len(self.latencies_s),
            "clips_per_s": round(self.clips_per_s, 2),
            "p50_s": round(float(p50), 2),
            "p95_s": round(float(p95), 2),
            "mean_batch": round(float(np.mean(self.batches or [0])), 1),
            "errors": len(self.errors),
            "memory_mib": round(self.memory[-1][1]),
            "memory_mib_per_min": round(self.memory_mib_per_min, 1),
        }


def measure_phase(arguments: argparse.Namespace, *, max_batch: int, seconds: float, at_least: int = 0) -> Phase:
    """Serve with batches of at most this size and load it."""
    settings = ServeSettings(
        model=arguments.model, port=0, max_batch=max_batch, max_queued=4 * arguments.clients,
        cpus_per_replica=arguments.cpus, log_file=str(Path(tempfile.gettempdir()) / "serve_load.jsonl"),
    )  # fmt: skip
    phase = Phase(max_batch)
    with serving(settings, ClusterConfig()) as url:
        _load(url, arguments, WARM_UP_S, Phase(max_batch), at_least=0)
        _load(url, arguments, seconds, phase, at_least=at_least)
    return phase


def _load(url: str, arguments: argparse.Namespace, seconds: float, phase: Phase, *, at_least: int) -> None:
    started = time.monotonic()

    def is_over() -> bool:
        return time.monotonic() - started >= seconds and len(phase.latencies_s) >= at_least

    def ask_again_and_again(client: int) -> None:
        session, number = requests.Session(), 0
        while not is_over():
            number += 1
            prompt = PROMPTS[(client + number) % len(PROMPTS)]
            fields: dict[str, Any] = {"prompt": prompt, "seed": 1000 * client + number}
            begun = time.monotonic()
            try:
                answer = session.post(f"{url}/v1/generate", json=fields | {"steps": arguments.steps}, timeout=120)
                if answer.status_code != 200:
                    phase.errors.append(f"{answer.status_code}: {answer.text[:200]}")
                    time.sleep(float(answer.headers.get("Retry-After", 1)))
                    continue
                phase.latencies_s.append(time.monotonic() - begun)
                phase.batches.append(json.loads(answer.headers["X-Presto-Clip"])["batch"])
            except requests.RequestException as error:
                phase.errors.append(repr(error))

    clients = [threading.Thread(target=ask_again_and_again, args=(client,)) for client in range(arguments.clients)]
    for thread in clients:
        thread.start()
    while any(thread.is_alive() for thread in clients):
        phase.memory.append((time.monotonic() - started, _count_memory_mib()))
        time.sleep(SAMPLE_S)
    phase.seconds = time.monotonic() - started


def _count_memory_mib() -> float:
    """Memory of the service's processes: replica, front and HTTP proxy."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in " ".join(process.cmdline()) for name in ("ServeReplica", "ProxyActor")):
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / MIB


def print_table(phases: list[Phase]) -> None:
    """Print the phases as a Markdown table."""
    rows = [phase.describe() for phase in phases]
    names = list(rows[0])
    print("\n| " + " | ".join(names) + " |")
    print("|" + "---:|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="presto-tiny-ls")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cpus", type=float, default=2.0, help="CPUs and threads of the one replica")
    parser.add_argument("--seconds", type=float, default=120.0, help="time of all phases together")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of one phase with batches alone")
    parser.add_argument("--requests", type=int, default=0, help="requests of the soak, at least")
    arguments = parser.parse_args()
    print(json.dumps({"cores": os.cpu_count(), "load_before": os.getloadavg(), **vars(arguments)}))
    with ray_session(ClusterConfig(cpus=2, object_store_mb=200), cpus=arguments.cpus):
        sizes = (8,) if arguments.soak else (1, 8, 8, 1)
        seconds = arguments.soak or arguments.seconds / len(sizes)
        phases = [
            measure_phase(arguments, max_batch=size, seconds=seconds, at_least=arguments.requests) for size in sizes
        ]
    print_table(phases)
    for error in [error for phase in phases for error in phase.errors[:5]]:
        print(f"error: {error}")
    alone, together = ([p.clips_per_s for p in phases if p.max_batch == size] for size in (1, 8))
    if alone:
        ratio = median(together) / median(alone)
        print(f"\nthroughput with batches: {ratio:.2f} x that without, medians of two phases each")
    print(f"load average after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
