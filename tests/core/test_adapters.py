"""Low-rank adapters: their gradients, what networks of a run share, checkpoints, and the network they end as."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipelines.storage.filesystem import open_folder
from presto_core.config.loader import load_config
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.sections import LayersConfig, LoraConfig, StepsConfig
from presto_core.errors import UserError
from presto_core.networks.adapters import AdaptedLinear, add_adapters, merge_adapters, select_trained
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.checkpoint import Snapshot, load_checkpoint, write_checkpoint
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.state import make_step_rng
from presto_core.training.step_distillation import StepDistillation
from tests.core.test_diffusers_network import make_inputs, make_network
from tests.support.toy_networks import batches, tiny_dit

LORA, NAME = LoraConfig(rank=2, alpha=3.0), "StableAudioDiTModel"
STEPS = StepsConfig(generator_updates=2, fake_updates_per_generator_update=1, lora=LORA)


def randomize_adapters(network: nn.Module) -> None:
    rng = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2, generator=rng)


def list_adapters(network: nn.Module) -> dict[str, AdaptedLinear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, AdaptedLinear)}


def make_loss(output: Any) -> Tensor:
    assert isinstance(output, Tensor)
    return (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()


def test_layers_that_a_network_does_not_use_get_no_adapters():
    network = make_network(NAME)
    unused = "transformer.transformer_blocks.1.ff.net.2"
    before = list_adapters(add_adapters(copy.deepcopy(network), LORA))
    network.config = network.config.model_copy(update={"frozen": (f"{unused}.weight",)})
    after = list_adapters(add_adapters(network, LORA))
    assert before.keys() - after.keys() == {unused}
    assert not [name for name, weight in network.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_an_explicit_low_rank_term_also_for_mixed_budgets(checkpointing: bool):
    plain, budgets = make_network(NAME, conditioned=True), torch.tensor([2, 4, 1])
    adapted = add_adapters(copy.deepcopy(plain), LORA)
    randomize_adapters(adapted)
    adapted.set_activation_checkpointing(checkpointing)
    make_loss(adapted(*make_inputs(NAME), budgets)).backward()
    layers = list_adapters(adapted)
    terms = {
        name: (layer.adapter_up.detach().clone().requires_grad_(), layer.adapter_down.detach().clone().requires_grad_())
        for name, layer in layers.items()
    }
    weights: dict[str, Tensor] = {"budget_table": adapted.get_parameter("budget_table").detach()}
    weights |= {
        f"{name}.weight": plain.get_parameter(f"{name}.weight").detach() + 3.0 / 2 * up @ down
        for name, (up, down) in terms.items()
    }
    make_loss(functional_call(plain, weights, (*make_inputs(NAME), budgets))).backward()
    assert len(layers) >= 4 * 10  # every linear layer of four blocks
    for name, (up, down) in terms.items():
        torch.testing.assert_close(layers[name].adapter_up.grad, up.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layers[name].adapter_down.grad, down.grad, rtol=1e-10, atol=1e-12)
        assert layers[name].weight.grad is None
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} == set(adapted.trained_keys or ())


def test_at_full_rank_the_first_step_is_that_of_all_weights():
    plain = make_network(NAME).requires_grad_(True)
    make_loss(plain(*make_inputs(NAME))).backward()
    layers = list_adapters(adapted := add_adapters(make_network(NAME), LoraConfig(rank=64, alpha=64.0)))
    for layer in layers.values():  # B = 0 and A orthogonal: d(B A) = -lr G A^T A = -lr G
        nn.init.orthogonal_(layer.adapter_down)
    make_loss(adapted(*make_inputs(NAME))).backward()
    square = {name: layer for name, layer in layers.items() if layer.in_features <= 64}
    assert len(square) > 10
    for name, layer in square.items():
        assert layer.adapter_up.grad is not None
        moved, expected = layer.adapter_up.grad @ layer.adapter_down, plain.get_parameter(f"{name}.weight").grad
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("targets", [(), ("to_q", "to_v")])
def test_a_merged_network_is_plain_and_computes_the_same(targets: tuple[str, ...]):
    plain = make_network(NAME, conditioned=True)
    adapted = add_adapters(plain, LORA.model_copy(update={"targets": targets}))
    assert torch.equal(adapted(*make_inputs(NAME), 3), plain(*make_inputs(NAME), 3))  # zero at first
    randomize_adapters(adapted)
    merged = merge_adapters(adapted)
    assert not list_adapters(merged)
    assert list(merged.state_dict()) == list(plain.state_dict())
    expected = adapted(*make_inputs(NAME), 3)
    torch.testing.assert_close(merged(*make_inputs(NAME), 3), expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(expected, plain(*make_inputs(NAME), 3))
    assert merge_adapters(merged) is merged
    over = merge_adapters(adapted, overwrite=True)
    torch.testing.assert_close(over.state_dict(), merged.state_dict(), rtol=0, atol=0)
    own, base = dict(over.named_parameters()), dict(plain.named_parameters())
    assert not [name for name in base if own[name].data_ptr() != base[name].data_ptr() and name != "budget_table"]
    assert all(not targets or any(part in name for part in targets) for name in list_adapters(adapted))
    with pytest.raises(UserError, match=r"no_such.*to_q"):
        add_adapters(plain, LoraConfig(rank=1, targets=("no_such",)))


def find_storage(network: nn.Module) -> set[int]:
    keys = select_trained(network)
    return {p.data_ptr() for name, p in network.named_parameters() if name not in keys}


def make_steps(*, dropping: bool = False) -> StepDistillation:
    teacher, budget = tiny_dit(), LayerBudget(kept=(2, 3), edges=(1.0,), distribution={})
    start = teacher.with_budget(budget) if dropping else None
    torch.manual_seed(1)  # of the adapters, as on every worker
    return StepDistillation(STEPS, teacher, start=start, budget=budget if dropping else None)


def run(algorithm: Any, steps: int) -> None:
    stream = batches(size=4)
    for _ in range(algorithm.state.total_step):
        next(stream)
    while algorithm.state.total_step < steps:
        rng = make_step_rng(0, total_step=algorithm.state.total_step)
        algorithm.update(next(stream), generator=rng)
        algorithm.state.total_step += 1


@pytest.mark.parametrize("dropping", [False, True])
def test_networks_of_a_run_share_the_teacher_which_stays_as_it_is(dropping: bool):
    algorithm, teacher = make_steps(dropping=dropping), tiny_dit()
    networks = algorithm.state.networks
    real = {p.data_ptr() for p in algorithm.real_score.net.parameters()}  # type: ignore[attr-defined]
    ema = algorithm.state.emas["generator"].network
    for network in (networks["generator"], networks["fake_score"], ema):
        assert find_storage(network) == real
    before = {name: {k: v.clone() for k, v in select_trained(net).items()} for name, net in networks.items()}
    run(algorithm, 4)
    for name, parameter in algorithm.real_score.net.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(parameter, teacher.get_parameter(name))
    for name, values in before.items():
        assert any(not torch.equal(value, select_trained(networks[name])[key]) for key, value in values.items())
    assert any(not torch.equal(v, before["generator"][k]) for k, v in select_trained(ema).items())
    assert ("budget.weight" in select_trained(ema)) == dropping


@pytest.mark.parametrize("kind", ["layers", "steps"])
def test_a_resumed_run_has_the_same_bits_and_its_checkpoint_has_no_frozen_weight(kind: str, tmp_path: Path):
    def make() -> Any:
        if kind == "steps":
            return make_steps()
        torch.manual_seed(1)
        return LayerDistillation(LayersConfig(steps=4, lora=LORA), tiny_dit())

    whole, folder = make(), open_folder(str(tmp_path))
    run(whole, 4)
    killed = make()
    run(killed, 2)
    write_checkpoint(folder, Snapshot.from_state(killed.state.state_dict()))
    torch.manual_seed(7)  # whatever another process drew
    resumed = make()
    for network in resumed.state.networks.values():
        randomize_adapters(network)
    assert load_checkpoint(folder, resumed.state)
    run(resumed, 4)
    tensors, again = (Snapshot.from_state(a.state.state_dict()).tensors for a in (whole, resumed))
    assert tensors.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in tensors.items())
    adapters = [name for name in tensors if name.startswith("/networks") and "/head/" not in name]
    assert adapters
    assert all("adapter_" in name or "budget" in name for name in adapters)


def test_adapters_leave_ids_alone_and_refuse_shards():
    for stage, section in ((LayersStage, "layers"), (StepsStage, "steps")):
        plain = load_config(stage, None, [])
        assert "lora" not in plain.result_config()[section]
        rank = load_config(stage, None, [f"{section}.lora.rank=4"])
        assert rank.run_id() != plain.run_id()
        role = "layers" if section == "layers" else "fake_score"
        with pytest.raises(UserError, match=r"cluster\.parallel"):
            load_config(stage, None, [f"{section}.lora.rank=4", f"cluster.parallel.{role}=shard"])
