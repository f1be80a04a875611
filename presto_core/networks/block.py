"""One block of the diffusion transformer and its layers.

AdaLN-zero (Peebles & Xie 2023) with rotary positions, SwiGLU, normalised queries and keys, and cross-attention to the
caption.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from presto_core.config.sections import NetworkConfig
from presto_core.networks.embeddings import rotate


class RMSNorm(nn.RMSNorm):
    """RMSNorm with its weights in the input's dtype: under autocast, fp32 weights would keep the fused kernel away."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(dim // heads), RMSNorm(dim // heads)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x: [B, N, D] -> [B, N, D]."""
        q, k, v = (_split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary)
        return self.out(_join_heads(attend(q, k, v)))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(dim // heads), RMSNorm(dim // heads)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """Attend from x: [B, N, D] to the tokens of context: [B, S, D] that are visible: [B, S]."""
        k, v = (_split_heads(t, self.heads) for t in self.kv(context).chunk(2, dim=-1))
        q = self.q_norm(_split_heads(self.q(x), self.heads))
        mask = visible[:, None, None, :]
        return self.out(_join_heads(attend(q, self.k_norm(k), v, mask)))


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020); `ratio` is that of an ungated MLP of equal cost."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        # three matrices instead of two: width 2/3 ratio dim costs the same, rounded to a multiple of 8
        hidden = max(8, round(dim * ratio * 2 / 3 / 8) * 8)
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by AdaLN-zero.

    Attributes:
        checkpointing: recompute activations inside the block in the backward pass instead of keeping them.
    """

    checkpointing = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attention = SelfAttention(dim, config.heads)
        self.cross_norm = RMSNorm(dim)
        self.cross = CrossAttention(dim, config.heads)
        self.mlp = SwiGLU(dim, config.mlp_ratio)
        self.modulation = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, vector: Tensor, context: Tensor, visible: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x: [B, N, D] -> [B, N, D]; vector: [B, D] activated noise and condition embedding."""
        inputs = (x, vector, context, visible, rotary)
        if self.checkpointing and torch.is_grad_enabled():
            # a block has no dropout, so the RNG state need not be preserved
            return checkpoint(self._forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        return self._forward(*inputs)

    def _forward(
        self, x: Tensor, vector: Tensor, context: Tensor, visible: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(modulate(x, shift1, scale1), rotary)
        x = x + self.cross(self.cross_norm(x), context, visible)
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention (Vaswani et al. 2017): q [B, H, N, E], k and v [B, H, S, E], mask broadcast to [B, H, N, S].

    In bf16 on a CPU it is written out, because the backward pass of PyTorch's kernel is slow there: at 65 tokens it
    took half of a training step (torch 2.14, Sapphire Rapids).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.float().softmax(dim=-1).to(v.dtype) @ v


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise x: [B, N, D] over D, then scale and shift it."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)
