"""`loop.compile`: compiled blocks compute what eager ones do, budgets and copies included."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from pipelines.train.parallel import make_single_process
from presto_core.config.sections import LoopConfig
from presto_core.errors import UserError
from tests.support.toy_networks import conditions, tiny_dit


# of one budget in CI: tests/core/test_layer_budget.py
@pytest.mark.slow
def test_compiled_blocks_give_the_outputs_and_gradients_of_eager_ones_at_every_budget():
    eager, parallel = tiny_dit(), make_single_process(LoopConfig(compile=True))
    compiled = copy.deepcopy(eager)
    assert parallel.distribute(compiled, name="teacher") is compiled
    x = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    for budget in (None, 1, torch.tensor([1, eager.depth, 1, eager.depth])):
        outputs = [net(x, torch.zeros(4), conditions(4), budget) for net in (eager, compiled)]
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    for net in (eager, compiled):
        net(x, torch.zeros(4), conditions(4)).square().mean().backward()
    for plain, fast in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(fast.grad, plain.grad, atol=1e-5, rtol=1e-4)


def test_a_frozen_network_is_compiled_too_and_its_state_has_the_names_of_an_eager_one():
    net = tiny_dit()
    names = list(net.state_dict())
    make_single_process(LoopConfig(compile=True)).prepare_frozen(net, name="real_score")
    assert all(block._compiled_call_impl is not None for block in net.blocks)
    assert list(net.state_dict()) == names


def test_a_missing_compiler_is_one_message_before_any_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"loop\.compile=true needs a C\+\+ compiler .*loop\.compile=false"):
        make_single_process(LoopConfig(compile=True)).distribute(tiny_dit(), name="teacher")
