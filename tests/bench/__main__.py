"""Speed as ratios measured in one run: `make bench` (BENCH="--only registry")."""

from __future__ import annotations

import argparse
from statistics import median
from typing import TypeVar

import torch
from rich.table import Table

from pipelines.console import make_console
from pipelines.presets.resolve import PRESETS
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage, LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import NetworkConfig
from presto_core.config.stage import StageConfig
from presto_core.metrics.latency import describe_hardware
from tests.bench import checkpointing, iteration, layers, metrics, registry, sampling, schedules
from tests.bench.clock import Comparison

Stage = TypeVar("Stage", bound=StageConfig)
FRAME_RATE = 44100 / 2048  # of the codec in the package, in latent frames per second; heads that count beats need it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="from_scratch", help="network and distillation settings to measure")
    parser.add_argument("--layers-preset", default="laptop", help="network to measure layer budgets on")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each thing; their median counts")
    parts = ("networks", "schedules", "registry", "metrics")
    parser.add_argument("--only", choices=parts, help="measure one of them alone")
    parser.add_argument("--schedules", default="both", choices=("eager", "compiled", "both"), help="iterations to time")
    parser.add_argument("--batch", type=int, default=0, help="rows of these iterations; default: those of the preset")
    parser.add_argument("--versions", type=int, default=10_000, help="number of versions in the registry")
    parser.add_argument("--rows", type=int, default=5_000, help="number of embeddings per set for the metrics")
    parser.add_argument("--metric-threads", type=int, default=2, help="threads of the metrics")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only in (None, "metrics"):
        _metrics(arguments.rows, arguments.metric_threads)
    if arguments.only in (None, "networks"):
        _networks(arguments.preset, arguments.layers_preset, arguments.rounds)
    if arguments.only in (None, "schedules"):
        for compiled in (False, True):
            if arguments.schedules in ("both", "compiled" if compiled else "eager"):
                _schedules(arguments.preset, arguments.batch, arguments.rounds, compiled=compiled)
    if arguments.only in (None, "registry"):
        found = registry.measure(versions=arguments.versions, rounds=arguments.rounds)
        _print("registry", found, arguments.rounds)


def _networks(small: str, large: str, rounds: int) -> None:
    network, steps = _network(small), _preset(StepsStage, small).steps
    _print(
        f"{small} network",
        [
            *iteration.measure(network, steps, rounds=rounds),
            *checkpointing.measure(network, _preset(TeacherStage, small).teacher, rounds=rounds),
            *sampling.measure(network, rounds=rounds),
        ],
        rounds,
    )
    budgets = layers.measure(
        _network(large),
        _preset(LayersStage, large).layers,
        _preset(StepsStage, large).steps,
        frames=_preset(IngestStage, large).ingest.chunk_frames,
        rounds=rounds,
    )
    _print(f"{large} network", budgets, rounds)


def _schedules(preset: str, batch: int, rounds: int, *, compiled: bool) -> None:
    steps = _preset(StepsStage, preset).steps
    steps = steps.model_copy(update={"global_batch_size": batch or steps.global_batch_size})
    found = schedules.measure(_network(preset), steps, compiled=compiled, rounds=rounds)
    title = f"{preset} network, batch {steps.global_batch_size}, {describe_hardware()['device']}"
    table = Table(title=f"{title}, 1 thread, CPU time, {rounds} rounds")
    for name in ("an iteration of", "ms", "against one of", "ms", "times as fast", "quartiles"):
        table.add_column(name, justify="left" if "an iteration" in name or "against" in name else "right")
    for row in found:
        low, middle, high = row.speedup_quartiles
        ms, against_ms = (f"{1e3 * median(seconds):.0f}" for seconds in (row.seconds, row.against_seconds))
        table.add_row(row.what, ms, row.against, against_ms, f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
    make_console().print(table)


def _network(preset: str) -> NetworkConfig:
    """The preset's network, for latents of the codec in the package."""
    return _preset(TeacherStage, preset).network.model_copy(update={"frame_rate": FRAME_RATE})


def _metrics(rows: int, threads: int) -> None:
    device = describe_hardware()["device"]
    table = Table(title=f"metrics of 2 x {rows} embeddings of {metrics.DIM} dimensions, {device}, {threads} thread(s)")
    for name in ("what", "s", "CPU s", "peak MiB of the process"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for what, seconds, cpu_s, peak_mib in metrics.measure(rows=rows, threads=threads):
        table.add_row(what, f"{seconds:.1f}", f"{cpu_s:.1f}", f"{peak_mib:.0f}")
    make_console().print(table)


def _preset(stage: type[Stage], preset: str) -> Stage:
    return load_config(stage, preset, [], preset_folder=PRESETS)


def _print(what: str, rows: list[Comparison], rounds: int) -> None:
    table = Table(title=f"{what}, {describe_hardware()['device']}, 1 thread, median of {rounds}")
    for name in ("what", "ms", "against", "ms", "ratio", "of FLOPs", "apart"):
        table.add_column(name, justify="left" if name in ("what", "against") else "right")
    for row in rows:
        known = row.flop_ratio
        flops = (f"{known:.2f}", f"{row.ratio / known - 1:+.0%}") if known is not None else ("", "")
        table.add_row(row.what, f"{row.ms:.0f}", row.against, f"{row.against_ms:.0f}", f"{row.ratio:.2f}", *flops)
    make_console().print(table)


if __name__ == "__main__":
    main()
