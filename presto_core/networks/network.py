"""The contract of a raw network F: what training, sampling, sharding and counting rely on, whatever its class."""

from __future__ import annotations

from torch import Tensor, nn

from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.layer_budget import LayerBudget


class Network(nn.Module):
    """A transformer over latent frames, with blocks that may be skipped.

    Attributes:
        depth: number of blocks L.
        width: features D of the activations after a block.
        blocks: the L blocks. Each is one unit of sharding, and of activation checkpointing by its attribute
            `checkpointing`.
        run_empty_blocks: call blocks that no sample runs, too, with no rows. Where blocks are sharded, every worker
            has to take part in gathering each of them.
    """

    depth: int
    width: int
    blocks: nn.ModuleList
    run_empty_blocks: bool

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
        """x: [B, C, T] scaled latents, time: [B] as the preconditioning gives it -> F: [B, C, T].

        Args:
            budget: blocks that run, for all samples or for each: [B]; None runs all of them.
            taps: return activations [B, D, N] after those blocks of the whole network instead, and run none behind
                the last of them.
            with_hidden: return what the last block that ran gave, [B, N, D], as well.

        Raises:
            UserError: a budget is not between 1 and the depth.
        """
        raise NotImplementedError

    def with_budget(self, budget: LayerBudget) -> Network:
        """A trainable copy that runs at this budget; at full depth it equals the original, bit for bit."""
        raise NotImplementedError

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute activations inside blocks in the backward pass instead of keeping them."""
        for block in self.blocks:
            block.checkpointing = enabled  # type: ignore[assignment]
