"""Where a clip's time goes on this machine: its parts, FLOP/s against measured matrix products, memory, launches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from infra.planning.device_model import BLOCK_KERNELS, MATMUL_SHARE, OUTER_KERNELS, TRAFFIC
from infra.planning.memory import block_bytes, outer_bytes
from pipelines.inference.clip_audio import encode_wav, finish_audio
from pipelines.inference.generator import Generator
from pipelines.inference.model import Model, sample_generator, sample_teacher
from pipelines.inference.prompts import make_conditions, parse_prompt
from presto_core.config.sampling import BaseSampler
from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.metrics.block_activity import record_block_activity
from presto_core.metrics.latency import (
    MIB,
    choose_calls,
    describe_hardware,
    measure_peak_memory,
    summarize_calls,
    time_parts,
)
from presto_core.networks.flops import LatentShape, block_flops, outer_flops
from presto_core.networks.table import read_settings
from presto_core.training.step_rng import make_step_rng

PROMPT = "solo piano, slow, A minor"
TEXT, NETWORK, DECODE, WAV = "text", "network", "decode", "wav"
MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns
COPIED_MIB = 128
LAUNCHES = 500
MOST_CALLS = 20


def benchmark_generation(generator: Generator, *, steps: int, budget_s: float = 5.0) -> dict[str, Any]:
    """Measure one clip of the model's own length at batch 1, again and again for about `budget_s` seconds.

    The peaks of matrix products and of memory are measured in the same run, with the same threads and clock; FLOPs and
    launches are those of the network as it is, compiled or not. `presto plan --measured` reads the result
    (`infra.planning.measured`).
    """
    model = generator.model
    parts, clock = _make_parts(model, steps), choose_clock(model.device)
    first_ms = time_parts(parts, clock=clock)  # with what the process does once: kernels chosen, threads started
    wanted = choose_calls(time_parts(parts, clock=clock)["total"], budget_s=budget_s, least=5, most=MOST_CALLS)
    latency = summarize_calls([time_parts(parts, clock=clock) for _ in range(wanted)])
    plain = replace(model, denoise=EDMDenoiser(model.network, model.card.make_precondition()))  # if it is compiled
    counted = _make_parts(plain, steps)
    cond = counted[TEXT](None)
    work = _count_work(plain, lambda: counted[NETWORK](cond))
    peak, bandwidth = measure_matmul_flops(model.device), measure_copy_bytes(model.device)
    network_s = latency[NETWORK].p50_ms / 1e3
    achieved = work["flops"] / network_s
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.network.parameters())
    return {
        "model": model.artifact.id,
        "hardware": describe_hardware(model.device),
        "device_type": model.device.type,
        "steps": steps,
        "calls": wanted,
        "clock": "CPU" if clock is time.process_time else "wall",
        "clip_seconds": model.card.frames * model.codec.hop / model.codec.sample_rate_hz,
        "first_clip_ms": first_ms["total"],
        "ms": {name: {"p50": part.p50_ms, "p95": part.p95_ms} for name, part in latency.items()},
        "network_ms_per_call": latency[NETWORK].p50_ms / work["network_calls"],
        **work,
        "gflops": achieved / 1e9,
        "matmul_peak_gflops": peak / 1e9,
        "matmul_bf16_peak_gflops": measure_matmul_flops(model.device, torch.bfloat16) / 1e9,
        "launch_us": measure_launch_s(model.device) * 1e6,
        "copy_gb_per_s": bandwidth / 1e9,
        "roofline_share": achieved / peak,
        "weights_mib": weights / MIB,
        "peak_memory_mib": measure_peak_memory(lambda: time_parts(parts), device=model.device),
        "cost_model": predict_network(model, work, peak_flops=peak, copy_bytes_s=bandwidth),
    }


def choose_clock(device: torch.device) -> Callable[[], float]:
    """The CPU clock for one thread, which leaves out the time in which other processes run; else that of the wall."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _make_parts(model: Model, steps: int) -> dict[str, Callable[[Any], Any]]:
    parsed = parse_prompt(PROMPT)
    rate_hz = model.codec.sample_rate_hz

    def sample(cond: Conditioning) -> Tensor:
        rng = make_step_rng(0, total_step=0, device=model.device)
        noise = model.draw_noise(1, generator=rng)
        if model.artifact.kind == "generator":
            return sample_generator(model, noise, cond, steps=steps, schedule=None, generator=rng)
        return sample_teacher(model, noise, cond, sampler=BaseSampler(steps=steps), schedule=None)

    def encode(audio: Tensor) -> bytes:
        finished, _ = finish_audio(audio[0].cpu().numpy(), rate_hz, seconds=None)
        return encode_wav(finished, rate_hz, title=PROMPT, details={})

    return {
        TEXT: lambda _: make_conditions(model, [PROMPT], [parsed]),
        NETWORK: sample,
        DECODE: model.decode,
        WAV: encode,
    }


