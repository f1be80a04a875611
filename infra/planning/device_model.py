"""The constants of a device from which the time of a training step is composed.

They are measured on this machine (`benchmark.measure_device`), or follow from published figures and assumptions, in
whose place a file of `presto benchmark` can be (`measured.MeasuredDevice`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infra.planning.measured import MeasuredDevice
from infra.planning.memory import block_bytes, outer_bytes
from infra.planning.network_size import PlannedNetwork
from pipelines.train.device_specs import Device
from pipelines.train.step_flops import FORWARD_EQUIVALENTS, PassKind
from presto_core.networks.flops import LatentShape
from presto_core.networks.table import kind_of

# Assumptions, unless measured; each is printed with a plan.
MATMUL_SHARE = {True: 0.60, False: 0.75}  # fraction of peak that matrix products reach, in bf16 and in fp32
NETWORK_SHARE = 0.8  # fraction of a large product's measured FLOP/s that products in the network reach
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
CPU_READ_BYTES_S = 377e6  # per worker with its own threads, in a first epoch; measured in docs/data.md
CPU_COPY_BYTES_S = 2e9  # a checkpoint, memory to memory
CPU_READING = (
    f"a worker reads {CPU_READ_BYTES_S / 1e6:g} MB/s of shards (measured: docs/data.md) and computes nothing meanwhile"
)


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


@dataclass(frozen=True)
class Rates:
    """FLOP/s of matrix products in the network, bytes/s of everything else, and seconds between launches."""

    flops: float
    bytes_s: float
    launch_s: float


def rates_from_specs(device: Device, *, bf16: bool) -> Rates:
    """Return the assumed fractions of the data sheet's figures."""
    bandwidth = 1e9 * device.memory_gb_s * BANDWIDTH_SHARE
    return Rates(device.peak_flops(bf16=bf16) * MATMUL_SHARE[bf16], bandwidth, LAUNCH_S)


def rates_from_measured(measured: MeasuredDevice, *, bf16: bool) -> Rates:
    """Return what a benchmark measured; its network ran in fp32, and is taken to use bf16 as well."""
    share = measured.network_share or NETWORK_SHARE
    return Rates(measured.matmul_flops[bf16] * share, measured.copy_bytes_s, measured.launch_s)


def device_model_from_specs(
    device: Device,
    network: PlannedNetwork,
    shape: LatentShape,
    *,
    bf16: bool,
    gpus: int,
    node_gbit: float,
    measured: MeasuredDevice | None = None,
) -> DeviceModel:
    """Return the constants of one of `gpus` GPUs, from its data sheet and, if given, from measurements on one.

    Args:
        node_gbit: Gbit/s of a node's network; used if there is more than one node.
    """
    link = device.link_gb_s if gpus <= GPUS_PER_NODE else min(device.link_gb_s, node_gbit / 8)
    rates = rates_from_measured(measured, bf16=bf16) if measured else rates_from_specs(device, bf16=bf16)
    return DeviceModel(
        device=device.name,
        **_compute_costs(rates, network, shape, bf16=bf16),
        overhead=STEP_OVERHEAD_S,
        exchange_latency=50e-6,
        exchange_bytes_s=1e9 * link * LINK_SHARE,
        overlap=1.0,
        reads_overlap=True,
        read_bytes_s=READ_BYTES_S,
        copy_bytes_s=COPY_BYTES_S,
        peak_flops=device.peak_flops(bf16=bf16),
        assumptions=_list_assumptions(device, bf16=bf16, gpus=gpus, node_gbit=node_gbit, measured=measured),
    )


def device_model_from_measured(
    measured: MeasuredDevice, network: PlannedNetwork, shape: LatentShape, *, bf16: bool
) -> DeviceModel:
    """Return the constants of one worker on a CPU that was measured; utilisation is relative to a large product."""
    return DeviceModel(
        device="here",
        **_compute_costs(rates_from_measured(measured, bf16=bf16), network, shape, bf16=bf16),
        overhead=STEP_OVERHEAD_S,
        exchange_latency=50e-6,
        exchange_bytes_s=measured.copy_bytes_s / 2,
        overlap=0.0,
        reads_overlap=False,
        read_bytes_s=CPU_READ_BYTES_S,
        copy_bytes_s=CPU_COPY_BYTES_S,
        peak_flops=measured.matmul_flops[bf16],
        assumptions=(
            *_describe_measured(measured, bf16=bf16),
            "workers do not slow each other, and exchange gradients after the backward pass at half a copy's bandwidth",
            CPU_READING,
        ),
    )


