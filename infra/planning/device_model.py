"""How long the parts of a training step take on a device: constants that a step's time is composed of.

They are measured on this machine (`measure`) or follow from a device's published figures and the assumptions here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.planning.memory import block_bytes, outer_bytes
from pipelines.train.device_specs import Device
from pipelines.train.step_flops import FORWARD_EQUIVALENTS, PassKind
from presto_core.config.sections import NetworkConfig
from presto_core.networks.flops import (
    LatentShape,
    block_flops,
    outer_flops,
)

# Assumptions of `published`; each is printed with a plan.
MATMUL_SHARE = {True: 0.60, False: 0.75}  # of peak that matrix products reach, in bf16 and in fp32
TRAFFIC = 2.0  # times that what a block keeps goes through memory in a forward pass: written and read, kernel by kernel
LAUNCH_S = 6e-6  # between two kernels, without CUDA graphs or compilation
BLOCK_KERNELS, OUTER_KERNELS, HEAD_KERNELS = 60, 40, 15  # of a forward pass
BANDWIDTH_SHARE = 0.7  # of memory bandwidth that all that is no matrix product reaches
LINK_SHARE = 0.7  # of a link's bandwidth that an all-reduce reaches
UPDATE_BYTES, AVERAGE_BYTES = 40, 12  # moved a parameter: clipping and Adam; an average
STEP_OVERHEAD_S = 2e-3  # of Python between steps, and the look at whether a loss is finite
READ_BYTES_S = 148e6  # Ray Data's in a first epoch, with its start: measured, docs/data.md
COPY_BYTES_S = 10e9  # from GPU to CPU memory, of a checkpoint
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class LinearCost:
    """Seconds as a line over an amount, and never less than a floor."""

    fixed: float
    per_unit: float
    floor: float = 0.0

    def seconds(self, amount: float) -> float:
        return max(self.floor, self.fixed + self.per_unit * amount)


@dataclass(frozen=True)
class DeviceModel:
    """Constants of one worker of a group.

    Attributes:
        block, outer, head: by kind of pass, seconds over rows: of one block, of all but the blocks, and of the
            discriminator's head.
        update, average: seconds over parameters: clipping and Adam; a moving average.
        draw: seconds of noise for one row.
        overhead: seconds of a step besides.
        exchange_latency, exchange_bytes_s: of an all-reduce: seconds, and bytes of a worker's link.
        hides: share of a backward pass's time during which gradients travel unnoticed.
        reads_beside: whether reading takes no time of the step until it takes longer than the step.
        read_bytes_s, copy_bytes_s: reading of one worker; copying a checkpoint.
        peak_flops: of the device; 0 where it is not known.
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
    device: Device, network: NetworkConfig, shape: LatentShape, *, bf16: bool, gpus: int, node_gbit: float
) -> DeviceModel:
    """Constants of one GPU of many, from its data sheet.

    Args:
        node_gbit: Gbit/s of a node's network; counts where there is more than one node.
    """
    rate = device.peak_flops(bf16=bf16) * MATMUL_SHARE[bf16]
    bandwidth = 1e9 * device.memory_gb_s * BANDWIDTH_SHARE
    link = device.link_gb_s if gpus <= GPUS_PER_NODE else min(device.link_gb_s, node_gbit / 8)

    def cost(flops: float, kept: float, kernels: int, kind: PassKind) -> LinearCost:
        row = flops / rate + TRAFFIC * kept / bandwidth
        return LinearCost(0.0, FORWARD_EQUIVALENTS[kind] * row, floor=FORWARD_EQUIVALENTS[kind] * kernels * LAUNCH_S)

    block = block_flops(network, shape), block_bytes(network, shape, bf16=bf16), BLOCK_KERNELS
    outer = outer_flops(network, shape), outer_bytes(network, shape, bf16=bf16), OUTER_KERNELS

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
            f"matrix products reach {MATMUL_SHARE[bf16]:.0%} of that peak; activations go {TRAFFIC:g} times through "
            f"memory a forward pass, at {BANDWIDTH_SHARE:.0%} of its bandwidth, since nothing is compiled; no kernel "
            f"starts sooner than {LAUNCH_S * 1e6:g} us after another ({BLOCK_KERNELS} a block forward)"
        ),
        f"{GPUS_PER_NODE} GPUs a node, {device.link_gb_s:g} GB/s from each to the others; {node_gbit:g} Gbit/s between "
        f"nodes; an all-reduce reaches {LINK_SHARE:.0%} of the slower one"
        + ("" if gpus > GPUS_PER_NODE else ", here the first"),
        "gradients travel while the backward pass goes on; a tenth of their way is seen at least",
        f"Ray Data reads {READ_BYTES_S / 1e6:g} MB/s of shards for each GPU (measured on two cores: docs/data.md)",
    )
