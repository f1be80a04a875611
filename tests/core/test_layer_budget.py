"""Layer budgets: which blocks run, mixed budgets against one sample at a time, cost, and equality with the teacher."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from presto_core.config.layers import (
    FullBudget,
    PrestoLBudget,
    PrestoLSBudget,
    TableBudget,
    UniformBudget,
    choose_generator_budget,
)
from presto_core.config.noise import (
    GridNoise,
    KarrasNoise,
    LogNormalNoise,
    LogUniformNoise,
    MixtureNoise,
    NoiseDistribution,
    TruncatedNoise,
)
from presto_core.errors import UserError
from presto_core.networks.block import Block
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget, Mode, select_blocks
from presto_core.samplers.schedule import few_step_sigmas
from tests.support.toy_networks import conditions, tiny_dit

DEPTH = 5
NOISES = [
    LogNormalNoise(mean=-0.4, std=1.0),
    KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0),
    LogUniformNoise(sigma_min=0.01, sigma_max=10.0),
]


def make_layered_net(mode: Mode = "presto", *, conditioned: bool = True, **options: int) -> DiT:
    budget = LayerBudget.from_distribution(NOISES[0], PrestoLBudget(), depth=DEPTH, mode=mode, conditioned=conditioned)
    net = tiny_dit(depth=DEPTH, **options).with_budget(budget)
    if net.budget is not None:
        torch.nn.init.normal_(net.budget.weight, std=0.3)
    return net


def inputs(batch: int):
    rng = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 4, 8, generator=rng), torch.randn(batch, generator=rng), conditions(batch)


# --- which blocks


@given(depth=st.integers(1, 40), share=st.floats(0, 1), mode=st.sampled_from(["presto", "ase"]))
def test_a_budget_is_the_number_of_blocks_and_presto_always_runs_the_last(depth: int, share: float, mode: Mode):
    budget = 1 + round(share * (depth - 1))
    kept = select_blocks(budget, depth, mode)
    assert len(kept) == len(set(kept)) == budget
    assert list(kept) == sorted(kept)
    assert kept[-1] == (depth - 1 if mode == "presto" else budget - 1)
    assert kept[:-1] == tuple(range(budget - 1))


def test_the_papers_tables_at_the_papers_depth_and_scaled():
    noise = NOISES[0]
    assert LayerBudget.from_distribution(noise, PrestoLBudget(), depth=28).kept == (14, 16, 20, 24, 28)
    assert LayerBudget.from_distribution(noise, PrestoLSBudget(), depth=28).kept == (16, 20, 20, 28, 28)
    assert LayerBudget.from_distribution(noise, PrestoLBudget(), depth=14).kept == (7, 8, 10, 12, 14)
    assert LayerBudget.from_distribution(noise, PrestoLSBudget(), depth=6).kept == (3, 4, 4, 6, 6)
    assert LayerBudget.from_distribution(noise, UniformBudget(kept=3), depth=6).kept == (3,)
    assert LayerBudget.from_distribution(noise, FullBudget(), depth=6).kept == (6,)


def test_a_generator_runs_at_its_own_table_else_at_that_of_its_layer_distilled_model():
    own, milder, papers = TableBudget(kept=(2, 6)), (4, 5, 5, 6, 6), (3, 3, 4, 5, 6)
    assert choose_generator_budget(own, milder, papers_kept=papers) == own
    assert choose_generator_budget(None, milder, papers_kept=papers) == TableBudget(kept=milder)
    assert choose_generator_budget(None, None, papers_kept=papers) is None
    # the paper has a milder table for generators than for layer-distilled models
    assert choose_generator_budget(None, papers, papers_kept=papers) == PrestoLSBudget()


@given(depth=st.integers(1, 60), noise=st.sampled_from(NOISES), paper=st.sampled_from([PrestoLBudget, PrestoLSBudget]))
def test_budgets_never_fall_as_noise_falls(depth: int, noise: NoiseDistribution, paper: type):
    budget = LayerBudget.from_distribution(noise, paper(), depth=depth)
    sigma = torch.logspace(3, -3, 200)
    kept = budget.blocks_per_sample(sigma)
    assert (kept.diff() >= 0).all()
    assert kept.min() >= 1
    assert kept[-1] == depth
    assert kept.tolist() == [budget.blocks_at(s) for s in sigma.tolist()]


@pytest.mark.parametrize("noise", NOISES)
def test_bins_are_equally_likely(noise: NoiseDistribution):
    budget = LayerBudget.from_distribution(noise, TableBudget(kept=(1, 2, 3, 4)), depth=4)
    sigma = noise.sample(20_000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(budget.blocks_per_sample(sigma), minlength=5)[1:] / 20_000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.012, rtol=0)


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_grid_is_sampled_with_the_budgets_it_was_trained_with(steps: int):
    """Its levels may coincide with bin edges, and sampling computes them with another formula."""
    grid = GridNoise(num_steps=steps, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    budget = LayerBudget.from_distribution(grid, PrestoLBudget(), depth=28)
    trained = budget.blocks_per_sample(grid.levels().flip(0).float()).tolist()
    sigmas = few_step_sigmas(steps, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert [budget.blocks_at(s) for s in sigmas.tolist()] == trained == sorted(trained)


@pytest.mark.parametrize("levels", range(1, 30))
@pytest.mark.parametrize("bins", [1, 2, 3, 5, 8])
def test_every_bin_of_a_discrete_distribution_is_drawn_and_the_last_is_that_of_the_table(levels: int, bins: int):
    """METHOD section 4: a table whose full-depth bin can never be drawn confounds continuous with discrete inputs."""
    table = TableBudget(kept=tuple(range(1, bins + 1)))
    budget = LayerBudget.from_distribution(GridNoise(num_steps=levels), table, depth=bins)
    drawn = [budget.blocks_at(level) for level in GridNoise(num_steps=levels).levels().tolist()]
    assert set(drawn) == set(budget.kept)
    assert len(budget.kept) == min(levels, bins) == len(budget.edges) + 1
    assert drawn[0] == bins
    assert levels == 1 or drawn[-1] == 1
    shares = [drawn.count(kept) for kept in budget.kept]
    assert max(shares) - min(shares) <= 1  # as equally likely as whole levels allow


def test_a_grid_of_four_runs_about_as_many_blocks_as_the_continuous_distribution():
    table = LayerBudget.from_distribution(GridNoise(num_steps=4), PrestoLBudget(), depth=28)
    assert table.kept == (14, 16, 24, 28)
    assert sum(table.kept) / 4 == pytest.approx(sum((14, 16, 20, 24, 28)) / 5, rel=0.01)


def test_a_truncated_grid_has_the_bins_of_the_levels_that_are_left():
    grid = GridNoise(num_steps=8)
    noise = TruncatedNoise(base=grid, sigma_low=0.01, sigma_high=float(grid.levels()[-2]))
    drawn = noise.sample(500, generator=torch.Generator().manual_seed(0)).unique().double()
    torch.testing.assert_close(drawn, noise.levels(), rtol=1e-6, atol=0)
    budget = LayerBudget.from_distribution(noise, PrestoLBudget(), depth=28)
    assert {budget.blocks_at(level) for level in drawn.tolist()} == {14, 16, 20, 24, 28}


def test_a_table_whose_last_bin_would_never_be_drawn_is_refused():
    """A mixture with an atom at its lowest level, and more than a bin's share of the draws at it."""
    grid = GridNoise(num_steps=1, sigma_min=0.1, sigma_max=1.0)
    above = KarrasNoise(sigma_min=1.0, sigma_max=80.0)
    with pytest.raises(UserError, match=r"5 bins .*MixtureNoise.* never run"):
        LayerBudget.from_distribution(MixtureNoise(components=(grid, above)), PrestoLBudget(), depth=28)
    budget = LayerBudget.from_distribution(MixtureNoise(components=(grid, above)), FullBudget(), depth=28)
    assert budget.kept == (28,)


