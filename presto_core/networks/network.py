"""The interface of a raw network F that training, sampling, sharding and FLOP counting rely on."""

from __future__ import annotations

from torch import Tensor, nn

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget
from presto_core.networks.layer_budget import LayerBudget


class Network(nn.Module):
    """A transformer over latent frames, with blocks that may be skipped.

    Attributes:
        depth: number of blocks L.
        width: features D of the activations after a block.
        blocks: the L blocks. Each is one unit of sharding, and of activation checkpointing by its attribute
            `checkpointing`.
        run_empty_blocks: also call blocks that no sample runs, with zero rows. If blocks are sharded, every worker
            must take part in gathering each of them.
        budget_weights: names of the weights that embed a budget.
        trained_keys: names of the weights that a run changes; None for all (`presto_core.networks.adapters`).
    """

    depth: int
    width: int
    blocks: nn.ModuleList
    run_empty_blocks: bool
    budget_weights: tuple[str, ...] = ()
    trained_keys: frozenset[str] | None = None

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
        """Return F: [B, C, T].

        Args:
            x: [B, C, T] scaled latents.
            time: [B] c_noise of the preconditioning.
            cond: conditions; None is unconditional.
            budget: number of blocks that run, for all samples or for each: [B], as `list_budgets` reads it; None runs
                all.
            taps: return activations [B, D, N] after these blocks at full depth instead; blocks after the last tap do
                not run.
            with_output: with `taps`, run all blocks and return both: F and the activations.
            with_hidden: also return the output of the last block that runs, [B, N, D].

        Raises:
            UserError: a budget is not between 1 and the depth.
        """
        raise NotImplementedError

    def with_budget(self, budget: LayerBudget) -> Network:
        """Return a trainable copy that runs at this budget; at full depth it is bit-identical to the original."""
        raise NotImplementedError

    def keep_blocks(self, budget: int) -> Network:
        """Return a plain network of the blocks that run at this budget alone, with the budget's embedding folded in.

        It computes what this network does at the budget, and knows no budgets itself.

        Raises:
            UserError: the budget is not between 1 and the depth.
        """
        raise NotImplementedError

    def set_trainable(self) -> Network:
        """Let gradients reach the weights that training changes, and return the network; here, all of them."""
        return self.requires_grad_(True)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute activations inside blocks in the backward pass instead of keeping them."""
        for block in self.blocks:
            block.checkpointing = enabled  # type: ignore[assignment]
