"""What an NVIDIA GPU does at the size of the paper, in at most ten minutes: `make bench-gpu`.

Generation (32 s, Presto-LS in four steps) as it is, in bf16, and as CUDA graphs; the decoder; launches; and how much of
the device's peak distillation uses. Weights are random: only shapes matter for time. It needs PyTorch and this checkout
(`PYTHONPATH=. python -m tests.bench.gpu`), and diffusers for the decoder. Writes all figures as JSON and prints a table
in Markdown. `--device cpu --preset from_scratch --frames 16 --calls 1 --eager` tries it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from infra.planning.device_model import BLOCK_KERNELS, OUTER_KERNELS, TRAFFIC, rates_from_specs
from infra.planning.generation_benchmark import measure_matmul_flops
from infra.planning.memory import block_bytes, outer_bytes
from pipelines.presets.resolve import PRESETS
from pipelines.train.device_specs import DEVICES, Device, device_by_key
from pipelines.train.parallel import make_single_process
from pipelines.train.step_flops import count_stage_flops
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage
from presto_core.config.sections import LoopConfig
from presto_core.device import resolve_device
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.errors import UserError
from presto_core.metrics.latency import describe_hardware, summarize_calls, time_parts
from presto_core.networks.compilation import CompiledNetwork
from presto_core.networks.dit import DiT
from presto_core.networks.flops import LatentShape, block_flops, outer_flops
from presto_core.networks.layer_budget import LayerBudget
from presto_core.networks.precision import round_matrices
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas
from presto_core.training.state import make_step_rng
from presto_core.training.step_distillation import StepDistillation
from tests.bench.gpu_setting import Setting, make_budget, make_decoder, make_network
from tests.bench.iteration import CHANNELS, TEXT_DIM, TOKENS, example_batch

STEPS, SIGMAS = 4, {"sigma_min": 0.3, "sigma_max": 80.0, "rho": 7.0}
Row = tuple[str, float, str]


def measure_generation(setting: Setting) -> list[Row]:
    """Return the median time of the network's four calls in each way of computing, and how far latents are apart."""
    budget = make_budget(setting)
    rows: list[Row] = []
    expected: Tensor | None = None
    for name, dtype, compiled in _list_ways(setting):
        sample, net = _make_sampler(setting, budget, dtype, compiled=compiled)
        latents = sample()
        expected = latents if expected is None else expected
        error = float((latents - expected).std() / expected.std())
        rows.append((f"{name}, {STEPS} steps", _time(sample, setting.calls), f"{error:.1e} of the latents apart"))
        if setting.device.type == "cuda":
            rows.append((f"{name}: launches of a clip", float(_count_launches(sample)), ""))
        del sample, net
    return rows


def _list_ways(setting: Setting) -> list[tuple[str, torch.dtype | None, bool]]:
    graphs = "CUDA graphs" if setting.device.type == "cuda" else "compiled"
    ways: list[tuple[str, torch.dtype | None, bool]] = [
        ("network, fp32", None, False), ("network, bf16", torch.bfloat16, False)
    ]  # fmt: skip
    return [*ways, (f"network, bf16, {graphs}", torch.bfloat16, True)] if setting.compiles else ways


def _make_sampler(
    setting: Setting, budget: LayerBudget, dtype: torch.dtype | None, *, compiled: bool
) -> tuple[Callable[[], Tensor], DiT]:
    net = make_network(setting, budget).eval().requires_grad_(False)
    if dtype:
        round_matrices(net, dtype)
    called = CompiledNetwork(net, setting="compile", report=print) if compiled else net
    denoise = EDMDenoiser(called, 1.0, dtype)
    torch.manual_seed(0)
    cond = example_batch(1, setting.frames).cond.to(setting.device)
    noise = torch.randn(1, CHANNELS, setting.frames).to(setting.device)
    sigmas = few_step_sigmas(STEPS, **SIGMAS)

    @torch.inference_mode()
    def sample() -> Tensor:
        rng = make_step_rng(0, total_step=0, device=setting.device)
        return ping_pong(denoise, noise, sigmas, cond, generator=rng, budget=budget.blocks_at)

    return sample, net


def measure_decoders(setting: Setting) -> list[Row]:
    """Return the median time of Stable Audio's autoencoder, with random weights, for the clip in mono and in stereo."""
    if find_spec("diffusers") is None:
        return [("decoder", float("nan"), "not measured: diffusers is not installed")]
    rows: list[Row] = []
    for name, channels in (("mono", 1), ("stereo", 2)):
        decoder = make_decoder(channels).eval().to(setting.device).bfloat16()
        latents = torch.randn(1, CHANNELS, setting.frames, device=setting.device, dtype=torch.bfloat16)

        @torch.inference_mode()
        def decode(decoder: Any = decoder, latents: Tensor = latents) -> Tensor:
            return decoder.decode(latents).sample

        rows.append((f"decoder, bf16, {name}", _time(decode, setting.calls), ""))
    return rows