def test_the_table_survives_json():
    budget = LayerBudget.from_distribution(NOISES[1], PrestoLSBudget(), depth=6, mode="ase", conditioned=False)
    assert LayerBudget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


@pytest.mark.parametrize(
    "broken",
    [{"kept": []}, {"kept": [0, 3]}, {"kept": [3, 2]}, {"edges": []}, {"edges": [0.1, 2.0]}, {"other": 1}],
)
def test_a_table_that_is_none_is_not_read(broken: dict[str, object]):
    fields = LayerBudget.from_distribution(NOISES[0], TableBudget(kept=(1, 2)), depth=4).to_dict() | broken
    with pytest.raises((ValueError, TypeError)):
        LayerBudget.from_dict(fields)


@pytest.mark.parametrize("budget", [0, -1, DEPTH + 1])
@pytest.mark.parametrize("conditioned", [True, False])
def test_a_budget_outside_the_network_is_refused(budget: int, conditioned: bool):
    for invalid in (budget, torch.tensor([3, budget])):
        with pytest.raises(UserError, match=f"budget of {budget} .*{DEPTH}"):
            make_layered_net(conditioned=conditioned)(*inputs(2), invalid)


@pytest.mark.parametrize("config", [TableBudget(kept=(2, 7)), UniformBudget(kept=7)])
def test_a_table_that_does_not_fit_the_depth_is_refused(config):
    with pytest.raises(UserError, match="runs 7 blocks and the network has 6; keep at most 6"):
        LayerBudget.from_distribution(NOISES[0], config, depth=6)


