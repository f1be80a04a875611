"""TrainState, everything a run restores on resume, and the interfaces between loop, data stream and algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.adapters import select_trained
from presto_core.training.ema import Ema
from presto_core.training.sharding import OptimizerMoments, find_weight_setters, gather_on_rank0, is_sharded
from presto_core.training.step_rng import make_step_rng as make_step_rng


@dataclass(frozen=True)
class Cursor:
    """Position of a data stream: the next row is number `row` (over all workers) of epoch `epoch`."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Batch:
    """One worker's rows of a step.

    Attributes:
        x0: [B, C, T] normalised latents.
        cond: conditions of each row.
        cursor: position of the stream after this batch.
    """

    x0: Tensor
    cond: Conditioning
    cursor: Cursor

    def rows(self, index: slice) -> Batch:
        """Return some of its rows; the cursor stays that of the whole batch."""
        return Batch(self.x0[index], self.cond.rows(index), self.cursor)


@dataclass
class TrainState:
    """Trained networks, optimisers, moving averages and counters of a run.

    It has no RNG state: the random numbers of a step follow from (seed, total_step).

    Attributes:
        pending: metrics since the last logged row, over all workers: name -> (sum, count).
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    emas: dict[str, Ema]
    total_step: int = 0
    generator_step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    pending: dict[str, tuple[float, float]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return a nested dict of tensors and plain values.

        If networks are sharded, every worker must call it; rank 0 gets full tensors, the others empty ones.
        """
        tensors = {
            "networks": {name: select_trained(net) for name, net in self.networks.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "emas": {name: select_trained(ema.network) for name, ema in self.emas.items()},
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
        """Whether this worker has only a shard of some network."""
        return any(is_sharded(p) for net in self.networks.values() for p in net.parameters())

    def load_stream(self, skeleton: dict[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Restore in place the `state_dict` of rank 0, under the same or another sharding, tensor by tensor.

        Args:
            skeleton: the state with a `TensorName` for each tensor.
            tensors: name -> full tensor; each is in its place, or this worker's shard of it, before the next is read.

        Raises:
            RuntimeError, ValueError, KeyError: the state belongs to other networks.
        """
        setters: dict[str, Callable[[Tensor], None]] = {}
        for name, net in self.networks.items():
            setters |= find_weight_setters(net, skeleton["networks"][name])
        for name, ema in self.emas.items():
            setters |= find_weight_setters(ema.network, skeleton["emas"][name])
        moments = {name: OptimizerMoments(opt, skeleton["optimizers"][name]) for name, opt in self.optimizers.items()}
        for of_optimizer in moments.values():
            setters |= of_optimizer.setters
        for name, tensor in tensors:
            if set_tensor := setters.pop(name, None):
                set_tensor(tensor)
            del tensor
        if setters:
            raise KeyError(f"no tensor {next(iter(setters))}")
        for of_optimizer in moments.values():
            of_optimizer.load()
        for name, ema in self.emas.items():
            ema.updates = skeleton["ema_updates"][name]
        self.total_step, self.generator_step = skeleton["total_step"], skeleton["generator_step"]
        self.cursor = Cursor(**skeleton["cursor"])
        self.pending = {name: (total, count) for name, (total, count) in skeleton["pending"].items()}


class Algorithm(Protocol):
    """A training algorithm that the loop runs: teacher training or a distillation."""

    state: TrainState
    total_steps: int

    def update(self, batch: Batch, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Run one step and update the networks that are due. The loop counts `total_step`.

        Args:
            batch: this worker's rows.
            generator: generator of this step, in the same state on every worker.

        Returns:
            Metrics: name -> any number of values, NaN if there is nothing to observe. The loop logs their means; with
            one value per row these do not depend on how workers split the batch. A non-finite value ends the run,
            except in a bin `loss/q1` of a loss, to which a row need not belong.
        """
        ...


@runtime_checkable
class PhasedAlgorithm(Protocol):
    """An `Algorithm` with several kinds of steps; `phase` is the kind of the next one."""

    @property
    def phase(self) -> Enum: ...
