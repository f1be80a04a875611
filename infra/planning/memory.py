"""Memory of one device in training: weights, optimizer state, and activations kept for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from infra.planning.network_size import (
    PlannedNetwork,
    count_activations,
    num_block_parameters,
    num_parameters,
    num_trained_parameters,
)
from pipelines.train.step_flops import Pass, StageFlops
from presto_core.config.sections import LoopConfig, NetworkConfig, ParallelConfig
from presto_core.networks.flops import LatentShape, mlp_width, num_tokens

GIB = 2.0**30
FP32, MOMENTS = 4, 8  # bytes per parameter: of weights, gradients or an average; of Adam's two moments
WORKSPACE_GIB = 1.5  # CUDA's context, libraries and allocator fragmentation: an assumption

# Bytes that one block keeps per sample, in fp32 and under bf16 autocast, per tokens x width, tokens x hidden width,
# context x width, tokens x heads, and width. Fitted to what autograd saves; a test checks it within 1 %.
BLOCK_BYTES = {False: (100.4, 16.0, 16.3, 17.3, 24.7), True: (70.2, 8.0, 16.2, 18.7, 13.5)}
OUTER_BYTES = {False: 16.0, True: 8.0}  # everything but the blocks, per tokens x width


@dataclass(frozen=True)
class Memory:
    """Peak memory of one worker's device in GiB.

    Attributes:
        state: weights, gradients, moments, averages, and gradient exchange buffers.
        activations: of the phase that keeps most.
    """

    state: float
    activations: float
    workspace: float = WORKSPACE_GIB

    @property
    def total(self) -> float:
        return self.state + self.activations + self.workspace


def estimate_memory(
    stage_flops: StageFlops,
    network: PlannedNetwork,
    shape: LatentShape,
    *,
    rows: int,
    workers: int,
    loop: LoopConfig,
    sharding: ParallelConfig,
) -> Memory:
    """Estimate the memory of a worker with `rows` rows per micro-batch."""
    return Memory(
        state_bytes(stage_flops, network, shape, workers=workers, sharding=sharding) / GIB,
        max(activation_bytes(phase.passes, network, shape, rows=rows, loop=loop) for phase in stage_flops.phases) / GIB,
    )


def state_bytes(
    stage_flops: StageFlops, network: PlannedNetwork, shape: LatentShape, *, workers: int, sharding: ParallelConfig
) -> float:
    """Return the bytes of a stage's networks: replicated, or a worker's shard and two gathered blocks.

    Adapters are trained over frozen weights that all networks share, but for a generator whose blocks are those of a
    layer-distilled model.
    """
    if stage_flops.lora.rank:
        own = num_trained_parameters(network, shape, stage_flops.lora)
        trained = FP32 * (2 + (workers > 1)) + MOMENTS
        averages = FP32 * len(stage_flops.ema_networks)
        shared = FP32 * num_parameters(network, shape) * (1 + stage_flops.layered)
        return shared + own * (trained * len(stage_flops.trained) + averages)
    total, gathered, count = 0.0, 0.0, num_parameters(network, shape)
    for role in (*stage_flops.trained, *stage_flops.frozen):
        trained = role in stage_flops.trained
        each = FP32 * (1 + trained) + MOMENTS * trained + FP32 * (role in stage_flops.ema_networks)
        if is_sharded(role, sharding) and workers > 1:
            offloaded = role == "real_score" and sharding.offload_real_score
            total += 0 if offloaded else each * count / workers
            gathered = 2.0 * FP32 * num_block_parameters(network, shape)
        else:
            total += (each + FP32 * (trained and workers > 1)) * count
    return total + gathered


def is_sharded(role: str, sharding: ParallelConfig) -> bool:
    return bool(getattr(sharding, role, "replicate") == "shard")


def activation_bytes(
    passes: tuple[Pass, ...], network: PlannedNetwork, shape: LatentShape, *, rows: int, loop: LoopConfig
) -> float:
    """Return the bytes of activations of all passes of a phase with a backward pass, alive at the same time."""
    bf16 = loop.autocast == "bf16"
    hidden = count_activations(network, shape)
    block, outer = block_bytes(network, shape, bf16=bf16), outer_bytes(network, shape, bf16=bf16)
    total = 0.0
    for each in (p for p in passes if p.kind != "forward"):
        if loop.activation_checkpointing:  # each block's input, and one block while it is recomputed
            kept = each.blocks * (2 if bf16 else 4) * hidden + block
        else:
            kept = each.blocks * block
        # bf16 weights are kept as well
        copies = 2.0 * each.blocks * num_block_parameters(network, shape) if bf16 else 0.0
        total += each.rows * rows * (kept + outer) + copies
    return total


def block_bytes(network: PlannedNetwork, shape: LatentShape, *, bf16: bool) -> float:
    """Return the bytes that one block keeps per sample for its backward pass, without copies of weights."""
    if not isinstance(network, NetworkConfig):
        from presto_core.networks.meta_costs import count_saved_bytes

        return count_saved_bytes(network, shape.frames, bf16=bf16)[0]
    dim, n, context = network.dim, num_tokens(network, shape), shape.text_tokens + 1
    grows_with = (dim * n, mlp_width(network) * n, dim * context, network.heads * n, dim)
    return sum(factor * size for factor, size in zip(BLOCK_BYTES[bf16], grows_with))


def outer_bytes(network: PlannedNetwork, shape: LatentShape, *, bf16: bool) -> float:
    """Return the bytes that everything but the blocks keeps per sample."""
    if not isinstance(network, NetworkConfig):
        from presto_core.networks.meta_costs import count_saved_bytes

        return count_saved_bytes(network, shape.frames, bf16=bf16)[1]
    return OUTER_BYTES[bf16] * network.dim * num_tokens(network, shape)


def checkpoint_bytes(stage_flops: StageFlops, network: PlannedNetwork, shape: LatentShape) -> float:
    """Return the bytes of a checkpoint: weights, moments and averages (`presto_core.training.checkpoint`)."""
    each = {role: FP32 + MOMENTS + FP32 * (role in stage_flops.ema_networks) for role in stage_flops.trained}
    return sum(each.values()) * float(num_trained_parameters(network, shape, stage_flops.lora))
