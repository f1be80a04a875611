"""Speed as ratios measured in one run: `make bench` (`python -m tests.bench [--preset demo] [--rounds 7]`)."""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from pipelines.cli import PRESETS
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage, TeacherStage
from presto_core.metrics.latency import hardware
from tests.bench import iteration, sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="demo", help="network and distillation settings to measure")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each thing; their median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = load_config(TeacherStage, arguments.preset, [], preset_folder=PRESETS).network
    steps = load_config(StepsStage, arguments.preset, [], preset_folder=PRESETS).steps
    rows = [
        *iteration.measure(network, steps, rounds=arguments.rounds),
        *sampling.measure(network, rounds=arguments.rounds),
    ]
    table = Table(title=f"{arguments.preset} network, {hardware()['device']}, 1 thread, median of {arguments.rounds}")
    for name, justify in (("what", "left"), ("ms", "right"), ("against", "left"), ("ms", "right"), ("ratio", "right")):
        table.add_column(name, justify=justify)
    for row in rows:
        table.add_row(row.what, f"{row.ms:.0f}", row.against, f"{row.against_ms:.0f}", f"{row.ratio:.2f}")
    Console(width=118).print(table)


if __name__ == "__main__":
    main()