@pytest.mark.parametrize(
    ("kept", "message"),
    [((), "at least one bin"), ((0, 3), "greater than or equal to 1"), ((3, 2), r"kept=\[3, 2\] must not decrease")],
)
def test_a_table_that_makes_no_sense_is_refused(kept: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        TableBudget(kept=kept)


# --- what runs


def forward_one_by_one(net: DiT, x, c_noise, cond, budgets: list[int]) -> torch.Tensor:
    """Reference for mixed budgets: select blocks by hand, one sample at a time."""
    rows = []
    for i, budget in enumerate(budgets):
        alone = slice(i, i + 1)
        context_vector, context, visible = net.condition(cond.rows(alone), 1)
        noise_emb = net.noise(c_noise[alone]) + context_vector
        if net.budget is not None:
            noise_emb = noise_emb + net.budget.weight[budget - 1]
        vector = torch.nn.functional.silu(noise_emb)
        hidden = net.input(net._patchify(x[alone]))
        for index in range(DEPTH):
            last = index == DEPTH - 1
            if (index < budget) if net.mode == "ase" else (index < budget - 1 or last):
                hidden = net.blocks[index](hidden, vector, context, visible, net.positions(hidden, cond))
        shift, scale = net.final_modulation(vector)[:, None].chunk(2, dim=-1)
        normed = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
        rows.append(net._unpatchify(net.output(normed * (1 + scale) + shift)) + net._wiener_filter(x[alone], vector))
    return torch.cat(rows)


@pytest.mark.parametrize("mode", ["presto", "ase"])
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("budgets", [[2, 5, 1, 3, 3, 5], [1, 1, 1], [4, 2], [5, 5], [3]])
def test_mixed_budgets_equal_one_sample_at_a_time(mode: Mode, conditioned: bool, budgets: list[int]):
    net = make_layered_net(mode, conditioned=conditioned)
    x, c_noise, cond = inputs(len(budgets))
    mixed = net(x, c_noise, cond, torch.tensor(budgets))
    torch.testing.assert_close(mixed, forward_one_by_one(net, x, c_noise, cond, budgets), atol=1e-6, rtol=1e-5)
    gradients = [
        torch.autograd.grad(y.square().sum(), list(net.parameters()), allow_unused=True)
        for y in (mixed, forward_one_by_one(net, x, c_noise, cond, budgets))
    ]
    for name, a, b in zip(dict(net.named_parameters()), *gradients, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_fresh_conversion_is_the_teacher_bit_for_bit(conditioned: bool):
    teacher = tiny_dit(depth=DEPTH)
    budget = LayerBudget.from_distribution(NOISES[0], PrestoLBudget(), depth=DEPTH, conditioned=conditioned)
    net, (x, c_noise, cond) = teacher.with_budget(budget), inputs(6)
    for full in (None, DEPTH, torch.full((6,), DEPTH)):
        assert torch.equal(net(x, c_noise, cond, full), teacher(x, c_noise, cond))
    # without training, a smaller budget is the teacher with blocks skipped
    assert torch.equal(net(x, c_noise, cond, 3), teacher(x, c_noise, cond, 3))
    assert not torch.allclose(net(x, c_noise, cond, 3), teacher(x, c_noise, cond), atol=1e-3)


def test_the_output_depends_on_the_budget_embedding():
    net, (x, c_noise, cond) = make_layered_net(), inputs(3)
    before = net(x, c_noise, cond, 2)
    with torch.no_grad():
        net.budget.weight[1] += 1
    assert not torch.allclose(net(x, c_noise, cond, 2), before, atol=1e-3)
    assert torch.equal(net(x, c_noise, cond), make_layered_net()(x, c_noise, cond))


@pytest.mark.parametrize("mode", ["presto", "ase"])
@pytest.mark.parametrize("budgets", [3, [1, 3, 3], [2, 4]])
def test_gradients_reach_the_blocks_that_ran_and_only_those(mode: Mode, budgets: int | list[int]):
    net = make_layered_net(mode)
    several = [budgets] if isinstance(budgets, int) else budgets
    x, c_noise, cond = inputs(3 if isinstance(budgets, int) else len(budgets))
    net(x, c_noise, cond, budgets if isinstance(budgets, int) else torch.tensor(budgets)).square().sum().backward()
    ran = set(itertools.chain(*(select_blocks(b, DEPTH, mode) for b in several)))
    for index, block in enumerate(net.blocks):
        reached = [p.grad is not None and bool(p.grad.any()) for p in block.parameters()]
        assert all(reached) if index in ran else not any(reached), index
    assert [bool(row.any()) for row in net.budget.weight.grad] == [b in several for b in range(1, DEPTH + 1)]


# --- what it costs


def flops(call) -> int:
    # the counter does not support the fused CPU kernel of attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", ["presto", "ase"])
def test_flops_fall_in_proportion_to_dropped_blocks(mode: Mode):
    """Forward, and forward with backward: a fixed part plus a constant per block that runs."""
    net, (x, c_noise, cond) = make_layered_net(mode), inputs(4)

    def run_backward(budget) -> None:
        net(x, c_noise, cond, budget).sum().backward()

    for call in (partial(net, x, c_noise, cond), run_backward):
        counts = [flops(partial(call, b)) for b in range(1, DEPTH + 1)]
        a_block = counts[1] - counts[0]
        assert a_block > 0
        assert [b - a for a, b in zip(counts, counts[1:])] == [a_block] * (DEPTH - 1)
        mixed = flops(partial(call, torch.tensor([1, 5, 2, 4])))
        assert mixed == sum(counts[b - 1] for b in (1, 5, 2, 4)) / 4


# --- checkpointing, autocast, compile


def test_under_activation_checkpointing():
    net, (x, c_noise, cond), budgets = make_layered_net(), inputs(4), torch.tensor([2, 5, 1, 3])
    net(x, c_noise, cond, budgets).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    apply_activation_checkpointing(net, check_fn=lambda m: isinstance(m, Block))
    net(x, c_noise, cond, budgets).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name.replace("_checkpoint_wrapped_module.", "")], msg=name)


def test_under_autocast():
    net, (x, c_noise, cond), budgets = make_layered_net(), inputs(4), torch.tensor([2, 5, 1, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(x, c_noise, cond, budgets)
    mixed.float().sum().backward()
    torch.testing.assert_close(mixed.float(), net(x, c_noise, cond, budgets), atol=0.15, rtol=0.1)


def test_one_graph_a_budget_under_compile():
    net, (x, c_noise, cond) = make_layered_net().requires_grad_(False), inputs(2)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)  # a graph break would raise
    for budget in (2, 5, 3, 2, 5):
        torch.testing.assert_close(compiled(x, c_noise, cond, budget), net(x, c_noise, cond, budget))
    assert len(graphs) == 3
