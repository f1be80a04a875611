"""Presto-L and Presto-LS as algorithms: losses, frozen networks, FLOPs, exact resume, learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from presto_core.artifacts.manifest import commit_artifact, read_artifact
from presto_core.config.layers import TableBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.sections import LoopConfig, OptimConfig, TeacherConfig
from presto_core.diffusion.denoiser import EDMDenoiser, add_noise
from presto_core.errors import UserError
from presto_core.losses.dsm import dsm_loss
from presto_core.losses.layer_distill import self_teacher_loss
from presto_core.models.model_card import ModelCard, load_model, serialize_network
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.loop import train
from presto_core.training.state import Batch, make_step_rng
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.core.test_layer_budget import flops
from tests.core.test_training import are_equal, drop_times, local_folder, run, weights
from tests.support.checkpoints import save_checkpoint
from tests.support.toy_networks import TEXT_DIM, batches, tiny_dit

DEPTH = 4


def teacher() -> DiT:
    return tiny_dit(depth=DEPTH)


def layers(**overrides: object) -> LayerDistillation:
    keys = {"layers.steps": 12, "layers.global_batch_size": 4} | {f"layers.{k}": v for k, v in overrides.items()}
    return LayerDistillation(load_config(LayersStage, overrides=keys).layers, teacher(), sigma_data=1.0)


def both(**overrides: object) -> StepDistillation:
    """Presto-LS that starts from an untrained budget-conditioned copy of the teacher."""
    keys = {"generator_updates": 2, "gan.head_layers": 1, "gan.head_channels": 8} | overrides
    config = load_config(StepsStage, overrides={f"steps.{k}": v for k, v in keys.items()}).steps
    table = TableBudget(kept=(1, 2, 2, 3, 3))  # no noise level runs block 2, and all run block 3
    budget = LayerBudget.from_distribution(KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0), table, depth=DEPTH)
    return StepDistillation(config, teacher(), start=teacher().with_budget(budget), budget=budget, sigma_data=1.0)


# --- the loss


def test_self_teacher_loss_in_closed_form():
    """Normalised vectors have distance 0 if equal and 4 if opposite, at any scale and offset."""
    h = torch.tensor([[[1.0, -1.0, 1.0, -1.0]], [[3.0, 1.0, 3.0, 1.0]]]) * 1e3
    full = torch.tensor([[[-5.0, 5.0, -5.0, 5.0]], [[7.0, 5.0, 7.0, 5.0]]]) * 1e3
    torch.testing.assert_close(self_teacher_loss(h, full), torch.tensor([4.0, 0.0]))


def test_the_self_teacher_is_not_taught():
    h, full = (torch.randn(2, 3, 4, requires_grad=True) for _ in range(2))
    self_teacher_loss(h, full).sum().backward()
    assert h.grad.any()
    assert full.grad is None


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("mode", ["presto", "ase"])
def test_an_update_minimises_the_written_loss(weight: float, mode: str):
    """Reference: the loss sample by sample, each at its own budget, with its own full-depth pass."""
    algorithm = layers(**{"self_teacher_weight": weight, "mode": mode, "optim.max_grad_norm": 1e9})
    network, batch = algorithm.state.networks["layers"], next(batches())
    cond = batch.cond
    rng = make_step_rng(0, total_step=5)
    sigma = algorithm.p_train.sample(4, generator=rng)
    noisy, total = add_noise(batch.x0, sigma, generator=rng), torch.zeros(())
    for i in range(4):
        one = slice(i, i + 1)
        at = noisy[one], sigma[one], cond.rows(one)
        x0, hidden = EDMDenoiser(network, 1.0).denoise_with_hidden(*at, algorithm.budget.blocks_at(float(sigma[i])))
        with torch.no_grad():
            _, full = EDMDenoiser(network, 1.0).denoise_with_hidden(*at, DEPTH)
        total = total + dsm_loss(x0, batch.x0[one], sigma[one], 1.0) / 4
        total = total + weight * self_teacher_loss(hidden, full) / 4
    expected = torch.autograd.grad(total.squeeze(), list(network.parameters()), allow_unused=True)
    norm = torch.stack([g.norm() for g in expected if g is not None]).norm()
    metrics = algorithm.update(batch, generator=make_step_rng(0, total_step=5))
    assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)


def test_the_full_depth_pass_is_made_once_and_only_where_blocks_are_skipped():
    sizes: list[int] = []

    def one_update(**overrides: object) -> list[int]:
        algorithm = layers(**overrides)
        network: Any = algorithm.state.networks["layers"]
        inner = network.blocks[-2]  # skipped at smaller budgets
        inner.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
        sizes.clear()
        metrics = algorithm.update(next(batches()), generator=make_step_rng(0, total_step=0))
        assert ("self_teacher_loss" in metrics) == (algorithm.config.self_teacher_weight > 0)
        return list(sizes)

    assert one_update(**{"budget.kind": "table", "budget.kept": [2, 2]}) == [4]
    assert one_update(**{"budget.kind": "full"}) == [4]  # the trained pass alone
    whole, second = one_update(**{"budget.kind": "table", "budget.kept": [2, 4]})
    assert (whole + second, 0 < second < 4) == (4, True)
    assert one_update(**{"budget.kind": "table", "budget.kept": [2], "self_teacher_weight": 0.0}) == []


# --- which networks change, and FLOPs


def test_the_teacher_is_left_alone_and_the_copy_moves():
    base = teacher()
    before = weights(base)
    algorithm = LayerDistillation(load_config(LayersStage).layers, base, sigma_data=1.0)
    run(algorithm, 3)
    assert are_equal(before, weights(base))
    assert not are_equal(before, weights(algorithm.state.networks["layers"])[1:])


@pytest.mark.parametrize("make", [layers, lambda: layers(mode="ase", budget_conditioning=False), both])
@pytest.mark.parametrize("killed_at", [3, 6])
def test_resumed_run_ends_with_the_same_bits(make, killed_at: int, tmp_path):
    whole, first, second = make(), make(), make()
    rows = run(whole, 12)
    rows_first = run(first, killed_at)
    save_checkpoint(local_folder(tmp_path), first.state, keep=1)
    assert load_checkpoint(local_folder(tmp_path), second.state)
    rows_second = run(second, 12)
    for name, net in whole.state.networks.items():
        assert are_equal(weights(net), weights(second.state.networks[name])), name
    assert drop_times(rows) == drop_times(rows_first + rows_second)


def test_only_the_generator_of_ls_drops_blocks():
    """A skipped block never runs and never changes; real and fake score run all blocks."""
    algorithm = both()
    ran: list[str] = []
    real_score: Any = algorithm.real_score
    nets: dict[str, Any] = {**algorithm.state.networks, "real_score": real_score.net}
    for name in ("generator", "fake_score", "real_score"):
        nets[name].blocks[2].register_forward_hook(lambda *_, name=name: ran.append(name))
    skipped, last = (weights(nets["generator"].blocks[i]) for i in (2, 3))
    run(algorithm, 12)
    assert set(ran) == {"fake_score", "real_score"}
    assert are_equal(skipped, weights(nets["generator"].blocks[2]))
    assert not are_equal(last, weights(nets["generator"].blocks[3]))


def test_generator_of_ls_starts_from_the_layer_distilled_network_and_scores_from_the_base():
    algorithm, base = both(), weights(teacher())
    assert are_equal(base, weights(algorithm.state.networks["fake_score"]))
    assert algorithm.state.networks["generator"].budget is not None
    assert algorithm.state.networks["fake_score"].budget is None


def test_training_costs_what_its_budgets_run():
    """The trained passes of one update cost a fixed part per sample plus one block per block that it runs."""
    counts = {
        kept: flops(
            lambda kept=kept: layers(
                **{"budget.kind": "uniform", "budget.kept": kept, "self_teacher_weight": 0.0}
            ).update(next(batches()), generator=make_step_rng(0, total_step=0))
        )
        for kept in (1, 2, 3, 4)
    }
    a_block = counts[2] - counts[1]
    assert [counts[k] - counts[1] for k in (2, 3, 4)] == [a_block, 2 * a_block, 3 * a_block]
    mixed = layers(**{"budget.kind": "table", "budget.kept": [1, 2, 4], "self_teacher_weight": 0.0})
    batch, blocks = next(batches()), []
    done = flops(lambda: blocks.append(mixed.update(batch, generator=make_step_rng(0, total_step=3))))
    assert done == pytest.approx(counts[1] + a_block * (float(blocks[0]["blocks_run"].mean()) - 1), rel=1e-6)


# --- the artifact


def card_of(budget: LayerBudget) -> ModelCard:
    latents: dict[str, Any] = {"channels": 4, "frames": 8, "sigma_data": 1.0, "mean": [0.0] * 4, "std": [1.0] * 4}
    network = teacher().config.model_dump(mode="json")
    return ModelCard(network=network, codec={}, text={"dim": TEXT_DIM}, layer_budget=budget.to_dict(), **latents)


@pytest.mark.parametrize("make", [layers, lambda: layers(mode="ase", budget_conditioning=False), both])
def test_what_is_saved_samples_bit_for_bit_as_what_was_trained(make, tmp_path):
    algorithm = make()
    run(algorithm, 6)
    (ema,) = algorithm.state.emas.values()
    files, card = serialize_network(ema.network), card_of(algorithm.budget)
    folder = local_folder(tmp_path)
    commit_artifact(
        folder,
        kind="layers",
        artifact_id="x",
        config_yaml="",
        parents={},
        files=files,
        details={"model": card.to_dict()},
    )
    network, loaded = load_model(folder, read_artifact(folder).manifest)
    assert loaded.budget == algorithm.budget

    def draw_samples(net: Any, budget: Any) -> torch.Tensor:
        rng = torch.Generator().manual_seed(1)
        noise, cond = torch.randn(3, 4, 8, generator=rng), next(batches(size=3)).cond
        sigmas = few_step_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
        return ping_pong(EDMDenoiser(net, 1.0), noise, sigmas, cond, generator=rng, budget=budget.blocks_at)

    with torch.no_grad():
        assert torch.equal(draw_samples(network, loaded.budget), draw_samples(ema.network, algorithm.budget))


def test_a_table_that_does_not_fit_the_teacher_is_refused():
    with pytest.raises(UserError, match=r"9 blocks .*4"):
        layers(**{"budget.kind": "uniform", "budget.kept": 9})


# --- learning


def periodic(size: int = 16) -> Iterator[Batch]:
    """Latents that require attention over time: one random value per sample, repeated in all frames."""
    for batch in batches(size=size):
        yield Batch(batch.x0[:, :, :1].expand_as(batch.x0).contiguous(), batch.cond, batch.cursor)


# over 10 s: 800 steps of training; fewer do not tell repaired from broken
@pytest.mark.slow
def test_layer_distillation_repairs_what_skipping_breaks():
    """With one block of four the loss is well above the teacher's; training closes at least two thirds of the gap."""
    fast = OptimConfig(learning_rate=3e-3, warmup_steps=10, decay="cosine")
    loop = LoopConfig(log_every=1000, checkpoint_every=10_000)
    base = TeacherTraining(
        TeacherConfig(steps=600, optim=fast, ema_decay=0.98), tiny_dit(depth=4, dim=32), sigma_data=1.0
    )
    train(base, periodic(), seed=0, config=loop)
    network: Any = base.state.emas["teacher"].network
    config = load_config(
        LayersStage,
        overrides={
            "layers.steps": 200,
            "layers.optim": fast.model_dump(),
            "layers.ema_decay": 0.98,
            "layers.budget": {"kind": "table", "kept": [1, 1, 2]},
        },
    ).layers
    algorithm = LayerDistillation(config, network, sigma_data=1.0)

    @torch.no_grad()
    def loss(net: Any, budget: LayerBudget | None) -> float:
        batch, rng = next(periodic(512)), torch.Generator().manual_seed(9)
        sigma = algorithm.p_train.sample(512, generator=rng)
        x0 = EDMDenoiser(net, 1.0)(
            add_noise(batch.x0, sigma, generator=rng),
            sigma,
            batch.cond,
            budget.blocks_per_sample(sigma) if budget else None,
        )
        return float(dsm_loss(x0, batch.x0, sigma, 1.0).mean())

    whole, skipped = loss(network, None), loss(network, algorithm.budget)
    train(algorithm, periodic(), seed=0, config=loop)
    repaired = loss(algorithm.state.emas["layers"].network, algorithm.budget)
    assert skipped > 1.2 * whole
    assert repaired < whole + (skipped - whole) / 3, (whole, skipped, repaired)
