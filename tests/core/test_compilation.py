"""Compiled sampling: one graph per shape and number of blocks, the same numbers, and everything else without graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.errors import UserError
from presto_core.networks.compilation import CompiledNetwork
from presto_core.networks.dit import DiT

CHANNELS, FRAMES, TEXT_DIM = 4, 8, 6


@pytest.fixture
def network() -> Iterator[DiT]:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    config = NetworkConfig(dim=16, depth=3, heads=2, patch=2)
    net = DiT(config, channels=CHANNELS, text_dim=TEXT_DIM, budget_conditioned=True)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    yield net.eval().requires_grad_(False)
    torch._dynamo.reset()


def make_inputs(batch: int, frames: int = FRAMES) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    cond = Conditioning(
        torch.randn(batch, TEXT_DIM), torch.randn(batch, 5, TEXT_DIM), torch.ones(batch, 5, dtype=torch.bool),
        torch.full((batch,), 120.0), torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.bool),
    )  # fmt: skip
    return torch.randn(batch, CHANNELS, frames), torch.linspace(-1, 1, batch), cond


@torch.inference_mode()
def test_each_shape_and_number_of_blocks_is_one_graph_that_gives_the_same_numbers(network: DiT):
    lines: list[str] = []
    compiled = CompiledNetwork(network, setting="compile", report=lines.append)
    for _ in range(2):
        for budget in (1, 3):
            inputs = make_inputs(1)
            torch.testing.assert_close(compiled(*inputs, budget), network(*inputs, budget), rtol=1e-4, atol=1e-5)
    inputs = make_inputs(2)
    torch.testing.assert_close(compiled(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)
    assert not counters["graph_break"], "a graph that breaks is several launches on a GPU"
    assert counters["stats"]["unique_graphs"] == 3 == len(compiled.made)
    assert [line.rpartition(":")[0] for line in lines[1:]] == [
        "1 x 8 frames, 1 of 3 blocks", "1 x 8 frames, 3 of 3 blocks", "2 x 8 frames, 3 of 3 blocks"
    ]  # fmt: skip


@torch.inference_mode()
def test_what_only_training_asks_for_and_whatever_comes_after_the_last_graph_run_without_graphs(network: DiT):
    compiled = CompiledNetwork(network, setting="compile", report=lambda line: None)
    compiled.keep_graphs()
    inputs = make_inputs(2)
    for arguments, settings in (((2,), {}), (((1, 3),), {}), ((), {"taps": (1,)}), ((), {"with_hidden": True})):
        expected = network(*inputs, *arguments, **settings)
        torch.testing.assert_close(compiled(*inputs, *arguments, **settings), expected, rtol=0, atol=0)
    assert not compiled.made
    assert not counters["stats"]["unique_graphs"]


def test_without_a_compiler_it_is_refused_before_anything_is_sampled(network: DiT, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler .* set compile=false"):
        CompiledNetwork(network, setting="compile", report=lambda line: None)
