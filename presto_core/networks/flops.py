"""FLOPs and parameters of the diffusion transformer, computed from its shape without PyTorch.

As usual, only matrix products and attention count, with two FLOPs per multiply-add.
"""

from __future__ import annotations

from dataclasses import dataclass

from presto_core.config.sections import NetworkConfig

FREQUENCY_FEATURES = 64  # sines and cosines per noise level or tempo
KEYS = 25  # musical keys, and the unknown one


@dataclass(frozen=True)
class LatentShape:
    """Shape of a network's input.

    Attributes:
        channels, frames: C and T of latents [B, C, T].
        text_dim, text_tokens: width and number of token embeddings per caption.
    """

    channels: int = 64
    frames: int = 128
    text_dim: int = 384
    text_tokens: int = 40

    @property
    def row_bytes(self) -> int:
        """Uncompressed bytes per row of a shard: fp16 latents and caption embeddings, a mask, and a few numbers."""
        return 2 * self.channels * self.frames + self.text_tokens * (2 * self.text_dim + 1) + 2 * self.text_dim + 100


def mlp_width(network: NetworkConfig) -> int:
    """Return the hidden width of the gated feed-forward layer."""
    return max(8, round(network.dim * network.mlp_ratio * 2 / 3 / 8) * 8)


def num_tokens(network: NetworkConfig, shape: LatentShape) -> int:
    return shape.frames // network.patch


def block_flops(network: NetworkConfig, shape: LatentShape) -> float:
    """Return the forward FLOPs of one block per sample."""
    dim, hidden, n, context = network.dim, mlp_width(network), num_tokens(network, shape), shape.text_tokens + 1
    per_token = 4 * dim * dim + 2 * dim * dim + 3 * dim * hidden  # self-attention, cross-attention, feed-forward
    attention = 2 * n * n * dim + 2 * n * context * dim
    return 2.0 * (n * per_token + context * 2 * dim * dim + attention + 6 * dim * dim)


def outer_flops(network: NetworkConfig, shape: LatentShape) -> float:
    """Return the forward FLOPs outside the blocks per sample: embeddings, input, output, filter."""
    dim, n, c = network.dim, num_tokens(network, shape), shape.channels
    embedding = FREQUENCY_FEATURES * dim + dim * dim + shape.text_dim * dim + FREQUENCY_FEATURES * dim
    ends = (_count_inputs(network) + 1) * n * c * network.patch * dim + 2 * dim * dim
    output_filter = dim * c * network.filter_taps + c * shape.frames * network.filter_taps
    if network.spectrum_bins:  # the DCT of the Gaussian skip, and two inverse ones
        ends += 3 * c * shape.frames**2
    return 2.0 * (embedding + shape.text_tokens * shape.text_dim * dim + ends + output_filter)


def _count_inputs(network: NetworkConfig) -> int:
    """Return how many latents a token holds: the noisy one, and with the Gaussian skip the Wiener estimate."""
    return 2 if network.spectrum_bins else 1


def num_block_parameters(network: NetworkConfig) -> int:
    dim, hidden, head = network.dim, mlp_width(network), network.dim // network.heads
    self_attention = 4 * dim * dim + dim + 2 * head
    cross_attention = 4 * dim * dim + dim + 2 * head + dim
    return self_attention + cross_attention + 3 * dim * hidden + 6 * dim * dim + 6 * dim


def num_parameters(network: NetworkConfig, shape: LatentShape) -> int:
    """Return the parameters of a network without a budget embedding."""
    dim, c = network.dim, shape.channels
    noise = FREQUENCY_FEATURES * dim + dim + dim * dim + dim
    condition = 2 * (shape.text_dim * dim + dim) + 2 * dim + FREQUENCY_FEATURES * dim + dim + KEYS * dim
    ends = _count_inputs(network) * c * network.patch * dim + dim + dim * c * network.patch + c * network.patch
    last = 2 * dim * dim + 2 * dim + dim * c * network.filter_taps + c * network.filter_taps
    return network.depth * num_block_parameters(network) + noise + condition + ends + last
