"""Estimate a stage on a number of devices: time, memory, load, cost and bottleneck."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infra.planning.device_model import DeviceModel
from infra.planning.memory import GIB, Memory, checkpoint_bytes, estimate_memory
from infra.planning.network_size import PlannedNetwork, count_blocks
from infra.planning.step_time import Group, StepTime, phase_seconds, step_time
from pipelines.train.step_flops import StageFlops, count_stage_flops
from presto_core.config.schema import LayersStage, StepsStage, TeacherStage
from presto_core.networks.flops import LatentShape

Training = TeacherStage | LayersStage | StepsStage

# part of a step -> what reduces it
REMEDIES = {
    "compute": "matrix products: use a faster device, loop.autocast=bf16, or more devices",
    "update": "optimizer and averages: use a larger batch per device",
    "imbalance": "layer budgets that differ between devices: use a larger batch per device",
    "exchange": "gradients between devices: use fewer devices, a larger batch, or a faster network",
    "reading": "reading shards: use more cores for it",
    "checkpoint": "copying checkpoints: raise loop.checkpoint_every",
}
MEMORY_REMEDY = "memory: set loop.micro_batch_size or loop.activation_checkpointing, or shard with cluster.parallel"


@dataclass(frozen=True)
class StageEstimate:
    """Estimate of one stage.

    Attributes:
        rows: rows of the batch per worker, in `micro_batches` passes.
        step: seconds per step, by part.
        phases: seconds per step, by kind of step.
        utilisation: model FLOP/s over peak; 0 if the peak is unknown.
        memory_gb: memory of a device; 0 if unknown.
        read_mb_s, exchange_gb_s: read by all workers together; sent by each worker.
        checkpoint_mb_s: rate at which rank 0 must write to finish a checkpoint before the next.
    """

    name: str
    workers: int
    global_batch_size: int
    rows: int
    micro_batches: int
    total_steps: int
    step: StepTime
    phases: dict[str, float]
    samples_per_second: float
    utilisation: float
    memory: Memory
    memory_gb: float
    read_mb_s: float
    exchange_gb_s: float
    checkpoint_gb: float
    checkpoint_mb_s: float
    price_usd: float

    @property
    def hours(self) -> float:
        return self.total_steps * self.step.total / 3600

    @property
    def cost_usd(self) -> float:
        return self.hours * self.workers * self.price_usd

    @property
    def fits(self) -> bool:
        return not self.memory_gb or self.memory.total * GIB <= 1e9 * self.memory_gb

    @property
    def bottleneck(self) -> str:
        """Name of the largest part of a step, or "memory" if the stage does not fit."""
        return max(self.step.parts, key=self.step.parts.__getitem__) if self.fits else "memory"

    @property
    def remedy(self) -> str:
        return REMEDIES.get(self.bottleneck, MEMORY_REMEDY)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the figures derived from them as plain data."""
        derived = {
            "step_seconds": self.step.total,
            "memory_gib": self.memory.total,
            "hours": self.hours,
            "cost_usd": self.cost_usd,
            "fits": self.fits,
            "bottleneck": self.bottleneck,
        }
        return asdict(self) | derived


def estimate_stage(
    name: str,
    config: Training,
    network: PlannedNetwork,
    shape: LatentShape,
    device_model: DeviceModel,
    *,
    workers: int,
    rows: int,
    layered: bool = False,
    memory_gb: float = 0.0,
    price_usd: float = 0.0,
) -> StageEstimate:
    """Estimate a stage on `workers` workers with `rows` rows of the batch each.

    Raises:
        UserError: a layer budget does not fit the network.
    """
    stage_flops = count_stage_flops(config, count_blocks(network), layered=layered)
    group = Group(workers, rows, config.loop, config.cluster.parallel)
    step = step_time(stage_flops, network, shape, device_model, group)
    lora = stage_flops.lora
    phases = {p.name or "all": phase_seconds(p, network, shape, device_model, group, lora) for p in stage_flops.phases}
    batch, saved = rows * workers, checkpoint_bytes(stage_flops, network, shape)
    return StageEstimate(
        name=name,
        workers=workers,
        global_batch_size=batch,
        rows=rows,
        micro_batches=group.micro_batches,
        total_steps=stage_flops.total_steps,
        step=step,
        phases=phases,
        samples_per_second=batch / step.total,
        utilisation=_utilization(stage_flops, network, shape, device_model, rows / step.total),
        memory=estimate_memory(
            stage_flops,
            network,
            shape,
            rows=group.micro_rows,
            workers=workers,
            loop=config.loop,
            sharding=config.cluster.parallel,
        ),
        memory_gb=memory_gb,
        read_mb_s=batch * shape.row_bytes / step.total / 1e6,
        exchange_gb_s=step.exchanged_bytes / step.total / 1e9,
        checkpoint_gb=saved / 1e9,
        checkpoint_mb_s=saved / 1e6 / (config.loop.checkpoint_every * step.total),
        price_usd=price_usd,
    )


def _utilization(
    stage_flops: StageFlops,
    network: PlannedNetwork,
    shape: LatentShape,
    device_model: DeviceModel,
    rows_per_second: float,
) -> float:
    return (
        rows_per_second * stage_flops.flops(network, shape) / device_model.peak_flops
        if device_model.peak_flops
        else 0.0
    )
