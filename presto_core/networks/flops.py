"""How much work one pass of the diffusion transformer is, and how much memory: counted from its shape, without torch.

Only matrix products and attention are counted, as FLOPs usually are: a multiplication and an addition are two.
"""

from __future__ import annotations

from dataclasses import dataclass

from presto_core.config.sections import NetworkConfig

FREQUENCY_FEATURES = 64  # sines and cosines that describe a noise level or a tempo
KEYS = 25  # musical keys, and the unknown one


@dataclass(frozen=True)
class LatentShape:
    """What a network is shown.

    Attributes:
        channels, frames: C and T of latents [B, C, T].
        text_dim, text_tokens: width and number of a caption's token embeddings.
    """

    channels: int = 64
    frames: int = 128
    text_dim: int = 384
    text_tokens: int = 40

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in a shard, uncompressed: fp16 latents and caption embeddings, a mask, and a few numbers."""
        return 2 * self.channels * self.frames + self.text_tokens * (2 * self.text_dim + 1) + 2 * self.text_dim + 100


def mlp_width(network: NetworkConfig) -> int:
    """Hidden width of the gated feed-forward."""
    return max(8, round(network.dim * network.mlp_ratio * 2 / 3 / 8) * 8)


def num_tokens(network: NetworkConfig, shape: LatentShape) -> int:
    return shape.frames // network.patch


def block_flops(network: NetworkConfig, shape: LatentShape) -> float:
    """One block's forward pass on one sample."""
    dim, hidden, n, context = network.dim, mlp_width(network), num_tokens(network, shape), shape.text_tokens + 1
    per_token = 4 * dim * dim + 2 * dim * dim + 3 * dim * hidden  # self-attention, cross-attention, feed-forward
    attention = 2 * n * n * dim + 2 * n * context * dim
    return 2.0 * (n * per_token + context * 2 * dim * dim + attention + 6 * dim * dim)


def outer_flops(network: NetworkConfig, shape: LatentShape) -> float:
    """All but the blocks, forward, on one sample: embeddings, input, output, filter."""
    dim, n, c = network.dim, num_tokens(network, shape), shape.channels
    embedding = FREQUENCY_FEATURES * dim + dim * dim + shape.text_dim * dim + FREQUENCY_FEATURES * dim
    ends = 2 * n * c * network.patch * dim + 2 * dim * dim
    output_filter = dim * c * network.filter_taps + c * shape.frames * network.filter_taps
    return 2.0 * (embedding + shape.text_tokens * shape.text_dim * dim + ends + output_filter)


def forward_flops(network: NetworkConfig, shape: LatentShape, *, blocks: float | None = None) -> float:
    """A forward pass on one sample; `blocks` may be a mean over samples, None runs all."""
    run = network.depth if blocks is None else blocks
    return run * block_flops(network, shape) + outer_flops(network, shape)


def num_block_parameters(network: NetworkConfig) -> int:
    dim, hidden, head = network.dim, mlp_width(network), network.dim // network.heads
    self_attention = 4 * dim * dim + dim + 2 * head
    cross_attention = 4 * dim * dim + dim + 2 * head + dim
    return self_attention + cross_attention + 3 * dim * hidden + 6 * dim * dim + 6 * dim


def num_parameters(network: NetworkConfig, shape: LatentShape) -> int:
    """Of a whole network, without an embedding of layer budgets."""
    dim, c = network.dim, shape.channels
    noise = FREQUENCY_FEATURES * dim + dim + dim * dim + dim
    condition = 2 * (shape.text_dim * dim + dim) + 2 * dim + FREQUENCY_FEATURES * dim + dim + KEYS * dim
    ends = c * network.patch * dim + dim + dim * c * network.patch + c * network.patch
    last = 2 * dim * dim + 2 * dim + dim * c * network.filter_taps + c * network.filter_taps
    return network.depth * num_block_parameters(network) + noise + condition + ends + last
