"""The constants of a device from which the time of a training step is composed.

They are measured on this machine (`benchmark.measure_device`), or follow from published figures and assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.planning.memory import block_bytes, outer_bytes
from infra.planning.network_size import PlannedNetwork
from pipelines.train.device_specs import Device
from pipelines.train.step_flops import FORWARD_EQUIVALENTS, PassKind
from presto_core.networks.flops import LatentShape
from presto_core.networks.table import kind_of

# Assumptions of `device_model_from_specs`; each is printed with a plan.
MATMUL_SHARE = {True: 0.60, False: 0.75}  # fraction of peak that matrix products reach, in bf16 and in fp32
TRAFFIC = 2.0  # times that saved activations pass through memory in a forward pass: each kernel writes and reads them
LAUNCH_S = 6e-6  # between two kernels, without CUDA graphs or compilation
BLOCK_KERNELS, OUTER_KERNELS, HEAD_KERNELS = 60, 40, 15  # per forward pass
BANDWIDTH_SHARE = 0.7  # fraction of memory bandwidth that everything but matrix products reaches
LINK_SHARE = 0.7  # fraction of a link's bandwidth that an all-reduce reaches
UPDATE_BYTES, AVERAGE_BYTES = 40, 12  # bytes moved per parameter: clipping and Adam; an average
STEP_OVERHEAD_S = 2e-3  # Python between steps, and the check whether a loss is finite
READ_BYTES_S = 148e6  # Ray Data in a first epoch, with its start-up; measured in docs/data.md
COPY_BYTES_S = 10e9  # a checkpoint from GPU to CPU memory
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class LinearCost:
    """Seconds = fixed + per_unit * amount, but at least `floor`."""

    fixed: float
    per_unit: float
    floor: float = 0.0

    def seconds(self, amount: float) -> float:
        return max(self.floor, self.fixed + self.per_unit * amount)


@dataclass(frozen=True)
class DeviceModel:
    """Constants of one worker of a group.

    Attributes:
        block, outer, head: seconds over rows, by kind of pass: one block, everything but the blocks, and the
            discriminator head.
        update, average: seconds over parameters: clipping and Adam; a moving average.
        draw: seconds to draw the noise of one row.
        overhead: other seconds per step.
        exchange_latency, exchange_bytes_s: of an all-reduce: seconds per message, and bytes/s of a worker's link.
        overlap: fraction of a backward pass during which gradients are exchanged at no cost.
        reads_overlap: whether only the reading time beyond the computation of a step counts.
        read_bytes_s, copy_bytes_s: bytes/s that one worker reads; bytes/s of copying a checkpoint.
        peak_flops: of the device; 0 if unknown.
    """

    device: str
    block: dict[PassKind, LinearCost]
    outer: dict[PassKind, LinearCost]
    head: dict[PassKind, LinearCost]
    update: LinearCost
    average: LinearCost
    draw: float
    overhead: float
    exchange_latency: float
    exchange_bytes_s: float
    overlap: float
    reads_overlap: bool
    read_bytes_s: float
    copy_bytes_s: float
    peak_flops: float = 0.0
    assumptions: tuple[str, ...] = field(default=(), compare=False)


def device_model_from_specs(
    device: Device, network: PlannedNetwork, shape: LatentShape, *, bf16: bool, gpus: int, node_gbit: float
) -> DeviceModel:
    """Return the constants of one of `gpus` GPUs, from its data sheet.

    Args:
        node_gbit: Gbit/s of a node's network; used if there is more than one node.
    """
    rate = device.peak_flops(bf16=bf16) * MATMUL_SHARE[bf16]
    bandwidth = 1e9 * device.memory_gb_s * BANDWIDTH_SHARE
    link = device.link_gb_s if gpus <= GPUS_PER_NODE else min(device.link_gb_s, node_gbit / 8)

    def cost(flops: float, kept: float, kernels: int, kind: PassKind) -> LinearCost:
        row = flops / rate + TRAFFIC * kept / bandwidth
        return LinearCost(0.0, FORWARD_EQUIVALENTS[kind] * row, floor=FORWARD_EQUIVALENTS[kind] * kernels * LAUNCH_S)

    kind = kind_of(network)
    block = kind.block_flops(network, shape), block_bytes(network, shape, bf16=bf16), BLOCK_KERNELS
    outer = kind.outer_flops(network, shape), outer_bytes(network, shape, bf16=bf16), OUTER_KERNELS

    return DeviceModel(
        device=device.name,
        block={work: cost(*block, work) for work in FORWARD_EQUIVALENTS},
        outer={work: cost(*outer, work) for work in FORWARD_EQUIVALENTS},
        head={work: cost(0.0, 0.0, HEAD_KERNELS, work) for work in FORWARD_EQUIVALENTS},
        update=LinearCost(0.0, UPDATE_BYTES / bandwidth),
        average=LinearCost(0.0, AVERAGE_BYTES / bandwidth),
        draw=10 * 4 * shape.channels * shape.frames / bandwidth,
        overhead=STEP_OVERHEAD_S,
        exchange_latency=50e-6,
        exchange_bytes_s=1e9 * link * LINK_SHARE,
        overlap=1.0,
        reads_overlap=True,
        read_bytes_s=READ_BYTES_S,
        copy_bytes_s=COPY_BYTES_S,
        peak_flops=device.peak_flops(bf16=bf16),
        assumptions=_list_assumptions(device, bf16=bf16, gpus=gpus, node_gbit=node_gbit),
    )


def _list_assumptions(device: Device, *, bf16: bool, gpus: int, node_gbit: float) -> tuple[str, ...]:
    precision = "bf16" if bf16 else "fp32, without TF32"
    peak = device.peak_flops(bf16=bf16) / 1e12
    return (
        (
            f"{device.name}: {peak:g} TFLOP/s dense in {precision}, {device.memory_gb:g} GB at "
            f"{device.memory_gb_s:g} GB/s ({device.source}); not measured here"
        ),
        (
            f"matrix products reach {MATMUL_SHARE[bf16]:.0%} of that peak; activations pass {TRAFFIC:g} times through "
            f"memory per forward pass, at {BANDWIDTH_SHARE:.0%} of its bandwidth, since nothing is compiled; kernels "
            f"start at least {LAUNCH_S * 1e6:g} us apart ({BLOCK_KERNELS} per block and forward pass)"
        ),
        f"{GPUS_PER_NODE} GPUs per node, {device.link_gb_s:g} GB/s from each to the others; {node_gbit:g} Gbit/s "
        f"between nodes; an all-reduce reaches {LINK_SHARE:.0%} of the slower one"
        + ("" if gpus > GPUS_PER_NODE else ", here the link within a node"),
        "gradients are exchanged during the backward pass; at least a tenth of the exchange is waited for",
        f"Ray Data reads {READ_BYTES_S / 1e6:g} MB/s of shards per GPU (measured on two cores: docs/data.md)",
    )
