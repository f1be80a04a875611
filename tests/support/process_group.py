"""Real processes in a torch.distributed group (gloo), and the algorithms at toy size to run in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from pipelines.train.parallel import make_process_group
from presto_core.config.layers import TableBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import LoopConfig, ParallelConfig
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.loop import Hooks, train
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, Batch
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.support.checkpoints import is_time
from tests.support.toy_networks import batches, tiny_dit

GLOBAL_BATCH, DEPTH = 8, 4
# 16 head channels are normalised in pairs: a bias has no effect on a channel that is normalised alone, so its gradient
# is rounding noise, which Adam scales up to full steps
STEPS = {
    "generator_updates": 2,
    "fake_updates_per_generator_update": 1,
    "guidance_scale": 1.5,
    "gan.head_layers": 1,
    "gan.head_channels": 16,
}
KEPT = (1, 2, 2, 3, 3)  # block 2 never runs; which others run depends on the rows


def teacher(parallel: Parallel) -> Algorithm:
    config = load_config(TeacherStage, overrides={"teacher.steps": 3, "teacher.optim.warmup_steps": 0}).teacher
    return TeacherTraining(config, tiny_dit(depth=DEPTH), sigma_data=1.0, parallel=parallel)


def layers(parallel: Parallel) -> Algorithm:
    keys = {"layers.steps": 3, "layers.budget.kind": "table", "layers.budget.kept": KEPT}
    config = load_config(LayersStage, overrides=keys).layers
    return LayerDistillation(config, tiny_dit(depth=DEPTH), sigma_data=1.0, parallel=parallel)


def steps(parallel: Parallel, *, keys: dict[str, object]) -> Algorithm:
    config = load_config(StepsStage, overrides={f"steps.{k}": v for k, v in (STEPS | keys).items()}).steps
    return StepDistillation(config, tiny_dit(depth=DEPTH), sigma_data=1.0, parallel=parallel)


def both(parallel: Parallel, *, keys: dict[str, object]) -> Algorithm:
    config = load_config(StepsStage, overrides={f"steps.{k}": v for k, v in (STEPS | keys).items()}).steps
    base = tiny_dit(depth=DEPTH)
    budget = LayerBudget.from_distribution(
        KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0), TableBudget(kept=KEPT), depth=DEPTH
    )
    return StepDistillation(
        config, base, start=base.with_budget(budget), budget=budget, sigma_data=1.0, parallel=parallel
    )


ALGORITHMS: dict[str, Callable[[Parallel], Algorithm]] = {
    "teacher": teacher,
    "L": layers,
    "S": partial(steps, keys={"gan.r1_weight": 0.1}),
    "S, rollout": partial(
        steps, keys={"generator_input": "rollout", "gan.kind": "relativistic", "gan.weight_mode": "absolute"}
    ),
    "S, shared taps": partial(steps, keys={"shared_taps": True, "gan.r1_weight": 0.1}),
    "LS": partial(both, keys={}),
    "LS, adapters": partial(both, keys={"lora.rank": 2}),
}


SHARDED = ParallelConfig(**dict.fromkeys(("teacher", "layers", "generator", "fake_score", "real_score"), "shard"))


def result(name: str, parallel: Parallel, *, micro_batch_size: int = 0) -> dict[str, Tensor]:
    """Run all steps of one of `ALGORITHMS`; see `run`."""
    parallel = replace(parallel, micro_batch_size=micro_batch_size)
    return run(ALGORITHMS[name](parallel), parallel)


def run(
    algorithm: Algorithm, parallel: Parallel, *, stream: Callable[..., Iterator[Batch]] = batches
) -> dict[str, Tensor]:
    """Train, and return trained and EMA weights after the last step, and all metrics except times of all steps.

    Args:
        stream: endless global batches of `size` rows from a `cursor` on.
    """
    found: dict[str, Tensor] = {}

    def log(step: int, metrics: dict[str, float]) -> None:
        timeless = {k: v for k, v in metrics.items() if not is_time(k)}
        found.update({f"step {step}: {k}": torch.tensor(v) for k, v in timeless.items()})

    loop = LoopConfig(log_every=1, checkpoint_every=1000)
    rows = worker_batches(parallel, stream(size=GLOBAL_BATCH, cursor=algorithm.state.cursor))
    train(algorithm, rows, seed=3, config=loop, parallel=parallel, hooks=Hooks(log=log))
    state = algorithm.state.state_dict()
    for kind in ("networks", "emas"):
        for network, weights in state[kind].items():
            found |= {f"{kind}.{network}: {k}": v for k, v in weights.items()}
    return found


def worker_batches(parallel: Parallel, stream: Iterator[Batch]) -> Iterator[Batch]:
    """Yield one worker's rows of an endless stream of global batches."""
    rows = GLOBAL_BATCH // parallel.world_size
    for batch in stream:
        yield batch.rows(slice(parallel.rank * rows, (parallel.rank + 1) * rows))


def run_in_processes(count: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Return the results (tensors, dicts) of `function(*args)` in each of `count` processes of a group."""
    folder.mkdir(parents=True)
    spawn(_run_member, (count, str(folder), function, args), nprocs=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _run_member(rank: int, count: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    try:
        torch.save(function(*args), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def join_group(config: ParallelConfig | None = None, **loop: Any) -> Parallel:
    """Join this process to the group that `run_in_processes` made."""
    return make_process_group(torch.device("cpu"), LoopConfig(**loop), config)


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute everything in fp64, also where the code requests fp32, so that differences are not rounding."""
    as_float = torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = as_float  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference between tensors of the same names, relative to each one's largest value."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1e-6)) for k in a)
