"""Memory of step distillation with all weights and with adapters: python -m tests.bench.lora [--size small]."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.config.sections import GanConfig, LoraConfig, StepsConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.preconditions import VCosine
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.training.state import Batch, Cursor, make_step_rng
from presto_core.training.step_distillation import StepDistillation

GIB = 2**30
SIZES = {  # blocks, heads of 64 features
    "small": (6, 12),
    "stable-audio-open": (24, 24),
}
TEXT_DIM, CHANNELS, TOKENS = 768, 64, 32


def make_teacher(blocks: int, heads: int) -> DiffusersNetwork:
    """Build a random transformer with the settings of Stable Audio Open, but for depth and width."""
    transformer = {
        "sample_size": 1024, "in_channels": CHANNELS, "num_layers": blocks, "attention_head_dim": 64,
        "num_attention_heads": heads, "num_key_value_attention_heads": heads // 2, "out_channels": CHANNELS,
        "cross_attention_dim": TEXT_DIM, "time_proj_dim": 256, "global_states_input_dim": 2 * TEXT_DIM,
        "cross_attention_input_dim": TEXT_DIM,
    }  # fmt: skip
    conditioner = {"text_encoder_dim": TEXT_DIM, "conditioning_dim": TEXT_DIM, "min_value": 0, "max_value": 512}
    config = DiffusersNetworkConfig(
        transformer_class="StableAudioDiTModel", transformer=transformer, conditioner=conditioner, text_tokens=TOKENS,
        clip_seconds=47.55, frozen=("transformer.time_proj.weight",),
    )  # fmt: skip
    return DiffusersNetwork(config)


def make_batch(frames: int) -> Batch:
    cond = Conditioning(
        torch.randn(1, TEXT_DIM), torch.randn(1, TOKENS, TEXT_DIM), torch.ones(1, TOKENS, dtype=torch.bool),
        torch.full((1,), torch.nan), torch.full((1,), UNKNOWN_KEY), torch.ones(1, dtype=torch.bool),
        torch.tensor([[0.0, 47.0]]),
    )  # fmt: skip
    return Batch(torch.randn(1, CHANNELS, frames), cond, Cursor())


def count_bytes(tensors: list[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def measure(size: str, rank: int, frames: int) -> dict[str, Any]:
    """Run one critic and one generator update in this process, and measure what is kept and the most that was."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = StepsConfig(
        generator_updates=1, fake_updates_per_generator_update=1, lora=LoraConfig(rank=rank),
        gan=GanConfig(head_layers=1, head_channels=64), guidance_scale=7,
    )  # fmt: skip
    teacher = make_teacher(*SIZES[size])
    algorithm = StepDistillation(config, teacher, precondition=VCosine())
    state, started = algorithm.state, time.perf_counter()
    for step in range(algorithm.total_steps):
        algorithm.update(make_batch(frames), generator=make_step_rng(0, total_step=step))
        state.total_step += 1
    networks = [teacher, *state.networks.values(), *(ema.network for ema in state.emas.values())]
    weights = [p for network in networks for p in network.parameters()]
    trained = [p for p in weights if p.requires_grad]
    moments = [v for o in state.optimizers.values() for s in o.state.values() for v in s.values() if v.numel() > 1]
    checkpoint = state.state_dict()
    return {
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "weights": count_bytes([p.detach() for p in weights]),
        "gradients": count_bytes([p.detach() for p in trained]),
        "moments": count_bytes(moments),
        "checkpoint": count_bytes(_list_tensors(checkpoint)),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.perf_counter() - started,
    }


def _list_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for child in children for tensor in _list_tensors(child)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 16, 64], help="0 trains all weights")
    parser.add_argument("--frames", type=int, default=32, help="latent frames of the row")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(arguments.size, arguments.child, arguments.frames)))
        return
    print("| rank | parameters | weights GiB | gradients | moments | sum | checkpoint | peak of the process |")
    print("|---|---|---|---|---|---|---|---|")
    for rank in arguments.ranks:  # each in a process of its own, whose peak is its own
        settings = ["--size", arguments.size, "--frames", str(arguments.frames), "--child", str(rank)]
        command = [sys.executable, "-m", "tests.bench.lora", *settings]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.strip().splitlines()[-1])
        kept = [found[name] / GIB for name in ("weights", "gradients", "moments")]
        row = [*kept, sum(kept), found["checkpoint"] / GIB, found["peak"] / GIB]
        cells = " | ".join(f"{gib:.2f}" for gib in row)
        print(f"| {rank or 'all weights'} | {found['parameters'] / 1e6:.0f} M | {cells} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
