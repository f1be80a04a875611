"""Compose the time of one training step from a device's constants: passes, update, exchange, reading, checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil, sqrt
from statistics import NormalDist

from infra.planning.device_model import DeviceModel
from infra.planning.memory import checkpoint_bytes, is_sharded
from infra.planning.network_size import PlannedNetwork, count_blocks, num_trained_parameters
from pipelines.train.step_flops import Pass, PhaseCost, StageFlops
from presto_core.config.sections import LoopConfig, LoraConfig, ParallelConfig
from presto_core.networks.flops import LatentShape

MIN_EXPOSED_EXCHANGE = 0.1  # fraction; the last gradients are exchanged after the backward pass


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by part, averaged over a stage's steps.

    Attributes:
        compute: passes through networks, noise, and Python in between.
        update: clipping, optimizer, moving average.
        imbalance: waiting for the worker whose rows run the most blocks.
        exchange: waiting for gradients and gathered weights.
        reading: waiting for data.
        checkpoint: copying the state, spread over the steps between two checkpoints.
        exchanged_bytes: bytes that a worker sends.
    """

    compute: float
    update: float
    imbalance: float
    exchange: float
    reading: float
    checkpoint: float
    exchanged_bytes: float

    @property
    def parts(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "exchanged_bytes"}

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Group:
    """Workers that share a batch.

    Attributes:
        rows: rows of the batch per worker.
    """

    workers: int
    rows: int
    loop: LoopConfig
    sharding: ParallelConfig

    @property
    def micro_batches(self) -> int:
        return ceil(self.rows / (self.loop.micro_batch_size or self.rows))

    @property
    def micro_rows(self) -> int:
        return ceil(self.rows / self.micro_batches)


def step_time(
    stage_flops: StageFlops, network: PlannedNetwork, shape: LatentShape, device_model: DeviceModel, group: Group
) -> StepTime:
    """Return the time of a step, averaged over the phases of a stage by their shares."""
    every = group.loop.checkpoint_every
    copied = checkpoint_bytes(stage_flops, network, shape) / device_model.copy_bytes_s / every
    lora = stage_flops.lora
    times = [
        (phase.share, _phase_time(phase, network, shape, device_model, group, lora)) for phase in stage_flops.phases
    ]

    def mean(name: str) -> float:
        return sum(share * getattr(time, name) for share, time in times)

    parts = ("compute", "update", "imbalance", "exchange", "reading", "exchanged_bytes")
    return StepTime(checkpoint=copied, **{name: mean(name) for name in parts})


def phase_seconds(
    phase: PhaseCost,
    network: PlannedNetwork,
    shape: LatentShape,
    device_model: DeviceModel,
    group: Group,
    lora: LoraConfig = LoraConfig(),
) -> float:
    """Return the seconds of a step of one phase, without checkpoints."""
    return _phase_time(phase, network, shape, device_model, group, lora).total


def _phase_time(
    phase: PhaseCost,
    network: PlannedNetwork,
    shape: LatentShape,
    device_model: DeviceModel,
    group: Group,
    lora: LoraConfig,
) -> StepTime:
    passes = sum(_pass_seconds(p, network, device_model, group) for p in phase.passes)
    compute = passes + phase.noise_draws * device_model.draw * group.rows * group.workers + device_model.overhead
    trained = moved = num_trained_parameters(network, shape, lora)
    if is_sharded(phase.updated_network, group.sharding):
        moved //= group.workers
    update = device_model.update.seconds(moved) + (device_model.average.seconds(moved) if phase.updates_ema else 0.0)
    exchanged, exchange = _exchange_cost(phase, network, trained, device_model, group)
    read = group.rows * shape.row_bytes / device_model.read_bytes_s
    reading = max(0.0, read - compute) if device_model.reads_overlap else read
    imbalance = _imbalance_seconds(phase, device_model, group)
    return StepTime(compute, update, imbalance, exchange, reading, 0.0, exchanged)


def _pass_seconds(p: Pass, network: PlannedNetwork, device_model: DeviceModel, group: Group) -> float:
    """Return the seconds of a pass over all micro-batches; if budgets differ, a block runs on the rows that keep it."""
    if not p.rows:
        return 0.0
    rows = p.rows * group.micro_rows
    started = count_blocks(network) if p.blocks % 1 else int(p.blocks)
    again = p.kind != "forward" and group.loop.activation_checkpointing
    costs = [device_model.block[p.kind], *([device_model.block["forward"]] if again else [])]
    blocks = started * sum(line.seconds(rows * p.blocks / started) for line in costs)
    outer = device_model.outer[p.kind].seconds(rows) * (1.0 if p.to_output else 0.5)
    head = device_model.head[p.kind].seconds(rows) if p.through_discriminator else 0.0
    return group.micro_batches * (blocks + outer + head)


def _imbalance_seconds(phase: PhaseCost, device_model: DeviceModel, group: Group) -> float:
    """Return a mean worker's wait for the slowest: the expected maximum of normal numbers, by Blom's formula (1958)."""
    if group.workers == 1:
        return 0.0
    largest = NormalDist().inv_cdf((group.workers - 0.375) / (group.workers + 0.25))
    return largest * phase.blocks_std * sqrt(group.rows) * device_model.block["forward"].per_unit


def _exchange_cost(
    phase: PhaseCost, network: PlannedNetwork, trained: int, device_model: DeviceModel, group: Group
) -> tuple[float, float]:
    """Return the bytes a worker sends and the seconds it waits for them: a ring all-reduce, or gathered shards."""
    if group.workers == 1:
        return 0.0, 0.0
    travelling = (group.workers - 1) / group.workers * 4.0 * trained
    gathered = sum(_num_gathers(p, group) for p in phase.passes if is_sharded(p.network, group.sharding))
    reduced = 0.0 if is_sharded(phase.updated_network, group.sharding) else 2.0
    exchanged = (gathered + reduced) * travelling
    messages = 1 + gathered * count_blocks(network)
    needed = exchanged / device_model.exchange_bytes_s + messages * device_model.exchange_latency
    backward = sum(_pass_seconds(p, network, device_model, group) * 2 / 3 for p in phase.passes if p.kind == "train")
    return exchanged, max(needed - device_model.overlap * backward / group.micro_batches, MIN_EXPOSED_EXCHANGE * needed)


def _num_gathers(p: Pass, group: Group) -> float:
    """Return how often a pass sends a sharded network's weights, and a trained one's gradients back."""
    return group.micro_batches * {"forward": 1.0, "through": 2.0, "train": 3.0}[p.kind] * (p.rows > 0)
