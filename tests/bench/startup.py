"""Start of commands in CPU seconds against `import torch` of the same run: `python -m tests.bench.startup`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from rich.table import Table

from pipelines.console import make_console
from pipelines.tracking.database import create_database
from presto_core.metrics.latency import describe_hardware

PRESTO = ("-m", "infra.cli.main")
BARE = "import torch"
COMMANDS: dict[str, tuple[str, ...]] = {
    BARE: ("-c", "import torch"),
    "presto --help": (*PRESTO, "--help"),
    "presto explain": (*PRESTO, "explain", "steps.p_dmd.kind"),
    "presto registry list": (*PRESTO, "registry", "list"),
    "presto generate --dry-run": (*PRESTO, "generate", "piano", "--model", "presto-tiny-s", "--dry-run"),
    "presto generate": (*PRESTO, "generate", "solo piano, slow, A minor", "--model", "presto-tiny-s"),
}


def measure(folder: Path, *, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each command, each run once before and then all in turn."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            before, began = os.times(), time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            after, took = os.times(), time.perf_counter() - began
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            if number:
                found[name].append((cpu, took))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command; their median counts")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        create_database(Path(folder) / ".presto" / "mlflow.db")  # the registry of a project
        found = measure(Path(folder), rounds=rounds)
    table = Table(title=f"start of commands, {describe_hardware()['device']}, median of {rounds}")
    for name in ("command", "CPU s", "quartiles", "wall s", "CPU against import torch"):
        table.add_column(name, justify="left" if name == "command" else "right")
    bare = median(cpu for cpu, _ in found[BARE])
    for name, times in found.items():
        cpu = [seconds for seconds, _ in times]
        low, _, high = quantiles(cpu, n=4) if len(cpu) > 1 else (cpu[0],) * 3
        wall = median(seconds for _, seconds in times)
        table.add_row(
            name, f"{median(cpu):.2f}", f"{low:.2f} to {high:.2f}", f"{wall:.1f}", f"{median(cpu) / bare:.2f}"
        )
    make_console().print(table)


if __name__ == "__main__":
    main()
