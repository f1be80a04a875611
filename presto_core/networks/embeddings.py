"""Embeddings of the network's inputs: noise level, layer budget, caption, tempo, key, and position in time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning

FREQUENCIES = 32  # sine and cosine pairs per number


def fourier_features(value: Tensor, *, lowest: float, highest: float) -> Tensor:
    """Return sines and cosines [B, 2 FREQUENCIES] of value: [B] at log-spaced angular frequencies."""
    steps = torch.linspace(math.log(lowest), math.log(highest), FREQUENCIES, device=value.device)
    angle = value.float()[:, None] * steps.exp()
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class NoiseEmbedding(nn.Module):
    """Embedding of c_noise = ln(sigma) / 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise: [B] -> [B, dim]."""
        return self.mlp(fourier_features(c_noise, lowest=0.5, highest=100.0))


class BudgetEmbedding(nn.Module):
    """Embedding of the number of blocks that run, 1 to depth; zero at initialisation."""

    def __init__(self, depth: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(depth, dim))

    def forward(self, budget: int | Tensor) -> Tensor:
        """Embed one budget for all samples as [dim], or budgets [B] as [B, dim]."""
        return self.weight[budget - 1]


class ConditionEmbedding(nn.Module):
    """Embedding of caption, tempo and key: one vector for modulation and one sequence for cross-attention.

    The sequence starts with a learned token that is always visible: an unconditional sample sees only this token, and
    it keeps attention defined for an empty caption.
    """

    def __init__(self, dim: int, *, text_dim: int) -> None:
        super().__init__()
        self.pooled = nn.Linear(text_dim, dim)
        self.null_pooled = nn.Parameter(torch.zeros(dim))
        self.tokens = nn.Linear(text_dim, dim)
        self.first_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.tempo = nn.Linear(2 * FREQUENCIES, dim)
        self.key = nn.Embedding(UNKNOWN_KEY + 1, dim)
        nn.init.normal_(self.key.weight, std=0.02)

    def forward(self, cond: Conditioning | None, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embed conditions (None: unconditional) as vector [B, D], sequence [B, 1 + S, D], visible [B, 1 + S]."""
        first = self.first_token.expand(batch, 1, -1)
        always = torch.ones(batch, 1, dtype=torch.bool, device=first.device)
        if cond is None:
            return self.null_pooled.expand(batch, -1), first, always
        keep = cond.keep[:, None]
        vector = torch.where(keep, self._embed_conditions(cond), self.null_pooled)
        tokens = self.tokens(_unit_rms(cond.tokens))
        return vector, torch.cat([first, tokens], 1), torch.cat([always, cond.mask & keep], 1)

    def _embed_conditions(self, cond: Conditioning) -> Tensor:
        known = cond.tempo_bpm > 0  # False for NaN too
        # replace unknown tempos before the logarithm: after it, NaN would reach the gradients even if masked
        octaves = torch.log2(torch.where(known, cond.tempo_bpm, 120.0) / 120)
        tempo = self.tempo(fourier_features(octaves, lowest=0.5, highest=50.0))
        return self.pooled(_unit_rms(cond.pooled)) + torch.where(known[:, None], tempo, 0.0) + self.key(cond.key)


def rotary_angles(tokens: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [tokens, head_dim / 2] of the rotary position embedding (Su et al. 2021)."""
    speed = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.arange(tokens, device=device).float()[:, None] * speed
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each channel pair of x: [B, H, N, head_dim] by the angle of its position."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _unit_rms(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
