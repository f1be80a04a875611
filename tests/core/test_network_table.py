"""A new network class is one file and one row of the table: it trains, distils, is stored and costed as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipelines.train.step_flops import row_flops
from presto_core.artifacts.manifest import commit_artifact, read_artifact
from presto_core.config.layers import TableBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import LogNormalNoise
from presto_core.config.schema import LayersStage, StepsStage, TeacherStage
from presto_core.config.section import Count, Section
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget, EDMDenoiser
from presto_core.errors import UserError
from presto_core.models.model_card import ModelCard, load_model, serialize_network
from presto_core.networks.flops import LatentShape
from presto_core.networks.layer_budget import LayerBudget, check_budgets, list_budgets, select_blocks
from presto_core.networks.network import Network
from presto_core.networks.table import NETWORKS, NetworkKind, find_network_kind, kind_of, network_depth
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.state import make_step_rng
from presto_core.training.step_distillation import Phase, StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.core.test_layer_budget import flops
from tests.core.test_training import are_equal, local_folder, weights
from tests.support.toy_networks import TEXT_DIM, TOKENS, batches, conditions

CHANNELS, FRAMES, WIDTH, DEPTH = 4, 8, 6, 2
SETTINGS = {"kind": "linear", "width": WIDTH, "depth": DEPTH}


# --- the file


class LinearConfig(Section):
    kind: Literal["linear"] = "linear"
    width: Count = 6
    depth: Count = 2


class LinearBlock(nn.Module):
    """hidden + W silu(hidden + vector), frame by frame."""

    checkpointing = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, hidden, vector, use_reentrant=False)
        return self._forward(hidden, vector)

    def _forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        return hidden + self.mix(nn.functional.silu(hidden + vector[:, None]))


class LinearNetwork(Network):
    """Blocks that are linear over channels; noise level, caption and budget are added to each frame."""

    def __init__(self, config: LinearConfig, channels: int, text_dim: int, budget: LayerBudget | None) -> None:
        super().__init__()
        self.depth, self.width, self.run_empty_blocks = config.depth, config.width, False
        self.mode = budget.mode if budget else "presto"
        self.input, self.output = nn.Linear(channels, config.width), nn.Linear(config.width, channels)
        self.time, self.text = nn.Linear(1, config.width), nn.Linear(text_dim, config.width)
        self.budget = _make_budget_embedding(config.depth, config.width) if budget and budget.conditioned else None
        self.blocks = nn.ModuleList(LinearBlock(config.width) for _ in range(config.depth))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Conditioning | None,
        budget: Budget | None = None,
        *,
        taps: tuple[int, ...] | None = None,
        with_output: bool = False,
        with_hidden: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]] | tuple[Tensor, Tensor]:
        budgets = [budget or self.depth] * len(x) if budget is None or isinstance(budget, int) else list_budgets(budget)
        check_budgets(budgets, self.depth)
        vector = self.time(time[:, None])
        if cond is not None:
            vector = vector + self.text(cond.pooled) * cond.keep[:, None]
        if self.budget is not None:
            vector = vector + self.budget(torch.tensor(budgets, device=x.device) - 1)
        hidden, activations = self.input(x.transpose(1, 2)), []
        for index, block in enumerate(self.blocks[: max(taps) + 1] if taps and not with_output else self.blocks):
            runs = [row for row, count in enumerate(budgets) if index in select_blocks(count, self.depth, self.mode)]
            if runs:
                rows = torch.tensor(runs, device=x.device)
                hidden = hidden.index_copy(0, rows, block(hidden[rows], vector[rows]))
            activations.append(hidden.transpose(1, 2))
        tapped = [activations[index] for index in taps or ()]
        if taps and not with_output:
            return tapped
        raw = self.output(hidden).transpose(1, 2)
        if taps:
            return raw, tapped
        return (raw, hidden) if with_hidden else raw

    def with_budget(self, budget: LayerBudget) -> LinearNetwork:
        network = copy.deepcopy(self).requires_grad_(True)
        network.mode = budget.mode
        network.budget = _make_budget_embedding(self.depth, self.width) if budget.conditioned else None
        return network


def _make_budget_embedding(depth: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(depth, width)
    nn.init.zeros_(embedding.weight)
    return embedding


def count_block_flops(config: LinearConfig, shape: LatentShape) -> float:
    return 2.0 * shape.frames * config.width**2


def count_outer_flops(config: LinearConfig, shape: LatentShape) -> float:
    return 2.0 * config.width * (2 * shape.channels * shape.frames + 1 + shape.text_dim)


# --- the row

ROW = NetworkKind(LinearConfig, LinearNetwork, lambda c: c.depth, count_block_flops, count_outer_flops)


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "linear", ROW)


def make_card(budget: LayerBudget | None = None) -> ModelCard:
    return ModelCard(
        network=SETTINGS,
        channels=CHANNELS,
        frames=FRAMES,
        sigma_data=1.0,
        mean=[0.0] * CHANNELS,
        std=[1.0] * CHANNELS,
        codec={},
        text={"dim": TEXT_DIM, "max_tokens": TOKENS},
        layer_budget=budget.to_dict() if budget else None,
    )


def make_network(budget: LayerBudget | None = None) -> Network:
    torch.manual_seed(0)
    return make_card(budget).build_network()


def make_budget(*kept: int) -> LayerBudget:
    return LayerBudget.from_distribution(LogNormalNoise(), TableBudget(kept=kept), depth=DEPTH)


def update(algorithm: Any, step: int = 0) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = algorithm.update(next(batches()), generator=make_step_rng(0, total_step=step))
    algorithm.state.total_step += 1
    return metrics


def make_inputs(rows: int = 4) -> tuple[Tensor, Tensor, Conditioning]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(rows, CHANNELS, FRAMES, generator=rng), torch.linspace(-1, 1, rows), conditions(rows)


# --- what follows


def test_a_card_builds_the_class_that_its_kind_names():
    network = make_network()
    assert isinstance(network, LinearNetwork)
    assert (network.depth, network.width, len(network.blocks)) == (DEPTH, WIDTH, DEPTH)
    assert make_card().depth == network_depth(SETTINGS) == DEPTH
    assert find_network_kind(SETTINGS) is kind_of(LinearConfig()) is ROW


def test_a_kind_without_a_row_is_refused_by_its_name():
    with pytest.raises(UserError, match="'cubic'"):
        find_network_kind({"kind": "cubic"})


def test_a_teacher_update_moves_network_and_average():
    algorithm = TeacherTraining(load_config(TeacherStage).teacher, make_network(), sigma_data=1.0)
    before, average = weights(algorithm.state.networks["teacher"]), weights(algorithm.state.emas["teacher"].network)
    metrics = update(algorithm)
    assert metrics["dsm_loss"].isfinite().all()
    assert float(metrics["grad_norm"]) > 0
    assert not are_equal(before, weights(algorithm.state.networks["teacher"]))
    assert not are_equal(average, weights(algorithm.state.emas["teacher"].network))


def test_layer_distillation_runs_fewer_blocks_and_leaves_the_teacher_alone():
    teacher = make_network()
    before = weights(teacher)
    keys = {"layers.budget.kind": "table", "layers.budget.kept": [1, 2], "layers.self_teacher_weight": 0.5}
    algorithm = LayerDistillation(load_config(LayersStage, overrides=keys).layers, teacher, sigma_data=1.0)
    x, time, cond = make_inputs()
    full, copied = teacher(x, time, cond), algorithm.state.networks["layers"](x, time, cond, DEPTH)
    assert torch.equal(full, copied)  # at full depth the copy starts as the teacher
    metrics = update(algorithm)
    assert set(metrics["blocks_run"].tolist()) <= {1.0, 2.0}
    assert torch.equal(metrics["self_teacher_loss"] > 0, metrics["blocks_run"] < DEPTH)
    assert are_equal(before, weights(teacher))
    assert algorithm.state.networks["layers"].get_parameter("budget.weight").any()


def test_step_distillation_updates_critic_then_generator():
    keys = {"steps.fake_updates_per_generator_update": 1, "steps.gan.head_layers": 1, "steps.gan.head_channels": 4}
    config = load_config(StepsStage, overrides=keys).steps
    budget = make_budget(1, 2)
    algorithm = StepDistillation(
        config, make_network(), start=make_network().with_budget(budget), budget=budget, sigma_data=1.0
    )
    networks = algorithm.state.networks
    assert algorithm.phase is Phase.CRITIC
    before = {name: weights(network) for name, network in networks.items()}
    update(algorithm)
    assert {name for name, was in before.items() if not are_equal(was, weights(networks[name]))} == {
        "fake_score",
        "head",
    }
    assert algorithm.phase is Phase.GENERATOR
    before = {name: weights(network) for name, network in networks.items()}
    metrics = update(algorithm, step=1)
    assert {name for name, was in before.items() if not are_equal(was, weights(networks[name]))} == {"generator"}
    assert {"dmd_loss", "gan_loss", "gan_weight"} <= metrics.keys()


def test_activation_checkpointing_gives_the_same_gradients():
    x, time, cond = make_inputs()
    calls: list[int] = []

    def find_gradients(enabled: bool) -> list[Tensor]:
        network = make_network()
        network.set_activation_checkpointing(enabled)
        mix: Any = network.blocks[0].get_submodule("mix")
        mix.register_forward_pre_hook(lambda *_: calls.append(1))
        calls.clear()
        network(x, time, cond).square().mean().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    kept = find_gradients(enabled=False)
    assert len(calls) == 1
    recomputed = find_gradients(enabled=True)
    assert len(calls) == 2  # forward, and again in the backward pass
    assert len(kept) == len(list(make_network().parameters()))
    assert are_equal(kept, recomputed)


@pytest.mark.parametrize("budget", [None, make_budget(1, 2)], ids=["full", "layered"])
def test_a_committed_artifact_loads_the_same_network(budget: LayerBudget | None, tmp_path: Path):
    network, card, folder = make_network(budget), make_card(budget), local_folder(tmp_path)
    commit_artifact(
        folder,
        kind="teacher",
        artifact_id="x",
        config_yaml="",
        parents={},
        files=serialize_network(network),
        details={"model": card.to_dict()},
    )
    loaded, found = load_model(folder, read_artifact(folder).manifest)
    assert isinstance(loaded, LinearNetwork)
    assert (found.network, found.budget, loaded.training) == (SETTINGS, budget, False)
    x, _, cond = make_inputs()
    sigma = torch.tensor([0.01, 0.5, 3.0, 40.0])
    blocks = budget.blocks_per_sample(sigma) if budget else None
    with torch.no_grad():
        kept, again = (EDMDenoiser(net, 1.0)(x, sigma, cond, blocks) for net in (network, loaded))
    assert torch.equal(kept, again)


def test_row_flops_follow_from_the_two_functions_of_the_row():
    x, time, cond = make_inputs()
    config, shape = LinearConfig(), LatentShape(CHANNELS, FRAMES, TEXT_DIM, TOKENS)
    block, outer = ROW.block_flops(config, shape), ROW.outer_flops(config, shape)
    with torch.no_grad():
        assert flops(lambda: make_network()(x, time, cond)) == len(x) * (DEPTH * block + outer)
    card = make_card().to_dict()
    assert row_flops(load_config(TeacherStage), card) == 3 * (DEPTH * block + outer)
    keys = {"layers.budget.kind": "table", "layers.budget.kept": [1, 2]}
    trained, self_teacher = 3 * (1.5 * block + outer), 0.5 * DEPTH * block  # half the rows skip a block
    assert row_flops(load_config(LayersStage, overrides=keys), card) == pytest.approx(trained + self_teacher)
    assert row_flops(load_config(TeacherStage, overrides={"data.crop_frames": 4}), card) < 3 * (DEPTH * block + outer)
