"""A diffusers transformer as a `Network`: budgets, taps, hidden states and budget conditioning for any `Family`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.device import send
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget
from presto_core.networks.ace_step_conditioner import AceStepConditioner
from presto_core.networks.budgeted_blocks import BudgetedBlocks, ForwardPlan
from presto_core.networks.families import Arguments, build_transformer, find_family
from presto_core.networks.layer_budget import (
    LayerBudget,
    Mode,
    check_budgets,
    list_budgets,
    renumber_blocks,
    select_blocks,
)
from presto_core.networks.longcat_audio_conditioner import LongCatAudioConditioner
from presto_core.networks.network import Network
from presto_core.networks.stable_audio_3_conditioner import StableAudio3Conditioner
from presto_core.networks.stable_audio_conditioner import StableAudioConditioner

Conditioner = StableAudioConditioner | StableAudio3Conditioner | AceStepConditioner | LongCatAudioConditioner
CONDITIONERS: dict[str, Callable[[DiffusersNetworkConfig], Conditioner]] = {
    "StableAudioDiTModel": StableAudioConditioner,
    "StableAudio3DiTModel": StableAudio3Conditioner,
    "AceStepTransformer1DModel": AceStepConditioner,
    "LongCatAudioDiTTransformer": LongCatAudioConditioner,
}


class DiffusersNetwork(Network):
    """Raw network F of a foreign class.

    Args:
        config: class and settings of the transformer and its conditioner.
        mode: which blocks a budget skips.
        budget_conditioned: add an embedding of the budget to the noise embedding; zero at first, so that the network
            is bit-identical to the original at full depth.
    """

    budget_weights = ("budget_table",)

    def __init__(
        self, config: DiffusersNetworkConfig, *, mode: Mode = "presto", budget_conditioned: bool = False
    ) -> None:
        super().__init__()
        self.config, self.mode = config, mode
        self.family = family = find_family(config.transformer_class)
        self.transformer = build_transformer(config.transformer_class, config.transformer)
        blocks = BudgetedBlocks(self.transformer.get_submodule(family.blocks), batched=family.batched)  # type: ignore[arg-type]
        setattr(self.transformer, family.blocks, blocks)
        self.depth, self.width = len(blocks), family.width_of(config.transformer)
        self.run_empty_blocks, self.checkpointing = False, False
        self.conditioner = CONDITIONERS[config.transformer_class](config) if config.conditioner else None
        self.budget_table = nn.Parameter(torch.zeros(self.depth, self.width)) if budget_conditioned else None
        self._budget_emb: Tensor | None = None
        self.transformer.get_submodule(family.noise).register_forward_hook(self._add_budget)
        self.set_trainable()

    @staticmethod
    def for_budget(config: DiffusersNetworkConfig, budget: LayerBudget | None) -> DiffusersNetwork:
        """Build an untrained network that runs at this budget; None runs all blocks."""
        if budget is None:
            return DiffusersNetwork(config)
        return DiffusersNetwork(config, mode=budget.mode, budget_conditioned=budget.conditioned)

    @property
    def blocks(self) -> BudgetedBlocks:  # type: ignore[override]
        """The transformer's blocks, which stay where the foreign class has them."""
        blocks = self.transformer.get_submodule(self.family.blocks)
        assert isinstance(blocks, BudgetedBlocks)
        return blocks

    def set_trainable(self) -> DiffusersNetwork:
        """Let all weights train but those of the conditioner and those that `config.frozen` names."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith("conditioner.") and name not in self.config.frozen)
        return self

    def with_budget(self, budget: LayerBudget) -> DiffusersNetwork:
        network = copy.deepcopy(self)
        network.mode = budget.mode
        weight = next(self.transformer.parameters())
        table = nn.Parameter(torch.zeros(self.depth, self.width, device=weight.device)) if budget.conditioned else None
        network.budget_table = table
        return network.set_trainable()

    @torch.no_grad()
    def keep_blocks(self, budget: int) -> DiffusersNetwork:
        family, config = self.family, self.config
        kept = select_blocks(budget, self.depth, self.mode)
        prefix = f"transformer.{family.blocks}"
        renamed = renumber_blocks(self.state_dict(), prefix, kept)
        settings = {**config.transformer, family.depth: len(kept)}
        for name in family.per_block:
            listed = config.transformer.get(name) or getattr(self.transformer, name)
            settings[name] = [listed[index] for index in kept]
        frozen = tuple(new for new, old in renamed.items() if old in config.frozen)
        copy = DiffusersNetwork(config.model_copy(update={"transformer": settings, "frozen": frozen}))
        weight, state = next(self.transformer.parameters()), self.state_dict()
        copy.to(weight.device, weight.dtype)
        copy.load_state_dict({new: state[old] for new, old in renamed.items() if old != "budget_table"})
        if self.budget_table is not None:
            # the noise embedding ends with a linear layer, to whose output the budget's row is added
            _find_last_linear(copy.transformer.get_submodule(family.noise)).bias.add_(self.budget_table[budget - 1])
        return copy.train(self.training)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        self.checkpointing = enabled

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Conditioning | Arguments | None,
        budget: Budget | None = None,
        *,
        taps: tuple[int, ...] | None = None,
        with_output: bool = False,
        with_hidden: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]] | tuple[Tensor, Tensor]:
        """See `Network.forward`; `cond` may also be the transformer's own arguments by name."""
        budgets = self._list_budgets(budget, x.shape[0])
        arguments = self._make_arguments(cond, x)
        order = None
        if min(budgets) != max(budgets):  # largest first: each block then runs on the first rows
            order = send(sorted(range(len(x)), key=lambda row: -budgets[row]), x.device)
            x, time = x[order], time[order]
            arguments = {name: value[order] for name, value in arguments.items()}
            budgets = sorted(budgets, reverse=True)
        plan = ForwardPlan(
            self._count_rows(budgets), tuple(taps or ()), with_output, self.run_empty_blocks, self.checkpointing
        )
        raw = self._run_transformer(x, time, arguments, plan, budgets)
        prefix = self.family.prefix_of(self.config.transformer)
        if taps:
            activations = [plan.outputs[index][:, prefix:].transpose(1, 2) for index in taps]
            return (raw, activations) if with_output else activations
        assert plan.last is not None
        back = slice(None) if order is None else order.argsort()
        return (raw[back], plan.last[:, prefix:][back]) if with_hidden else raw[back]

    def _run_transformer(
        self, x: Tensor, time: Tensor, arguments: Arguments, plan: ForwardPlan, budgets: list[int]
    ) -> Tensor:
        """Run the foreign forward pass with a plan, which is gone afterwards whatever happens."""
        if self.budget_table is not None:
            self._budget_emb = self.budget_table[send(budgets, x.device) - 1]
        if (mask := self.family.block_mask) in arguments:
            plan.arguments = {mask: arguments[mask]}
            arguments = {name: value for name, value in arguments.items() if name != mask}
        self.blocks.plan = plan
        try:
            return self.family.run(self.transformer, x, time, arguments)
        finally:
            self.blocks.plan = self._budget_emb = None

    def _list_budgets(self, budget: Budget | None, batch: int) -> list[int]:
        """Return the budget of each row, or one of all; raises UserError if one is not between 1 and the depth."""
        if budget is None:
            return [self.depth]  # whatever the batch, which an exported program leaves open
        budgets = [budget] * batch if isinstance(budget, int) else list_budgets(budget)
        check_budgets(budgets, self.depth)
        return budgets

    def _count_rows(self, budgets: list[int]) -> list[int] | None:
        """Return how many rows run each block, given falling budgets; None if all run all."""
        if min(budgets) == self.depth:
            return None
        runs = [set(select_blocks(budget, self.depth, self.mode)) for budget in budgets]
        return [sum(index in kept for kept in runs) for index in range(self.depth)]

    def _make_arguments(self, cond: Conditioning | Arguments | None, x: Tensor) -> Arguments:
        if isinstance(cond, Mapping):
            return cond
        if self.conditioner is None:
            raise TypeError(f"{self.config.transformer_class} has no conditioner; pass its own arguments by name")
        arguments: Arguments = self.conditioner(cond, x)
        return arguments

    def _add_budget(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of the noise embedding; a bound method, so that it follows copies of the network."""
        return output if self._budget_emb is None else output + self._budget_emb.to(output.dtype)


def _find_last_linear(module: nn.Module) -> nn.Linear:
    """Return the linear layer that a noise embedding ends with."""
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    assert last.bias is not None
    return last
