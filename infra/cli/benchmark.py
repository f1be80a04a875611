"""`presto benchmark`: where the time of a clip goes on this machine, and how much of its speed is used."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, Preview
from pipelines.console import console, print_table, print_text
from presto_core.config.device_name import DEVICE_NAMES
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR


def benchmark(
    model: Annotated[
        str, typer.Option(help="A model in the package, or any name that presto generate --model takes.")
    ] = DEFAULT_GENERATOR,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of the sampler.")] = 4,
    device: Annotated[str, typer.Option(help=f"Device to compute on: {DEVICE_NAMES}.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of PyTorch on a CPU.")] = 1,
    compiles: Annotated[bool, typer.Option("--compile", help="Compile the network first, a minute or so.")] = False,
    as_json: AsJson = False,
    dry_run: Preview = False,
) -> None:
    """Measure where the time of a clip goes: start, text, network, decoding, WAV; also FLOP/s, memory and launches."""
    if dry_run:
        print_text(f"would measure clips of {model} with {steps} steps on {device}, for about ten seconds")
        return
    import torch

    from infra.planning.benchmark import cores
    from infra.planning.generation_benchmark import benchmark_generation, measure_start
    from pipelines.inference.generator import load_generator

    if threads > cores():
        raise UserError(f"--threads={threads} is more than the {cores()} cores here; use at most {cores()}")
    torch.set_num_threads(threads)
    generator, start_ms = measure_start(lambda: load_generator(model, device=device, compiled=compiles))
    found = {"start_ms": start_ms, "compiled": compiles, **benchmark_generation(generator, steps=steps)}
    if as_json:
        print_text(json.dumps(found, indent=1))
        return
    _print(model, found)


def _print(name: str, found: dict[str, Any]) -> None:
    hardware = found["hardware"]
    where = f"{hardware['device']}, {hardware['threads']} thread(s)"
    times = found["ms"]
    rows = [
        [f"start: {part}" + ("" if part.endswith("CPU") else ", wall"), f"{ms:.0f}", ""]
        for part, ms in found["start_ms"].items()
    ]
    rows.append(["first clip", f"{found['first_clip_ms']:.1f}", ""])
    rows += [[part, f"{ms['p50']:.1f}", f"{ms['p95']:.1f}"] for part, ms in times.items()]
    name += ", compiled" if found["compiled"] else ""
    title = f"{name}, {found['steps']} steps, a clip of {found['clip_seconds']:.1f} s, {where}, {found['calls']} clips"
    print_table(title, ("what", f"{found['clock']} ms, median", "p95"), rows)
    predicted = found["cost_model"] or {}
    cells = [
        ["network, ms", f"{times['network']['p50']:.1f}", _format(predicted.get("network_ms"), ".1f")],
        ["network, GFLOP", f"{found['flops'] / 1e9:.2f}", _format(predicted.get("flops"), ".2f", 1e-9)],
        [f"launches ({found['launches_are']})", f"{found['launches']}", _format(predicted.get("launches"), ".0f")],
    ]
    print_table("network of one clip", ("what", "measured", "cost model of presto plan"), cells)
    console.print(
        f"the network reaches {found['gflops']:.1f} GFLOP/s, {found['roofline_share']:.0%} of the "
        f"{found['matmul_peak_gflops']:.1f} of a matrix product here; {found['network_ms_per_call']:.1f} ms per call; "
        f"memory: {found['weights_mib']:.0f} MiB of weights, {found['peak_memory_mib']:.0f} MiB more at the peak",
        markup=False,
    )
    console.print("other load on this machine makes all of it slower, and unevenly so", style="dim")


def _format(value: float | None, spec: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, spec)