def _compute_costs(rates: Rates, network: PlannedNetwork, shape: LatentShape, *, bf16: bool) -> dict[str, Any]:
    """Return those constants of a `DeviceModel` that follow from its rates."""

    def cost(flops: float, kept: float, kernels: int, kind: PassKind) -> LinearCost:
        row, times = flops / rates.flops + TRAFFIC * kept / rates.bytes_s, FORWARD_EQUIVALENTS[kind]
        return LinearCost(0.0, times * row, floor=times * kernels * rates.launch_s)

    kind = kind_of(network)
    block = kind.block_flops(network, shape), block_bytes(network, shape, bf16=bf16), BLOCK_KERNELS
    outer = kind.outer_flops(network, shape), outer_bytes(network, shape, bf16=bf16), OUTER_KERNELS
    return {
        "block": {work: cost(*block, work) for work in FORWARD_EQUIVALENTS},
        "outer": {work: cost(*outer, work) for work in FORWARD_EQUIVALENTS},
        "head": {work: cost(0.0, 0.0, HEAD_KERNELS, work) for work in FORWARD_EQUIVALENTS},
        "update": LinearCost(0.0, UPDATE_BYTES / rates.bytes_s),
        "average": LinearCost(0.0, AVERAGE_BYTES / rates.bytes_s),
        "draw": 10 * 4 * shape.channels * shape.frames / rates.bytes_s,
    }


def _describe_measured(measured: MeasuredDevice, *, bf16: bool) -> tuple[str, ...]:
    rates, precision = rates_from_measured(measured, bf16=bf16), "bf16" if bf16 else "fp32"
    threads = "" if measured.is_gpu else f", {measured.threads} thread{'s'[: measured.threads - 1]}"
    share = f"{measured.network_share or NETWORK_SHARE:.0%} of a large product's"
    reason = "measured in fp32" if measured.network_share else "assumed: the file's network does not tell"
    return (
        (
            f"measured on {measured.device}{threads} ({measured.path}): matrix products reach {rates.flops / 1e9:.4g} "
            f"GFLOP/s in {precision} ({share}, {reason}), memory {rates.bytes_s / 1e9:.3g} GB/s, operations at least "
            f"{rates.launch_s * 1e6:.2g} us apart"
        ),
        (
            f"assumed: activations pass {TRAFFIC:g} times through memory per forward pass, since nothing is compiled; "
            f"{BLOCK_KERNELS} operations per block and forward pass"
        ),
    )


def _list_assumptions(
    device: Device, *, bf16: bool, gpus: int, node_gbit: float, measured: MeasuredDevice | None
) -> tuple[str, ...]:
    precision = "bf16" if bf16 else "fp32, without TF32"
    peak = device.peak_flops(bf16=bf16) / 1e12
    if measured:
        speed = (
            *_describe_measured(measured, bf16=bf16),
            f"{device.name}: {device.memory_gb:g} GB, and MFU relative to {peak:g} TFLOP/s ({device.source})",
        )
    else:
        speed = (
            (
                f"{device.name}: {peak:g} TFLOP/s dense in {precision}, {device.memory_gb:g} GB at "
                f"{device.memory_gb_s:g} GB/s ({device.source}); not measured here"
            ),
            (
                f"matrix products reach {MATMUL_SHARE[bf16]:.0%} of that peak; activations pass {TRAFFIC:g} times "
                f"through memory per forward pass, at {BANDWIDTH_SHARE:.0%} of its bandwidth, since nothing is "
                f"compiled; kernels start at least {LAUNCH_S * 1e6:g} us apart ({BLOCK_KERNELS} per block and forward "
                "pass)"
            ),
        )
    return (
        *speed,
        f"{GPUS_PER_NODE} GPUs per node, {device.link_gb_s:g} GB/s from each to the others; {node_gbit:g} Gbit/s "
        f"between nodes; an all-reduce reaches {LINK_SHARE:.0%} of the slower one"
        + ("" if gpus > GPUS_PER_NODE else ", here the link within a node"),
        "gradients are exchanged during the backward pass; at least a tenth of the exchange is waited for",
        f"Ray Data reads {READ_BYTES_S / 1e6:g} MB/s of shards per GPU (measured on two cores: docs/data.md)",
    )
