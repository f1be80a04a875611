"""Foreign diffusers transformers as networks: budgets, taps, hidden states, conditioning, checkpointing, sharding."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.errors import UserError
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.families import FAMILIES
from presto_core.networks.layer_budget import LayerBudget, select_blocks
from tests.support.tiny_teachers import CHANNELS, TRANSFORMERS, make_arguments, make_transformer

DEPTH, BATCH, FRAMES = 4, 3, 12
BUDGET = LayerBudget(kept=(2, 4), edges=(1.0,), distribution={})
EACH = pytest.mark.parametrize("name", FAMILIES)


@cache
def _make_original(name: str) -> Any:
    return make_transformer(name).double().eval()


def make_original(name: str) -> Any:
    return copy.deepcopy(_make_original(name))


def make_network(name: str, *, conditioned: bool = False) -> Any:
    config = DiffusersNetworkConfig(transformer_class=name, transformer=TRANSFORMERS[name])
    network = DiffusersNetwork(config).double().eval()
    network.transformer.load_state_dict(_make_original(name).state_dict())
    if conditioned:
        network = network.with_budget(BUDGET).double()
    return network


def make_inputs(name: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, CHANNELS, FRAMES, generator=rng, dtype=torch.float64)
    time = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    return x, time, make_arguments(name, BATCH, FRAMES)


def run_original(name: str, model: nn.Module) -> Tensor:
    x, time, arguments = make_inputs(name)
    family = FAMILIES[name]
    raw = family.call(model, x.transpose(1, 2) if family.frames_first else x, time, arguments)
    return raw.transpose(1, 2) if family.frames_first else raw


@EACH
def test_full_depth_is_the_foreign_forward_pass_bit_for_bit(name: str):
    network, original = make_network(name), make_original(name)
    expected = run_original(name, original)
    assert list(network.transformer.state_dict()) == list(original.state_dict())
    assert torch.equal(network(*make_inputs(name)), expected)
    assert torch.equal(network.with_budget(BUDGET).double()(*make_inputs(name)), expected)
    assert (network.depth, network.width) == (DEPTH, 64)


@EACH
@pytest.mark.parametrize("mode", ["presto", "ase"])
def test_a_budget_equals_a_model_without_the_skipped_blocks(name: str, mode):
    network = make_network(name)
    network.mode = mode
    for budget in (1, 3):
        truncated, family = make_original(name), FAMILIES[name]
        kept = select_blocks(budget, DEPTH, mode)
        layers = getattr(truncated, family.blocks)
        setattr(truncated, family.blocks, nn.ModuleList(layers[i] for i in kept))
        if name.startswith("Ace"):  # its masks follow the kind of each layer
            truncated.layer_types = [truncated.layer_types[i] for i in kept]
        assert torch.equal(network(*make_inputs(name), budget), run_original(name, truncated))


@EACH
@pytest.mark.parametrize("mode", ["presto", "ase"])
def test_kept_blocks_are_the_network_at_that_budget(name: str, mode):
    network = make_network(name, conditioned=True)
    network.mode = mode
    nn.init.normal_(network.budget_table)
    for budget in (1, 3, 4):
        plain = network.keep_blocks(budget)
        assert (plain.depth, plain.budget_table) == (budget, None)
        assert set(plain.config.frozen) <= set(plain.state_dict())
        again = DiffusersNetwork(plain.config).double()  # its settings describe it
        again.load_state_dict(plain.state_dict())
        # the row is added before instead of after the layer's bias; Ace computes its embedding in fp32
        tolerance = 1e-5 if name.startswith("Ace") else 1e-12
        expected = network(*make_inputs(name), budget)
        torch.testing.assert_close(again(*make_inputs(name)), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(UserError, match="budget of 5"):
        network.keep_blocks(5)


@EACH
def test_mixed_budgets_equal_rows_one_by_one(name: str):
    network = make_network(name, conditioned=True)
    nn.init.normal_(network.budget_table)
    x, time, arguments = make_inputs(name)
    budgets = torch.tensor([2, 4, 1])
    raw, hidden = network(x, time, arguments, budgets, with_hidden=True)
    tolerance = 1e-5 if name.startswith("Ace") else 1e-12  # its sine and cosine of the time are fp32 in any precision
    for row, budget in enumerate(budgets.tolist()):
        one = slice(row, row + 1)
        alone = network(x[one], time[one], {k: v[one] for k, v in arguments.items()}, budget, with_hidden=True)
        torch.testing.assert_close((raw[one], hidden[one]), alone, rtol=tolerance, atol=tolerance)
    assert hidden.shape[0] == BATCH
    assert hidden.shape[2] == network.width


@EACH
def test_taps_are_what_forward_hooks_of_the_original_see(name: str):
    network, original = make_network(name), make_original(name)
    seen, prefix = [], FAMILIES[name].prefix_of(TRANSFORMERS[name])
    for index in (0, 2):
        getattr(original, FAMILIES[name].blocks)[index].register_forward_hook(lambda m, a, out: seen.append(out))
    run_original(name, original)
    features, later = network(*make_inputs(name), taps=(0, 2)), []
    for feature, hidden in zip(features, seen, strict=True):
        assert torch.equal(feature, hidden[:, prefix:].transpose(1, 2))
    network.blocks[3].register_forward_hook(lambda *a: later.append(1))
    network(*make_inputs(name), taps=(0, 2))
    assert not later
    raw, tapped = network(*make_inputs(name), taps=(0, 2), with_output=True)
    assert torch.equal(raw, network(*make_inputs(name)))
    assert all(map(torch.equal, tapped, features))


@EACH
def test_checkpointed_gradients_are_the_same_and_frozen_weights_get_none(name: str):
    gradients = []
    for enabled in (False, True):
        network = make_network(name, conditioned=True)
        network.set_activation_checkpointing(enabled)
        network(*make_inputs(name), torch.tensor([2, 4, 1])).square().mean().backward()
        gradients.append({k: p.grad for k, p in network.named_parameters() if p.grad is not None})
        assert all(p.requires_grad for p in network.parameters() if p.grad is not None)
    assert gradients[0].keys() == gradients[1].keys() >= {"budget_table"}
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-12, atol=1e-14)


@EACH
def test_the_budget_embedding_reaches_the_output_and_follows_copies(name: str):
    network = make_network(name, conditioned=True)
    twin = copy.deepcopy(network)
    nn.init.ones_(twin.budget_table)
    before = network(*make_inputs(name), 3)
    assert not torch.equal(twin(*make_inputs(name), 3), before)
    assert torch.equal(network(*make_inputs(name), 3), before)


@EACH
def test_a_block_that_no_row_runs_is_called_without_effect_if_workers_must_gather_it(name: str):
    network, calls = make_network(name), []
    network.blocks[1].register_forward_hook(lambda *a: calls.append(1))
    expected = network(*make_inputs(name), 2)  # of the first and the last block
    assert not calls
    network.run_empty_blocks = True
    assert torch.equal(network(*make_inputs(name), 2), expected)
    assert calls == [1]


def test_rows_of_the_rotary_table_are_not_taken_for_rows_of_the_batch():
    name, frames = "StableAudioDiTModel", BATCH - 1  # T + 1 tokens = rows of the batch
    network = make_network(name)
    x, time, arguments = make_inputs(name)
    both = network(x[..., :frames], time, arguments, torch.tensor([1, 4, 4]))
    first = {k: v[:1] for k, v in arguments.items()}
    torch.testing.assert_close(both[:1], network(x[:1, :, :frames], time[:1], first, 1), rtol=1e-12, atol=1e-12)


def test_bad_budgets_classes_and_settings_are_refused():
    network = make_network("StableAudioDiTModel")
    for budget in (0, 5, torch.tensor([1, 2, 9])):
        with pytest.raises(UserError, match="budget"):
            network(*make_inputs("StableAudioDiTModel"), budget)
    with pytest.raises(UserError, match="AudioLDM2UNet2DConditionModel"):
        DiffusersNetwork(DiffusersNetworkConfig(transformer_class="AudioLDM2UNet2DConditionModel", transformer={}))
    with pytest.raises(UserError, match="num_heds"):
        DiffusersNetwork(DiffusersNetworkConfig(transformer_class="StableAudioDiTModel", transformer={"num_heds": 4}))
