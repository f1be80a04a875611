"""The diffusion transformer over latent frames: the raw network F inside every denoiser of the project.

Peebles & Xie 2023, with blocks as `block` describes them. Contract: `net(x_scaled, time, cond, budget)`, where a
budget is the number of blocks that run; with `taps`, the activations that a discriminator reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.block import Block, modulate
from presto_core.networks.embeddings import (
    BudgetEmbedding,
    ConditionEmbedding,
    NoiseEmbedding,
    rotary_angles,
)
from presto_core.networks.layer_budget import (
    LayerBudget,
    Mode,
    check_budgets,
    kept_blocks,
)
from presto_core.networks.network import Network


class DiT(Network):
    """Raw network F. Its output is zero at initialisation.

    Args:
        config: width, depth, heads, patch.
        channels: latent channels C.
        text_dim: width E of caption embeddings.
        mode: which blocks a budget skips.
        budget_conditioned: add an embedding of the budget to that of the noise level.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        channels: int,
        text_dim: int,
        mode: Mode = "presto",
        budget_conditioned: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.channels, self.mode = config, channels, mode
        self.depth, self.width, self.run_empty_blocks = config.depth, config.dim, False
        dim = config.dim
        self.input = nn.Linear(channels * config.patch, dim)
        self.noise = NoiseEmbedding(dim)
        self.budget = BudgetEmbedding(config.depth, dim) if budget_conditioned else None
        self.condition = ConditionEmbedding(dim, text_dim=text_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, channels * config.patch)
        self.filter = nn.Linear(dim, channels * config.filter_taps)
        for layer in (self.final_modulation, self.output, self.filter):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @staticmethod
    def for_budget(config: NetworkConfig, *, channels: int, text_dim: int, budget: LayerBudget | None) -> DiT:
        """An untrained network that runs at this budget; None runs all blocks."""
        if budget is None:
            return DiT(config, channels=channels, text_dim=text_dim)
        mode, conditioned = budget.mode, budget.conditioned
        return DiT(config, channels=channels, text_dim=text_dim, mode=mode, budget_conditioned=conditioned)

    def with_budget(self, budget: LayerBudget) -> DiT:
        text_dim = self.condition.pooled.in_features
        copy = DiT.for_budget(self.config, channels=self.channels, text_dim=text_dim, budget=budget)
        budget_weights = {name: value for name, value in copy.state_dict().items() if name.startswith("budget.")}
        copy.load_state_dict(self.state_dict() | budget_weights)
        return copy.to(self.input.weight.device)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Conditioning | None,
        budget: int | Tensor | None = None,
        *,
        taps: tuple[int, ...] | None = None,
        with_hidden: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor, Tensor]:
        """See `Network.forward`; N = T / patch tokens. Raises ValueError where T is not a multiple of the patch."""
        budget = self.depth if budget is None else budget
        budgets = budget.tolist() if isinstance(budget, Tensor) else [budget]
        check_budgets(budgets, self.depth)
        cond_emb, context, visible = self.condition(cond, x.shape[0])
        noise_emb = self.noise(time)
        if self.budget is not None:
            noise_emb = noise_emb + self.budget(budget)
        vector = F.silu(noise_emb + cond_emb)
        hidden = self.input(self._patchify(x))
        if taps:
            return self._forward_to_taps(hidden, (vector, context, visible), taps)
        same_blocks = min(budgets) == max(budgets) and (min(budgets) == self.depth or not self.run_empty_blocks)
        forward_blocks = self._forward_blocks if same_blocks else self._forward_mixed_budgets
        hidden = forward_blocks(hidden, (vector, context, visible), budgets)
        shift, scale = self.final_modulation(vector)[:, None].chunk(2, dim=-1)
        raw = self._unpatchify(self.output(modulate(hidden, shift, scale))) + self._wiener_filter(x, vector)
        return (raw, hidden) if with_hidden else raw

    def _forward_to_taps(self, hidden: Tensor, conditions: tuple[Tensor, ...], taps: tuple[int, ...]) -> list[Tensor]:
        """Activations [B, D, N] after the blocks `taps`; none behind the last of them runs."""
        rotary, activations = self._rotary(hidden), {}
        for index, block in enumerate(self.blocks[: max(taps) + 1]):
            hidden = block(hidden, *conditions, rotary)
            activations[index] = hidden
        return [activations[i].transpose(1, 2) for i in taps]

    def _forward_blocks(self, hidden: Tensor, conditions: tuple[Tensor, ...], budgets: list[int]) -> Tensor:
        """hidden: [B, N, D] through the blocks that the one budget of all samples keeps."""
        rotary = self._rotary(hidden)
        for index in kept_blocks(budgets[0], self.depth, self.mode):
            hidden = self.blocks[index](hidden, *conditions, rotary)
        return hidden

    def _forward_mixed_budgets(self, hidden: Tensor, conditions: tuple[Tensor, ...], budgets: list[int]) -> Tensor:
        """Samples in order of their budgets, largest first: each block runs on the first `count`, and on no other."""
        depth, rotary = self.depth, self._rotary(hidden)
        order = torch.tensor(sorted(range(len(budgets)), key=lambda i: -budgets[i]), device=hidden.device)
        hidden, *conditions_ordered = (t[order] for t in (hidden, *conditions))
        runs = [set(kept_blocks(b, depth, self.mode)) for b in budgets]
        finished: list[Tensor] = []  # what skips the next block, the smallest budgets first
        for index, block in enumerate(self.blocks):
            count = sum(index in kept for kept in runs)
            if count > len(hidden):  # the last block, which all samples run
                hidden, finished = torch.cat([hidden, *reversed(finished)]), []
            if count < len(hidden):
                finished.append(hidden[count:])
                hidden = hidden[:count]
            if count or self.run_empty_blocks:
                hidden = block(hidden, *(t[:count] for t in conditions_ordered), rotary)
        return torch.cat([hidden, *reversed(finished)])[order.argsort()]

    def _rotary(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_angles(hidden.shape[1], self.config.dim // self.config.heads, hidden.device)

    def _wiener_filter(self, x: Tensor, vector: Tensor) -> Tensor:
        """Each channel of x: [B, C, T] through a short filter over time that noise level and conditions choose.

        The linear part of denoising a stationary signal (Wiener). Without it every value of a token would have to pass
        through `dim` numbers, and a small network's samples keep noise in the channels it has no room for.
        """
        kernel = self.filter(vector).unflatten(1, (self.channels, -1))
        edge = kernel.shape[-1] // 2
        windows = F.pad(x.to(kernel.dtype), (edge, edge)).unfold(2, kernel.shape[-1], 1)
        return torch.einsum("bctk,bck->bct", windows, kernel)

    def _patchify(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, T / patch, C patch]."""
        batch, channels, frames = x.shape
        patch = self.config.patch
        if frames % patch:
            raise ValueError(
                f"{frames} latent frames do not divide into tokens of network.patch={patch} frames; "
                "choose ingest.chunk_frames as a multiple of it"
            )
        return x.transpose(1, 2).reshape(batch, frames // patch, patch * channels).to(self.input.weight.dtype)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """[B, N, C patch] -> [B, C, N patch]."""
        batch, count, _ = tokens.shape
        return tokens.reshape(batch, count * self.config.patch, self.channels).transpose(1, 2)
