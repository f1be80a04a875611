"""A list of foreign transformer blocks that obeys layer budgets and taps, without a change to the class around it.

It stands where the model's own `ModuleList` stood, with the same children and so the same names of weights. The model's
forward pass keeps its own beginning, arguments of each block, and end; while a plan is set, iterating yields callables
that skip the block, run it on some rows only, or keep its output.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HIDDEN = "hidden_states"  # the argument of every block that it returns changed


@dataclass
class ForwardPlan:
    """What the blocks do in one forward pass.

    Attributes:
        rows: rows of the batch that run each block, the first ones; None runs all blocks on all rows.
        taps: blocks after which the hidden states are kept.
        with_output: also run the blocks after the last tap, which otherwise hand the hidden states on.
        run_empty_blocks: also call blocks that no row runs, so that every worker gathers their weights.
        checkpointing: recompute activations of each block in the backward pass.
        arguments: further ones of every block, which the model's own forward pass does not give it.
        outputs: the kept hidden states; `last` those after the last block.
    """

    rows: list[int] | None = None
    taps: tuple[int, ...] = ()
    with_output: bool = False
    run_empty_blocks: bool = False
    checkpointing: bool = False
    arguments: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    last: Tensor | None = None


class BudgetedBlocks(nn.ModuleList):
    """The blocks of a foreign model.

    Args:
        blocks: the model's own list, whose children move here.
        batched: arguments of a block whose first axis is the batch. They are named, since a table of rotary angles may
            happen to have as many rows as the batch.
    """

    def __init__(self, blocks: nn.ModuleList, *, batched: frozenset[str]) -> None:
        super().__init__(blocks)
        self.batched = batched
        self.plan: ForwardPlan | None = None
        self.arguments = tuple(inspect.signature(type(blocks[0]).forward).parameters)[1:]

    def __iter__(self) -> Iterator[Any]:
        blocks = list(self._modules.values())
        if self.plan is None:
            return iter(blocks)
        # the plan is bound: checkpointing calls a block again after the forward pass has ended
        return iter([partial(self._run, self.plan, index, block) for index, block in enumerate(blocks)])

    def _run(self, plan: ForwardPlan, index: int, block: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        kwargs = {**dict(zip(self.arguments, args)), **kwargs, **plan.arguments}
        hidden: Tensor = kwargs[HIDDEN]
        if plan.taps and not plan.with_output and index > max(plan.taps):
            return hidden
        count = hidden.shape[0] if plan.rows is None else plan.rows[index]
        if count:
            output = self._call(block, self._take(kwargs, count, hidden.shape[0]), plan)
            hidden = output if count == hidden.shape[0] else torch.cat([output, hidden[count:]])
        elif plan.run_empty_blocks:  # foreign blocks fail on zero rows: one row, of which nothing is used
            hidden = hidden + 0.0 * self._call(block, self._take(kwargs, 1, hidden.shape[0]), plan).mean()
        if index in plan.taps:
            plan.outputs[index] = hidden
        plan.last = hidden
        return hidden

    def _take(self, kwargs: dict[str, Any], count: int, batch: int) -> dict[str, Any]:
        """Return the arguments for the first `count` rows."""
        if count == batch:
            return kwargs
        return {
            name: value[:count] if name in self.batched and isinstance(value, Tensor) else value
            for name, value in kwargs.items()
        }

    def _call(self, block: nn.Module, kwargs: dict[str, Any], plan: ForwardPlan) -> Tensor:
        if plan.checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, use_reentrant=False, **kwargs)
        else:
            output = block(**kwargs)
        return output
