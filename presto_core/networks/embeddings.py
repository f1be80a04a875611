"""Embeddings of the network's inputs: noise level, layer budget, caption, tempo, key, and position in time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.config.sections import NetworkConfig
from presto_core.device import send
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.denoiser import Budget

FREQUENCIES = 32  # sine and cosine pairs per number
DEFAULT_TEMPO_BPM = 120.0
CYCLES_PER_BEAT = (1 / 16, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0)  # from phrases and bars to parts of a beat


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

    def forward(self, budget: Budget) -> Tensor:
        """Embed one budget for all samples as [dim], or budgets [B] as [B, dim]."""
        if isinstance(budget, tuple):
            budget = send(budget, self.weight.device)
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
        octaves = torch.log2(torch.where(known, cond.tempo_bpm, DEFAULT_TEMPO_BPM) / DEFAULT_TEMPO_BPM)
        tempo = self.tempo(fourier_features(octaves, lowest=0.5, highest=50.0))
        return self.pooled(_unit_rms(cond.pooled)) + torch.where(known[:, None], tempo, 0.0) + self.key(cond.key)


class RotaryPositions(nn.Module):
    """Cosines and sines of the rotary positions of all heads: in tokens, or in beats for `beat_heads` of them.

    It has no weights.

    Raises:
        ValueError: there are beat heads, and no frame rate.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads, self.beat_heads, self.head_dim = config.heads, config.beat_heads, config.dim // config.heads
        self.tokens_per_second = config.frame_rate / config.patch
        if self.beat_heads and not self.tokens_per_second:
            raise ValueError("a network with beat heads needs its frame_rate")

    def forward(self, hidden: Tensor, cond: Conditioning | None) -> tuple[Tensor, Tensor]:
        """Return angles for hidden: [B, N, D] as [N, head_dim / 2], or with beat heads as [B, H, N, head_dim / 2]."""
        batch, tokens = hidden.shape[:2]
        plain = rotary_angles(tokens, self.head_dim, hidden.device)
        if not self.beat_heads:
            return plain
        tempo = torch.zeros(batch, device=hidden.device)
        if cond is not None:  # an unconditional sample does not know its tempo
            tempo = torch.where(cond.keep, cond.tempo_bpm, 0.0)
        beats = rotary_angles_in_beats(tokens, self.head_dim, tempo, tokens_per_second=self.tokens_per_second)
        others = self.heads - self.beat_heads
        cos, sin = (
            torch.cat([p.expand(batch, others, -1, -1), b[:, None].expand(-1, self.beat_heads, -1, -1)], dim=1)
            for p, b in zip(plain, beats)
        )
        return cos, sin

    def take_rows(self, rotary: tuple[Tensor, Tensor], rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the angles of some rows of the batch; without beat heads all rows have the same."""
        return (rotary[0][rows], rotary[1][rows]) if self.beat_heads else rotary


def rotary_angles(tokens: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [tokens, head_dim / 2] of the rotary position embedding (Su et al. 2021)."""
    speed = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.arange(tokens, device=device).float()[:, None] * speed
    return angle.cos(), angle.sin()


def rotary_angles_in_beats(
    tokens: int, head_dim: int, tempo_bpm: Tensor, *, tokens_per_second: float
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [B, tokens, head_dim / 2] of rotary positions that count beats of each row's tempo.

    The speeds are whole cycles in a beat, in half a beat or a third, and in bars: attention can so look for what was
    there one beat or one bar ago, at any tempo, where positions in tokens would need a kernel of their own per tempo.

    Args:
        tempo_bpm: [B] beats per minute; NaN or <= 0, unknown, counts as `DEFAULT_TEMPO_BPM`.
    """
    known = torch.where(tempo_bpm > 0, tempo_bpm, DEFAULT_TEMPO_BPM).float()
    # filled on the device: a tensor made from a list would be copied there in every forward pass
    cycles = torch.stack([torch.full((), value, device=tempo_bpm.device) for value in CYCLES_PER_BEAT])
    speed = cycles.repeat(-(-(head_dim // 2) // len(cycles)))[: head_dim // 2]
    beats = torch.arange(tokens, device=tempo_bpm.device) / tokens_per_second * known[:, None] / 60
    angle = 2 * math.pi * beats[..., None] * speed
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each channel pair of x: [B, H, N, head_dim] by the angle of its position: [N, head_dim / 2] of all rows
    and heads, or [B, H, N, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _unit_rms(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
