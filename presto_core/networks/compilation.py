"""Compiling with torch.compile: the blocks of a network that trains, or the whole of one that only samples."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget
from presto_core.errors import UserError
from presto_core.networks.network import Network

COMPILERS = (os.environ.get("CXX") or "g++", "clang++")  # what PyTorch's inductor looks for
# of one function: networks of a run share the code of a block, and differ in dtype, gradients and rows. PyTorch's own
# limit of 8 is too low for Presto-LS: further ones would run eagerly
GRAPHS = 64

_Key = tuple[tuple[int, ...], int | None, bool]  # shape, blocks, without conditions


def compile_blocks(network: Network, *, setting: str) -> None:
    """Compile each block: all share one graph, and the choice of blocks stays outside it.

    Args:
        setting: names what asked for it in a message.

    Raises:
        UserError: PyTorch needs a C++ compiler for CPUs, and there is none.
    """
    _prepare(next(network.parameters()).device, setting)
    for block in network.blocks:
        block.compile()


class CompiledNetwork(nn.Module):
    """A frozen network with one compiled graph for each batch size, length and number of blocks.

    On a GPU, each graph is also a CUDA graph, one launch, if one thread does all. What only training asks for
    (activations, hidden states, budgets per sample) runs without graphs.

    Args:
        setting: names what asked for it in a message.
        report: called with a line before the first graph is made, and one per graph.
        one_thread: whether one thread makes and uses the graphs; PyTorch keeps CUDA graphs per thread.

    Raises:
        UserError: PyTorch needs a C++ compiler for CPUs, and there is none.
    """

    def __init__(
        self, network: Network, *, setting: str, report: Callable[[str], None], one_thread: bool = True
    ) -> None:
        super().__init__()
        device = next(network.parameters()).device
        _prepare(device, setting)
        self.network, self.report = network, report
        self.has_cuda_graphs = device.type == "cuda" and one_thread
        self.graph = torch.compile(network, dynamic=False, mode="reduce-overhead" if self.has_cuda_graphs else None)
        self.made: set[_Key] = set()
        self.most = GRAPHS

    def keep_graphs(self) -> None:
        """Make no further graphs, which take a minute: whatever else is sampled runs without them."""
        self.most = len(self.made)

    def forward(
        self, x: Tensor, time: Tensor, cond: Conditioning | None, budget: Budget | None = None, **more: Any
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]] | tuple[Tensor, Tensor]:
        """See `Network.forward`."""
        if more or not (budget is None or isinstance(budget, int)):
            return self.network(x, time, cond, budget, **more)
        key = (tuple(x.shape), budget, cond is None)
        if key in self.made:
            return self._call_graph(x, time, cond, budget)
        if len(self.made) >= self.most:
            return self.network(x, time, cond, budget)
        return self._make_graph(key, x, time, cond, budget)

    def _call_graph(self, x: Tensor, time: Tensor, cond: Conditioning | None, budget: int | None) -> Tensor:
        if self.has_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # earlier outputs were used: their memory is free
        return self.graph(x, time, cond, budget)

    def _make_graph(self, key: _Key, x: Tensor, at: Tensor, cond: Conditioning | None, budget: int | None) -> Tensor:
        if not self.made:
            self.report("the network, for each number of blocks up to a minute; seconds if an earlier command did it")
        started = time.monotonic()
        raw = self._call_graph(x, at, cond, budget)
        self.made.add(key)
        blocks = self.network.depth if budget is None else budget
        took = f"{time.monotonic() - started:.0f} s"
        left = "; further lengths and batch sizes are not compiled" if len(self.made) == self.most else ""
        self.report(f"{x.shape[0]} x {x.shape[-1]} frames, {blocks} of {self.network.depth} blocks: {took}{left}")
        return raw


def _prepare(device: torch.device, setting: str) -> None:
    """Check what compiling needs, and let the networks of a process have more graphs than by default."""
    if device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise UserError(
            f"{setting}=true needs a C++ compiler ({' or '.join(COMPILERS)}); install one, or set {setting}=false"
        )
    if device.type == "cpu":  # PyTorch looks for CUDA, and says each time that it found none
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch._dynamo import config  # takes a second, which only compiled networks need

    config.recompile_limit = max(config.recompile_limit, GRAPHS)
