"""`presto plan`: estimate time, memory and cost of a preset on N devices, without any of them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.cli.options import StageArgs
from infra.planning.device_model import TRAFFIC, DeviceModel
from infra.planning.estimate import StageEstimate, Training
from infra.planning.measured import MeasuredDevice, check_measured_device, read_measured_device
from infra.planning.network_size import count_blocks, find_width
from infra.planning.planner import (
    DeviceModelFn,
    PlanRequest,
    batch_of,
    estimate_stages,
    ingest_core_hours,
    make_plan_request,
    make_specs_model_fn,
    read_foreign_teacher,
    tabulate_scaling,
)
from pipelines.console import console, print_table, print_text
from pipelines.presets.resolve import split_preset
from pipelines.train.device_specs import DEVICES, device_by_key
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.sections import LayersConfig, StepsConfig
from presto_core.errors import UserError
from presto_core.networks.flops import LatentShape

STAGE_COLUMNS = ("stage", "rows per GPU", "step", "steps", "hours", "USD", "GiB per GPU", "MFU", "bottleneck")
LOAD_COLUMNS = ("stage", "ms per phase", "ms by part", "read MB/s", "GB/s per GPU", "checkpoint GB", "write MB/s")
GROWTH_COLUMNS = ("GPUs", "hours", "USD", "bottleneck", "growing batch", "rows/s", "efficiency", "read MB/s")


def plan(
    args: StageArgs = None,
    gpus: Annotated[
        int,
        typer.Option("--gpus", "--workers", min=1, help="Training workers, one per GPU (or core, with --device here)."),
    ] = 8,
    device: Annotated[
        str, typer.Option(help=f"{', '.join(DEVICES)}; or here: this machine's CPU, measured in about a minute.")
    ] = "h100",
    network_gbit: Annotated[float, typer.Option(min=0.1, help="Network bandwidth per node in Gbit/s.")] = 400.0,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="USD per GPU-hour; default: an assumed price of the device.", show_default=False),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="Folder of a teacher to import, in place of the preset's network; its settings are enough.",
            show_default=False,
        ),
    ] = "",
    seconds: Annotated[
        float | None,
        typer.Option(min=0.01, help="Length of its clips, if it makes any: model.seconds.", show_default=False),
    ] = None,
    measured_file: Annotated[
        str,
        typer.Option(
            "--measured",
            help="JSON file of presto benchmark --json on such a device: its FLOP/s, memory bandwidth and launch time "
            "replace those assumed of a GPU, and the measurement of --device here.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be computed and measured, and stop.")
    ] = False,
) -> None:
    """Estimate time, memory, load, cost and bottleneck of a preset's training on up to 512 GPUs; starts nothing."""
    specs = None if device == "here" else device_by_key(device)
    if seconds is not None and not teacher:
        raise UserError(f"--seconds {seconds:g} is of a teacher to import; name it with --teacher")
    foreign = read_foreign_teacher(teacher, seconds) if teacher else None
    request = make_plan_request(
        *split_preset(args or []), gpus=gpus, device=specs, node_gbit=network_gbit, price=price, foreign=foreign
    )
    measured = _read_measured_device(measured_file, request) if measured_file else None
    if dry_run:
        _print_request(request, measured_file)
        return
    model_fn = make_specs_model_fn(request, measured) if specs or measured else _make_measured_model_fn(request)
    stages = estimate_stages(request, model_fn)
    growth = tabulate_scaling(request, model_fn) if specs else []
    assumptions = _list_assumptions(request, model_fn)
    if as_json:
        body = {"stages": [o.to_dict() for o in stages], "growth": growth, "assumptions": assumptions}
        source = {"measured": measured_file} if measured_file else {}
        print_text(json.dumps({"gpus": gpus, "device": device, **source, **body}, indent=1))
        return
    _print_stages(request, stages)
    if growth:
        _print_growth(growth)
    for assumption in assumptions:
        print_text(f"- {assumption}")


