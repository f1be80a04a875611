"""`presto plan`: what a preset takes on N devices, before any is there."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.cli.options import Words
from infra.planning.device_model import Pace
from infra.planning.estimate import Outlook, Training
from infra.planning.planner import (
    PaceOf,
    Question,
    batch_of,
    extrapolate,
    ingest_core_hours,
    predict,
    published_pace,
    question,
)
from pipelines.console import console, print_table
from pipelines.presets.resolve import split
from pipelines.train.device_specs import DEVICES, device_named
from presto_core.errors import UserError
from presto_core.networks.flops import LatentShape

STAGE_COLUMNS = ("stage", "rows a GPU", "step", "steps", "hours", "USD", "GiB a GPU", "MFU", "held up by")
LOAD_COLUMNS = ("stage", "ms a step by phase", "ms by part", "read MB/s", "GB/s out a GPU", "checkpoint GB", "at MB/s")
GROWTH_COLUMNS = ("GPUs", "hours", "USD", "held up by", "batch that grows", "rows/s", "efficiency", "read MB/s")


def plan(
    words: Words = None,
    gpus: Annotated[
        int, typer.Option("--gpus", "--workers", min=1, help="Training workers, one a GPU (with here: a core).")
    ] = 8,
    device: Annotated[
        str, typer.Option(help=f"{', '.join(DEVICES)}; or here: this machine's CPU, measured for about a minute.")
    ] = "h100",
    network_gbit: Annotated[float, typer.Option(min=0.1, help="Gbit/s of a node's network.")] = 400.0,
    price: Annotated[float | None, typer.Option(min=0, help="USD for an hour of one GPU.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be computed, and measured, and stop.")
    ] = False,
) -> None:
    """Predict time, memory, load, cost and bottleneck of a preset's training on N GPUs, up to 512; starts nothing."""
    known = None if device == "here" else device_named(device)
    asked = question(*split(words or []), gpus=gpus, device=known, node_gbit=network_gbit, price=price)
    if dry_run:
        _say_what(asked)
        return
    pace_of = published_pace(asked) if known else _measured_pace(asked)
    stages = predict(asked, pace_of)
    growth = extrapolate(asked, pace_of) if known else []
    said = _assumptions(asked, pace_of)
    if as_json:
        body = {"stages": [o.to_dict() for o in stages], "growth": growth, "assumptions": said}
        typer.echo(json.dumps({"gpus": gpus, "device": device, **body}, indent=1))
        return
    _print_stages(asked, stages)
    if growth:
        _print_growth(growth)
    for sentence in said:
        typer.echo(f"- {sentence}")


def _say_what(asked: Question) -> None:
    where = asked.device.name if asked.device else "this machine's CPU, after measuring it for about a minute"
    for name, config in asked.stages.items():
        typer.echo(f"{name}: on {asked.gpus} x {where}, {config.derived()}")


def _measured_pace(asked: Question) -> PaceOf:
    """Constants of this machine, measured once for each shape of batch.

    Raises:
        UserError: fewer cores than workers.
    """
    from infra.planning.benchmark import cores, measured

    threads = asked.configs["base"].cluster.torch_threads
    if asked.gpus * threads > cores():
        raise UserError(
            f"here are {cores()} cores, and --gpus {asked.gpus} with cluster.torch_threads={threads} asks for "
            f"{asked.gpus * threads}; lower them, or name a --device"
        )
    found: dict[tuple[LatentShape, int, int], Pace] = {}

    def pace(config: Training, workers: int, rows: int) -> Pace:
        rows = min(rows, config.loop.micro_batch_size or rows)
        key = (asked.shape(config), rows, workers)
        if key not in found:
            console.print(f"measuring blocks {asked.network.dim} wide, {rows} rows, {workers} at a time")
            found[key] = measured(asked.network, key[0], rows=rows, workers=workers, threads=threads, gan=asked.gan)
        return found[key]

    return pace


def _assumptions(asked: Question, pace_of: PaceOf) -> list[str]:
    base = asked.stages["base"]
    said = [*pace_of(base, asked.gpus, batch_of(base) // asked.gpus).assumptions]
    if asked.price_usd:
        said.append(f"{asked.price_usd:g} USD for an hour of one GPU, an assumption unless --price was given")
    said.append("captions fill text.max_tokens; the discriminator's head is not counted in memory")
    said.append("layer budgets come by chance, and a step waits for the device whose rows run the most blocks")
    said.append("evaluation, restarts after lost nodes and the time until nodes are there come on top")
    return [*said, f"ingest of the preset's corpus: {ingest_core_hours(asked):.2g} core-hours (rate from docs/data.md)"]


def _print_stages(asked: Question, stages: list[Outlook]) -> None:
    network = asked.network
    name = asked.device.name if asked.device else "core here"
    title = f"{asked.gpus} x {name}, network {network.dim} wide, {network.depth} blocks"
    rows = [
        [
            o.name,
            f"{o.rows}" + (f" in {o.micro_batches}" if o.micro_batches > 1 else ""),
            _seconds(o.step.total),
            f"{o.total_steps}",
            f"{o.hours:.3g}",
            f"{o.cost_usd:.0f}",
            f"{o.memory.total:.1f}" + ("" if o.fits else f" of {o.memory_gb:g} GB!"),
            f"{o.utilisation:.0%}" if o.utilisation else "",
            o.bottleneck,
        ]
        for o in stages
    ]
    hours, usd = sum(o.hours for o in stages), sum(o.cost_usd for o in stages)
    total = ["all", "", "", "", f"{hours:.3g}", f"{usd:.0f}", "", "", ""]
    print_table(title, STAGE_COLUMNS, [*rows, total])
    print_table("load", LOAD_COLUMNS, [_load(o) for o in stages])
    for name, helps in {o.name: o.helps for o in stages}.items():
        typer.echo(f"{name}: {helps}")


def _load(o: Outlook) -> list[str]:
    phases = ", ".join(f"{name} {1e3 * value:.0f}" for name, value in o.phases.items())
    parts = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in o.step.parts.items() if value > 5e-5)
    return [
        o.name,
        phases,
        parts,
        f"{o.read_mb_s:.1f}",
        f"{o.exchange_gb_s:.2f}",
        f"{o.checkpoint_gb:.2g}",
        f"{o.checkpoint_mb_s:.2g}",
    ]


def _print_growth(growth: list[dict[str, Any]]) -> None:
    rows = [
        [
            f"{row['workers']}",
            *(
                [f"{row['hours']:.3g}", f"{row['cost_usd']:.0f}", row["bottleneck"] if row["fits"] else "memory"]
                if "hours" in row
                else ["batch too small", "", ""]
            ),
            f"{row['weak_global_batch_size']}",
            f"{row['weak_samples_per_second']:.0f}",
            f"{row['weak_efficiency']:.0%}",
            f"{row['read_mb_s']:.0f}",
        ]
        for row in growth
    ]
    print_table("all stages with the same batch; and the longest one with a batch that grows", GROWTH_COLUMNS, rows)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms"