def measure_distillation(setting: Setting) -> list[Row]:
    """Return the seconds of a step of Presto-S in bf16, and the share of the device's peak that its FLOPs are."""
    size = ["cluster.num_workers=0", "loop.micro_batch_size=0", f"steps.global_batch_size={setting.rows}"]
    stage = load_config(StepsStage, setting.preset, size, preset_folder=PRESETS)
    shape = LatentShape(CHANNELS, setting.frames, TEXT_DIM, TOKENS)
    cycle = stage.steps.fake_updates_per_generator_update + 1
    flops = count_stage_flops(stage, setting.network.depth).flops(setting.network, shape) * setting.rows
    peak, source = _find_peak(setting.device)
    rows: list[Row] = []
    for compiled in (False, True) if setting.compiles else (False,):
        loop = LoopConfig(autocast="bf16", compile=compiled, micro_batch_size=setting.rows)
        parallel = make_single_process(loop, setting.device)
        algorithm = StepDistillation(
            stage.steps, make_network(setting), sigma_data=1.0, parallel=parallel, autocast_dtype=torch.bfloat16
        )
        batch = example_batch(setting.rows, setting.frames)
        batch = type(batch)(batch.x0.to(setting.device), batch.cond.to(setting.device), batch.cursor)

        def iterate(algorithm: StepDistillation = algorithm, batch: Any = batch) -> None:
            for _ in range(cycle):
                rng = make_step_rng(0, total_step=algorithm.state.total_step, device=setting.device)
                algorithm.update(batch, generator=rng)
                algorithm.state.total_step += 1

        step_ms = _time(iterate, min(setting.calls, 5)) / cycle
        name = f"distill-steps, bf16{', compiled' * compiled}, {setting.rows} rows: a step"
        share = flops / (step_ms / 1e3) / peak
        rows.append((name, step_ms, f"{flops / 1e12:.3g} TFLOP, {share:.0%} of {peak / 1e12:.4g} TFLOP/s ({source})"))
    return rows


def project_generation(setting: Setting, device: Device) -> list[Row]:
    """Return what data sheets and the assumptions of `presto plan` say of the same clip; nothing is measured."""
    rates, network = rates_from_specs(device, bf16=True), setting.network
    shape = LatentShape(CHANNELS, setting.frames, TEXT_DIM, TOKENS)
    budget = make_budget(setting)
    blocks = sum(map(budget.blocks_at, few_step_sigmas(STEPS, **SIGMAS).tolist()))
    flops = blocks * block_flops(network, shape) + STEPS * outer_flops(network, shape)
    kept = blocks * block_bytes(network, shape, bf16=True) + STEPS * outer_bytes(network, shape, bf16=True)
    launches = blocks * BLOCK_KERNELS + STEPS * OUTER_KERNELS
    computing_s = flops / rates.flops + TRAFFIC * kept / rates.bytes_s
    note = f"{flops / 1e12:.2g} TFLOP, {blocks} blocks"
    rows = [
        (f"network, bf16, CUDA graphs, {STEPS} steps", 1e3 * computing_s, note),
        (f"network, bf16, {STEPS} steps", 1e3 * max(computing_s, launches * rates.launch_s), f"{launches} launches"),
    ]
    for name, channels in (("mono", 1), ("stereo", 2)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            make_decoder(channels).decode(torch.empty(1, CHANNELS, setting.frames))
        done = counter.get_total_flops()
        rows.append((f"decoder, bf16, {name}", 1e3 * done / rates.flops, f"{done / 1e12:.2g} TFLOP"))
    return rows


def _find_peak(device: torch.device) -> tuple[float, str]:
    name = str(describe_hardware(device)["device"])
    for known in DEVICES.values():
        if known.marks in name:
            return known.peak_flops(bf16=True), known.source
    return measure_matmul_flops(device, torch.bfloat16), "a matrix product measured here"


def _time(call: Callable[[], object], calls: int) -> float:
    """Median milliseconds, after three calls that are not counted."""
    part = {"call": lambda _: call()}
    return summarize_calls([time_parts(part) for _ in range(calls + 3)][3:])["call"].p50_ms


def _count_launches(call: Callable[[], object]) -> int:
    """What the host starts on the GPU: kernels one by one, and whole graphs."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    return sum(
        event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"))
        for event in profiled.events() or []
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="paper", help="network, budgets and distillation settings")
    parser.add_argument("--frames", type=int, default=689, help="latent frames of a clip; 689 are 32 s")
    parser.add_argument("--calls", type=int, default=20, help="measurements of each thing; their median counts")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step of distillation")
    parser.add_argument("--eager", action="store_true", help="leave out what takes minutes to compile")
    parser.add_argument("--output", type=Path, default=Path(".presto/bench_gpu.json"))
    parser.add_argument("--project", metavar="DEVICE", help="measure nothing: print what is expected of a device")
    arguments = parser.parse_args()
    if arguments.project:
        setting = Setting(arguments.preset, torch.device("meta"), arguments.frames, 0, 0, compiles=False)
        rows = project_generation(setting, device_by_key(arguments.project))
        print_rows(
            f"{arguments.project}, not measured, {setting.preset} network, {setting.frames} frames, batch 1", rows
        )
        return
    device = resolve_device(arguments.device, setting="--device")
    setting = Setting(
        arguments.preset, device, arguments.frames, arguments.calls, arguments.rows, compiles=not arguments.eager
    )
    started, rows = time.monotonic(), []
    for measure in (measure_generation, measure_decoders, measure_distillation):
        rows += measure(setting)
        found = {
            "hardware": describe_hardware(device),
            "preset": setting.preset,
            "frames": setting.frames,
            "minutes": (time.monotonic() - started) / 60,
            "rows": [{"what": what, "median": number, "note": note} for what, number, note in rows],
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1))  # after each part: a later one may end the process
    print_rows(
        f"{describe_hardware(device)['device']}, {setting.preset} network, {setting.frames} frames, batch 1", rows
    )
    print(f"\nwritten to {arguments.output}")


def print_rows(title: str, rows: list[Row]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n\n| what | ms, or launches | |\n|---|---:|---|")
    for what, number, note in rows:
        print(f"| {what} | {number:.4g} | {note} |")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:  # no such device, no compiler
        raise SystemExit(f"bench-gpu: {error}") from None