def _read_measured_device(path: str, request: PlanRequest) -> MeasuredDevice:
    measured = read_measured_device(path, traffic=TRAFFIC)
    check_measured_device(measured, request.device, threads=request.configs["teacher"].cluster.torch_threads)
    return measured


def _print_request(request: PlanRequest, measured_file: str) -> None:
    cpu = "CPU worker" if measured_file else "this machine's CPU, after about a minute of measurement"
    where = (request.device.name if request.device else cpu) + (f" as in {measured_file}" if measured_file else "")
    for name, config in request.stages.items():
        print_text(f"{name}: on {request.gpus} x {where}, {config.derive_values()}")


def _make_measured_model_fn(request: PlanRequest) -> DeviceModelFn:
    """Return a function that measures this machine, once per batch shape.

    Raises:
        UserError: the machine has fewer cores than the workers need.
    """
    from infra.planning.benchmark import cores, measure_device

    threads = request.configs["teacher"].cluster.torch_threads
    if request.gpus * threads > cores():
        raise UserError(
            f"this machine has {cores()} cores, and --gpus {request.gpus} with cluster.torch_threads={threads} needs "
            f"{request.gpus * threads}; lower one of them, or choose another --device"
        )
    found: dict[tuple[LatentShape, int, int], DeviceModel] = {}

    def device_model(config: Training, workers: int, rows: int) -> DeviceModel:
        rows = min(rows, config.loop.micro_batch_size or rows)
        key = (request.shape(config), rows, workers)
        if key not in found:
            width = request.own_network.dim
            console.print(f"measuring blocks of width {width}, {rows} rows, {workers} workers at once")
            found[key] = measure_device(
                request.own_network, key[0], rows=rows, workers=workers, threads=threads, gan=request.gan
            )
        return found[key]

    return device_model


def _list_assumptions(request: PlanRequest, model_fn: DeviceModelFn) -> list[str]:
    base = next(iter(request.stages.values()))
    assumptions = [*model_fn(base, request.gpus, batch_of(base) // request.gpus).assumptions]
    if request.teacher:
        assumptions.append(f"{request.teacher} is distilled, which exists: no teacher is trained")
    if request.foreign:
        assumptions.append("its FLOPs and activations are those of its class on tensors without data")
    if any(config.lora.rank for config in _list_sections(request)):
        assumptions.append("adapters: passes and activations are counted as those of networks that train all weights")
    if request.price_usd:
        assumptions.append(f"{request.price_usd:g} USD per GPU hour, an assumption unless --price is given")
    assumptions.append("captions fill text.max_tokens; memory excludes the discriminator's head")
    assumptions.append("layer budgets are random, and a step waits for the device whose rows run the most blocks")
    assumptions.append("evaluation, restarts after lost nodes and the wait for nodes are not included")
    return [
        *assumptions,
        f"ingest of the preset's corpus: {ingest_core_hours(request):.2g} core-hours (rate from docs/data.md)",
    ]


def _list_sections(request: PlanRequest) -> list[LayersConfig | StepsConfig]:
    stages = request.stages.values()
    return [
        stage.layers if isinstance(stage, LayersStage) else stage.steps
        for stage in stages
        if isinstance(stage, LayersStage | StepsStage)
    ]


def _print_stages(request: PlanRequest, stages: list[StageEstimate]) -> None:
    network = request.network
    name = request.device.name if request.device else "local core"
    title = f"{request.gpus} x {name}, network of width {find_width(network)}, {count_blocks(network)} blocks"
    rows = [
        [
            o.name,
            f"{o.rows}" + (f" in {o.micro_batches}" if o.micro_batches > 1 else ""),
            _format_seconds(o.step.total),
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
    print_table("load", LOAD_COLUMNS, [_load_cells(o) for o in stages])
    for name, helps in {o.name: o.remedy for o in stages}.items():
        print_text(f"{name}: {helps}")


def _load_cells(o: StageEstimate) -> list[str]:
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
    print_table("all stages with a fixed batch; the longest stage with a growing batch", GROWTH_COLUMNS, rows)


def _format_seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms"
