"""TrainState: everything of a run that must survive it, and the contracts between loop, stream and algorithm."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.training.ema import Ema
from presto_core.training.sharding import (
    gather_on_rank0,
    load_network,
    load_optimizer,
)


@dataclass(frozen=True)
class Cursor:
    """Where a data stream stands: the next row is number `row` (over all workers) of epoch `epoch`."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step.

    Attributes:
        x0: [B, C, T] normalised latents.
        cond: what is known of each.
        cursor: where the stream stands once this batch is used up.
    """

    x0: Tensor
    cond: Conditioning
    cursor: Cursor

    def rows(self, index: slice) -> Batch:
        """Some of its rows; the cursor stays that of the whole batch."""
        return Batch(self.x0[index], self.cond.rows(index), self.cursor)


@dataclass
class TrainState:
    """Trained networks, optimisers, averages and counters of a run.

    There is no RNG in it: each step's random numbers follow from (seed, total_step).

    Attributes:
        pending: what was measured since the last logged row, over all workers: name -> (sum, count).
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    emas: dict[str, Ema]
    total_step: int = 0
    generator_step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    pending: dict[str, tuple[float, float]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Nested dict of tensors and plain values.

        Where networks are sharded, every worker must call it; rank 0 gets whole tensors, the others empty ones.
        """
        tensors = {
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "emas": {name: ema.network.state_dict() for name, ema in self.emas.items()},
        }
        return {
            **(gather_on_rank0(tensors) if self.is_sharded else tensors),
            "ema_updates": {name: ema.updates for name, ema in self.emas.items()},
            "total_step": self.total_step,
            "generator_step": self.generator_step,
            "cursor": {"epoch": self.cursor.epoch, "row": self.cursor.row},
            "pending": dict(self.pending),
        }

    @property
    def is_sharded(self) -> bool:
        """Whether this worker holds only a part of some network."""
        return any(isinstance(p, DTensor) for net in self.networks.values() for p in net.parameters())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place what `state_dict` gave rank 0, under the same sharding or another.

        Raises:
            RuntimeError, ValueError, KeyError: the state belongs to other networks.
        """
        for name, net in self.networks.items():
            load_network(net, state["networks"][name])
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][name])
        for name, ema in self.emas.items():
            load_network(ema.network, state["emas"][name])
            ema.updates = state["ema_updates"][name]
        self.total_step, self.generator_step = state["total_step"], state["generator_step"]
        self.cursor = Cursor(**state["cursor"])
        self.pending = {name: (total, count) for name, (total, count) in state["pending"].items()}


class Algorithm(Protocol):
    """What the loop runs: a teacher's training or a distillation."""

    state: TrainState
    total_steps: int

    def update(self, batch: Batch, *, generator: torch.Generator) -> dict[str, Tensor]:
        """One step: move whichever networks are due. The loop counts `total_step`.

        Args:
            batch: this worker's share.
            generator: of this step, in the same state on every worker.

        Returns:
            What to log: name -> any number of observations, NaN where there is nothing to observe. Means are taken over
            all of them, so that one a row makes them the same however the batch is shared. One that is not finite ends
            the run, except in a part `loss/q1` of a loss, of which a row may not be.
        """
        ...


@runtime_checkable
class PhasedAlgorithm(Protocol):
    """An `Algorithm` whose steps are of several kinds; `phase` is that of the next one."""

    @property
    def phase(self) -> Enum: ...


def make_step_rng(seed: int, *, total_step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random source of one step, the same on every worker and independent of what ran before it."""
    state = np.random.SeedSequence([seed, 0, total_step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
