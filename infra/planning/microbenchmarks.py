"""Time the parts of a training step in this process: a block, the rest of a network, updates, exchange."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed, nn

from infra.planning.device_model import LinearCost
from pipelines.train.parallel import make_process_group
from pipelines.train.step_flops import FORWARD_EQUIVALENTS, PassKind
from presto_core.config.sections import GanConfig, LoopConfig, NetworkConfig, OptimConfig, TeacherConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.discriminator import PatchHead
from presto_core.networks.flops import LatentShape, num_parameters, num_tokens
from presto_core.networks.network import Network
from presto_core.networks.table import kind_of
from presto_core.training import optim
from presto_core.training.ema import Ema
from presto_core.training.parallel import SINGLE_PROCESS, Parallel
from presto_core.training.row_rng import RowRng
from presto_core.training.state import Batch, Cursor, make_step_rng
from presto_core.training.teacher import TeacherTraining

FEW, MANY = 1, 3  # depths of the timed networks; their difference is the time of two blocks
MIN_TIMING_S, MIN_CALLS = 0.3, 5  # per timing
CALLS_TOGETHER = 8  # steps of a group per timing
Seconds = Callable[[Callable[[], object]], float]


def make_timer(clock: Callable[[], float]) -> Seconds:
    def seconds(call: Callable[[], object]) -> float:
        call()
        times: list[float] = []
        while len(times) < MIN_CALLS or sum(times) < MIN_TIMING_S:
            began = clock()
            call()
            times.append(clock() - began)
        return median(times)

    return seconds


def measure_constants(
    network: NetworkConfig, shape: LatentShape, gan: GanConfig, *, rows: int, seconds: Seconds
) -> dict[str, Any]:
    """Measure all constants: name -> seconds, or [fixed, per unit] of a linear cost."""
    torch.manual_seed(0)
    net = _make_network(network, shape, MANY)
    found: dict[str, Any] = {}
    amounts = sorted({max(rows // 2, 1), max(rows, 2)})
    for kind in FORWARD_EQUIVALENTS:
        points = [(amount, *_time_block_and_outer(net, shape, kind, amount, seconds)) for amount in amounts]
        found[f"block {kind}"] = _fit_line([(amount, block) for amount, block, _ in points])
        found[f"outer {kind}"] = _fit_line([(amount, outer) for amount, _, outer in points])
    found |= _time_updates(network, shape, seconds) | _time_head(network, shape, gan, amounts[-1], seconds)
    found["draw"] = _time_noise(shape, amounts[-1], seconds)
    steps = {depth: _time_step(network, shape, depth, amounts[-1], seconds) for depth in (FEW, MANY)}
    found["overhead"] = max(steps[FEW] - _sum_timed_parts(network, shape, amounts[-1], found), 0.0)
    found["exchange"] = _time_exchange(network, shape, amounts[-1], steps)
    return found


def _make_network(network: NetworkConfig, shape: LatentShape, depth: int) -> Network:
    settings = network.model_copy(update={"depth": depth})
    net = kind_of(settings).build(settings, shape.channels, shape.text_dim, None)
    for weight in net.parameters():  # weights that start at zero would be faster to multiply
        nn.init.normal_(weight, std=0.02)
    return net


def _time_block_and_outer(
    net: Network, shape: LatentShape, kind: PassKind, rows: int, seconds: Seconds
) -> tuple[float, float]:
    """Return the seconds of one block and of everything else, in a pass of `rows` rows."""
    batch = example_batch(shape, rows)
    net.requires_grad_(kind == "train")
    x = batch.x0.clone().requires_grad_(kind == "through")

    def call(blocks: int) -> None:
        with torch.set_grad_enabled(kind != "forward"):
            out = net(x, torch.zeros(rows), batch.cond, blocks)
        assert isinstance(out, Tensor)
        if kind != "forward":
            out.mean().backward()
            x.grad = None
            net.zero_grad(set_to_none=False)

    many, few = seconds(lambda: call(MANY)), seconds(lambda: call(FEW))
    block = max(many - few, 0.0) / (MANY - FEW)
    return block, max(few - FEW * block, 0.0)


def _time_updates(network: NetworkConfig, shape: LatentShape, seconds: Seconds) -> dict[str, list[float]]:
    """Time the optimizer and the moving average at two sizes of a network."""
    updates: list[tuple[float, float]] = []
    averages: list[tuple[float, float]] = []
    for depth in (FEW, MANY):
        net = _make_network(network, shape, depth).requires_grad_(True)
        gradients = [torch.randn_like(p) * 1e-3 for p in net.parameters()]
        config, ema = OptimConfig(), Ema(net, 0.99)
        optimizer = optim.build_adamw(net.parameters(), config)
        size = num_parameters(network.model_copy(update={"depth": depth}), shape)

        def update(net: Network = net, gradients: list[Tensor] = gradients, optimizer: Any = optimizer) -> None:
            for weight, gradient in zip(net.parameters(), gradients):
                weight.grad = gradient
            optim.step({"net": (optimizer, OptimConfig())}, update=0, total_updates=10)

        updates.append((size, seconds(update)))
        averages.append((size, seconds(partial(ema.update, net))))
    return {"update": _fit_line(updates), "average": _fit_line(averages)}


def _time_noise(shape: LatentShape, rows: int, seconds: Seconds) -> float:
    batch, sigma = example_batch(shape, rows), torch.ones(rows)
    rng = torch.Generator().manual_seed(0)
    return seconds(lambda: RowRng(rng, local_rows=slice(0, rows), global_rows=rows).add_noise(batch.x0, sigma)) / rows


def _time_head(
    network: NetworkConfig, shape: LatentShape, gan: GanConfig, rows: int, seconds: Seconds
) -> dict[str, list[float]]:
    """Time a discriminator head on the activations of its blocks."""
    taps = len(gan.taps) or 1
    head = PatchHead(network.dim, num_taps=taps, channels=gan.head_channels, layers=gan.head_layers)
    features = [torch.randn(rows, network.dim, num_tokens(network, shape)) for _ in range(taps)]

    def call(kind: PassKind) -> None:
        head.requires_grad_(kind == "train")
        leaves = [f.requires_grad_(kind != "forward") for f in features]
        scores = head(leaves)
        if kind != "forward":
            scores.mean().backward()

    return {f"head {work}": [0.0, seconds(partial(call, work)) / rows] for work in FORWARD_EQUIVALENTS}


def _time_step(
    network: NetworkConfig,
    shape: LatentShape,
    depth: int,
    rows: int,
    seconds: Seconds,
    parallel: Parallel = SINGLE_PROCESS,
) -> float:
    """Time a complete step of teacher training, the simplest algorithm."""
    net = _make_network(network, shape, depth).requires_grad_(True)
    training = TeacherTraining(TeacherConfig(), net, sigma_data=1.0, parallel=parallel)
    batch = example_batch(shape, rows)
    return seconds(lambda: training.update(batch, generator=make_step_rng(0, total_step=0)))


def _sum_timed_parts(network: NetworkConfig, shape: LatentShape, rows: int, found: dict[str, Any]) -> float:
    """Return the seconds of those parts of a step of the shallow network that were timed separately."""
    size = num_parameters(network.model_copy(update={"depth": FEW}), shape)
    passes = sum(LinearCost(*found[f"{part} train"]).seconds(rows) for part in ("block", "outer"))
    return passes + found["draw"] * rows + sum(LinearCost(*found[name]).seconds(size) for name in ("update", "average"))


def _time_exchange(network: NetworkConfig, shape: LatentShape, rows: int, alone: dict[int, float]) -> list[float]:
    """Return the latency in seconds of averaging gradients over the group, and its bytes per second."""
    workers = distributed.get_world_size()
    if workers == 1:
        return [0.0, 1e12]
    group = make_process_group(torch.device("cpu"), LoopConfig())
    points = []
    for depth in (FEW, MANY):
        size = 4 * num_parameters(network.model_copy(update={"depth": depth}), shape)
        together = _time_step(network, shape, depth, rows, _time_same_calls, group)
        points.append((2 * (workers - 1) / workers * size, max(together - alone[depth], 1e-6)))
    latency, per_byte = _fit_line(points)
    return [latency, 1 / max(per_byte, 1e-12)]


def _time_same_calls(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call that every worker repeats equally often, since each waits for the others."""
    began, clock = 0.0, time.process_time
    for turn in range(CALLS_TOGETHER + 1):
        if turn == 1:  # the first call warms up
            began = clock()
        call()
    return (clock() - began) / CALLS_TOGETHER


def _fit_line(points: list[tuple[float, float]]) -> list[float]:
    """Fit a line through two points; if noise makes it fall, a line through zero and the last point."""
    (a, first), (b, second) = points[0], points[-1]
    slope = (second - first) / (b - a) if b > a else 0.0
    fixed = first - slope * a
    return [fixed, slope] if slope > 0 and fixed >= 0 else [0.0, second / b]


def example_batch(shape: LatentShape, rows: int) -> Batch:
    """Return a batch of noise in the shapes of latents and captions."""
    cond = Conditioning(
        pooled=torch.randn(rows, shape.text_dim),
        tokens=torch.randn(rows, shape.text_tokens, shape.text_dim),
        mask=torch.ones(rows, shape.text_tokens, dtype=torch.bool),
        tempo_bpm=torch.full((rows,), 100.0),
        key=torch.zeros(rows, dtype=torch.int64),
        keep=torch.ones(rows, dtype=torch.bool),
    )
    return Batch(torch.randn(rows, shape.channels, shape.frames), cond, Cursor())
