"""The diffusion transformer (DiT, Peebles & Xie 2023) over latent frames: the raw network F inside the denoisers.

`net(x_scaled, time, cond, budget)` returns F, where a budget is the number of blocks that run; with `taps` it returns
the activations that a discriminator reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.config.sections import NetworkConfig
from presto_core.device import send
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget
from presto_core.networks.block import Block, modulate
from presto_core.networks.embeddings import BudgetEmbedding, ConditionEmbedding, NoiseEmbedding, RotaryPositions
from presto_core.networks.gaussian_skip import GaussianSkip
from presto_core.networks.layer_budget import (
    LayerBudget,
    Mode,
    check_budgets,
    list_budgets,
    renumber_blocks,
    select_blocks,
)
from presto_core.networks.network import Network

Conditions = tuple[Tensor, ...]  # vector, context, visible: the first axis of each is the batch
Rotary = tuple[Tensor, Tensor]


class DiT(Network):
    """Raw network F. Its output is zero at initialisation, or that of the Gaussian skip if `spectrum_bins` is set.

    Args:
        config: width, depth, heads, patch.
        channels: latent channels C.
        text_dim: width E of caption embeddings.
        mode: which blocks a budget skips.
        budget_conditioned: add an embedding of the budget to the noise embedding.
    """

    budget_weights = ("budget.weight",)

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
        bins = config.spectrum_bins
        self.gaussian_skip = GaussianSkip(channels=channels, bins=bins) if bins else None
        # with the skip, tokens hold the Wiener estimate beside the noisy latents
        self.input = nn.Linear((2 if bins else 1) * channels * config.patch, dim)
        self.noise = NoiseEmbedding(dim)
        self.budget = BudgetEmbedding(config.depth, dim) if budget_conditioned else None
        self.condition = ConditionEmbedding(dim, text_dim=text_dim)
        self.positions = RotaryPositions(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, channels * config.patch)
        self.filter = nn.Linear(dim, channels * config.filter_taps)
        for layer in (self.final_modulation, self.output, self.filter):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @staticmethod
    def for_budget(config: NetworkConfig, *, channels: int, text_dim: int, budget: LayerBudget | None) -> DiT:
        """Build an untrained network that runs at this budget; None runs all blocks."""
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

    @torch.no_grad()
    def keep_blocks(self, budget: int) -> DiT:
        text_dim, kept = self.condition.pooled.in_features, select_blocks(budget, self.depth, self.mode)
        config = self.config.model_copy(update={"depth": len(kept)})
        copy, state = DiT(config, channels=self.channels, text_dim=text_dim), self.state_dict()
        renamed = renumber_blocks((name for name in state if not name.startswith("budget.")), "blocks", kept)
        copy.load_state_dict({new: state[old] for new, old in renamed.items()})
        if self.budget is not None:
            copy.noise.mlp[-1].bias += self.budget(budget)
        return copy.to(self.input.weight.device).train(self.training)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Conditioning | None,
        budget: Budget | None = None,
        *,
        taps: tuple[int, ...] | None = None,
        with_output: bool = False,
        with_hidden: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]] | tuple[Tensor, Tensor]:
        """See `Network.forward`; N = T / patch tokens. Raises ValueError if T is not a multiple of the patch."""
        budget = self.depth if budget is None else budget
        budgets = list_budgets(budget)
        check_budgets(budgets, self.depth)
        cond_emb, context, visible = self.condition(cond, x.shape[0])
        noise_emb = self.noise(time)
        if self.budget is not None:
            noise_emb = noise_emb + self.budget(budget)
        vector = F.silu(noise_emb + cond_emb)
        skipped, tokens = None, self._patchify(x)
        if self.gaussian_skip is not None:
            skipped, estimate = self.gaussian_skip(x, time)
            tokens = torch.cat([tokens, self._patchify(estimate)], dim=-1)
        hidden = self.input(tokens)
        conditions, rotary = (vector, context, visible), self.positions(hidden, cond)
        activations: list[Tensor] = []
        same_blocks = min(budgets) == max(budgets) and (min(budgets) == self.depth or not self.run_empty_blocks)
        if taps:
            hidden, activations = self._forward_to_taps(hidden, conditions, rotary, taps, all_blocks=with_output)
            if not with_output:
                return activations
        elif same_blocks:
            hidden = self._forward_blocks(hidden, conditions, rotary, budgets)
        else:
            hidden = self._forward_mixed_budgets(hidden, conditions, rotary, budgets)
        shift, scale = self.final_modulation(vector)[:, None].chunk(2, dim=-1)
        raw = self._unpatchify(self.output(modulate(hidden, shift, scale))) + self._wiener_filter(x, vector)
        raw = raw if skipped is None else raw + skipped
        if taps:
            return raw, activations
        return (raw, hidden) if with_hidden else raw

    def _forward_to_taps(
        self, hidden: Tensor, conditions: Conditions, rotary: Rotary, taps: tuple[int, ...], *, all_blocks: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the blocks up to the last tap, or all; return their output and the activations [B, D, N] after `taps`."""
        activations = {}
        for index, block in enumerate(self.blocks if all_blocks else self.blocks[: max(taps) + 1]):
            hidden = block(hidden, *conditions, rotary)
            activations[index] = hidden
        return hidden, [activations[i].transpose(1, 2) for i in taps]

    def _forward_blocks(self, hidden: Tensor, conditions: Conditions, rotary: Rotary, budgets: list[int]) -> Tensor:
        """Pass hidden: [B, N, D] through the blocks that run at the common budget of all samples."""
        for index in select_blocks(budgets[0], self.depth, self.mode):
            hidden = self.blocks[index](hidden, *conditions, rotary)
        return hidden

    def _forward_mixed_budgets(
        self, hidden: Tensor, conditions: Conditions, rotary: Rotary, budgets: list[int]
    ) -> Tensor:
        """Sort samples by budget, largest first, and run each block on the first `count` samples only."""
        depth = self.depth
        order = send(sorted(range(len(budgets)), key=lambda i: -budgets[i]), hidden.device)
        hidden, *conditions_ordered = (t[order] for t in (hidden, *conditions))
        rotary = self.positions.take_rows(rotary, order)
        runs = [set(select_blocks(b, depth, self.mode)) for b in budgets]
        finished: list[Tensor] = []  # samples that skip the next block, smallest budgets first
        for index, block in enumerate(self.blocks):
            count = sum(index in kept for kept in runs)
            if count > len(hidden):  # the last block, which runs for all samples
                hidden, finished = torch.cat([hidden, *reversed(finished)]), []
            if count < len(hidden):
                finished.append(hidden[count:])
                hidden = hidden[:count]
            if count or self.run_empty_blocks:
                rotary_of_rows = self.positions.take_rows(rotary, slice(count))
                hidden = block(hidden, *(t[:count] for t in conditions_ordered), rotary_of_rows)
        return torch.cat([hidden, *reversed(finished)])[order.argsort()]

    def _wiener_filter(self, x: Tensor, vector: Tensor) -> Tensor:
        """Filter each channel of x: [B, C, T] over time with a short kernel from noise level and conditions.

        This is the linear part of denoising a stationary signal (Wiener filter). Without it all values of a token must
        pass through `dim` features, and samples of a small network keep noise in the remaining channels.
        """
        kernel = self.filter(vector).unflatten(1, (self.channels, -1))
        edge = kernel.shape[-1] // 2
        windows = F.pad(x.to(kernel.dtype), (edge, edge)).unfold(2, kernel.shape[-1], 1)
        return torch.einsum("bctk,bck->bct", windows, kernel)

    def _patchify(self, x: Tensor) -> Tensor:
        """Split [B, C, T] into tokens [B, T / patch, C patch]."""
        batch, channels, frames = x.shape
        patch = self.config.patch
        if frames % patch:
            raise ValueError(
                f"{frames} latent frames are not a multiple of network.patch={patch}; "
                "set ingest.chunk_frames to a multiple of it"
            )
        return x.transpose(1, 2).reshape(batch, frames // patch, patch * channels).to(self.input.weight.dtype)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """Join tokens [B, N, C patch] to [B, C, N patch]."""
        batch, count, _ = tokens.shape
        return tokens.reshape(batch, count * self.config.patch, self.channels).transpose(1, 2)