def _count_work(model: Model, sample: Callable[[], object]) -> dict[str, Any]:
    """Count what one clip's network did: calls, blocks, FLOPs, and launches of kernels, or of operators on a CPU."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = model.network.register_forward_hook(count)
    try:
        with record_block_activity(model.network.blocks) as activity, FlopCounterMode(display=False) as counter:
            sample()
    finally:
        hook.remove()
    launches, kind = _count_kernels(sample) if model.device.type == "cuda" else _count_operators(sample)
    return {
        "network_calls": calls,
        "blocks_run": activity.runs,
        "flops": float(counter.get_total_flops()),
        "launches": launches,
        "launches_are": kind,
    }


def _count_kernels(sample: Callable[[], object]) -> tuple[int, str]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        sample()
        torch.cuda.synchronize()
    events = profiled.events() or []
    return len([e for e in events if str(e.device_type).endswith("CUDA")]), "GPU kernels"


def _count_operators(sample: Callable[[], object]) -> tuple[int, str]:
    """A CPU launches no kernels; each of these operators would be one at least."""
    with _OperatorCount() as counted:
        sample()
    return counted.operators, "CPU operators, without views"


class _OperatorCount(TorchDispatchMode):
    """Counts operators that compute: neither views of memory nor empty tensors."""

    operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [returned.alias_info for returned in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and not func._schema.name.startswith("aten::empty"):
            self.operators += 1
        return func(*args, **(kwargs or {}))


def measure_matmul_flops(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of the fastest of some products of two square matrices: what the network's could reach."""
    size = MATRIX["cuda" if device.type == "cuda" else "cpu"]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / _fastest_s(lambda: a @ b, device)


def measure_copy_bytes(device: torch.device) -> float:
    """Bytes per second that are read and written in a copy that no cache holds."""
    source = torch.randn(COPIED_MIB * MIB // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * COPIED_MIB * MIB / _fastest_s(lambda: target.copy_(source), device)


def measure_launch_s(device: torch.device) -> float:
    """Seconds from one operation to the next if each has next to nothing to compute."""
    tiny = torch.zeros(1, device=device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            tiny.add_(1)

    return _fastest_s(launch, device) / LAUNCHES


def _fastest_s(call: Callable[[], object], device: torch.device, *, calls: int = 7) -> float:
    part, clock = {"call": lambda _: call()}, choose_clock(device)
    return min(time_parts(part, clock=clock)["call"] for _ in range(calls + 1)) / 1e3


def predict_network(
    model: Model, work: dict[str, Any], *, peak_flops: float, copy_bytes_s: float
) -> dict[str, float] | None:
    """What the cost model of `presto plan` says of the same work with these peaks; None for an imported network."""
    settings = read_settings(model.card.network)
    if not isinstance(settings, NetworkConfig):
        return None
    text = model.card.text
    shape = LatentShape(model.card.channels, model.card.frames, int(text["dim"]), int(text["max_tokens"]))
    calls, blocks = work["network_calls"], work["blocks_run"]
    flops = blocks * block_flops(settings, shape) + calls * outer_flops(settings, shape)
    kept = blocks * block_bytes(settings, shape, bf16=False) + calls * outer_bytes(settings, shape, bf16=False)
    seconds = flops / (peak_flops * MATMUL_SHARE[False]) + TRAFFIC * kept / copy_bytes_s
    return {
        "flops": flops,
        "activation_bytes": kept,
        "network_ms": seconds * 1e3,
        "launches": float(blocks * BLOCK_KERNELS + calls * OUTER_KERNELS),
    }


def measure_start(open_model: Callable[[], Generator]) -> tuple[Generator, dict[str, float]]:
    """Open a model with its text encoder and codec; wall time of each, and all of the command's until then."""
    import psutil

    parts = {
        "model": lambda _: open_model(),
        "text encoder": lambda generator: (generator, generator.model.text_encoder)[0],
        "codec": lambda generator: (generator, generator.model.codec)[0],
    }
    took_ms, value = dict[str, float](), None
    for name, part in parts.items():
        began = time.perf_counter()
        value = part(value)
        took_ms[name] = (time.perf_counter() - began) * 1e3
    took_ms["command until here"] = (time.time() - psutil.Process().create_time()) * 1e3
    took_ms["command until here, CPU"] = time.process_time() * 1e3
    assert value is not None
    return value, took_ms
