"""distill-layers, and distill-steps from its artifacts: lineage, the table that travels along, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from pipelines.evaluate.latency import measure_hidden_variance
from pipelines.evaluate.systems import EvaluatedSystem, list_compared_systems
from pipelines.inference.model import Model, open_model, sample_generator, sample_teacher
from pipelines.registry.compatibility import check_comparable, check_layers_match_teacher, distillation_method
from pipelines.stages import distill_layers, distill_steps, train_teacher
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.loader import load_config
from presto_core.config.noise import KarrasNoise, LogNormalNoise
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.config.schema import LayersStage
from presto_core.errors import UserError
from presto_core.metrics.block_activity import record_block_activity
from tests.pipelines.test_training_stages import steps_config, teacher_config, weights_of
from tests.support.synthetic_dataset import make_dataset

DEEP = {"network.depth": 4}


def layers_config(root: str, dataset: str, teacher: str, **overrides: object) -> LayersStage:
    keys: dict[str, object] = {
        "layers.steps": 6,
        "layers.global_batch_size": 4,
        "loop.log_every": 2,
        "cluster.num_workers": 0,
    }
    keys |= {"storage.root": root, "inputs.dataset": dataset, "inputs.teacher": teacher}
    return load_config(LayersStage, None, keys | overrides)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(str(tmp_path_factory.mktemp("data"))).uri


@pytest.fixture(scope="module")
def trained(dataset: str, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The teacher of all tests here, trained once."""
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(mlflow_database, folder)}")
        return train_teacher.run(teacher_config("store", dataset, **DEEP))


@pytest.fixture
def teacher(workdir: Path, trained: Artifact) -> Artifact:
    """The teacher in the test's own store."""
    shutil.copytree(Path(trained.uri).parents[1], "store")
    return read_artifact(artifact_folder(open_folder(str(workdir / "store")), trained.id))


def draw_samples(model: Model, steps: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    noise = model.draw_noise(2, generator=rng)
    if model.artifact.kind == "generator":
        return sample_generator(model, noise, None, steps=steps, schedule=ScheduleConfig(), generator=rng)
    return sample_teacher(model, noise, None, sampler=BaseSampler(steps=steps), schedule=ScheduleConfig())


def test_teacher_to_layers_to_both_with_lineage_and_tables(dataset: str, teacher: Artifact):
    layers = distill_layers.run(layers_config("store", dataset, teacher.id))
    single = distill_steps.run(steps_config("store", dataset, teacher.id))
    both = distill_steps.run(steps_config("store", dataset, teacher.id, **{"inputs.layers": layers.id}))
    base = {"dataset": "0" * 16, "teacher": teacher.id}
    assert layers.manifest["parents"] == single.manifest["parents"] == base
    assert both.manifest["parents"] == base | {"layers": layers.id}
    assert [distillation_method(a) for a in (teacher, layers, single, both)] == ["base", "L", "S", "LS"]

    # L over the noise it was trained with, LS over that of its generator's inputs: each by its default table
    assert layers.manifest["model"]["layer_budget"]["distribution"] == LogNormalNoise(mean=-0.4, std=1.0).to_config()
    assert (
        both.manifest["model"]["layer_budget"]["distribution"]
        == KarrasNoise(sigma_min=0.002, sigma_max=80.0, rho=7.0).to_config()
    )
    assert layers.manifest["model"]["layer_budget"]["kept"] == [2, 2, 3, 3, 4]
    assert both.manifest["model"]["layer_budget"]["kept"] == [2, 3, 3, 4, 4]
    assert single.manifest["model"]["layer_budget"] is None


def test_a_loaded_model_runs_the_blocks_of_its_table(dataset: str, teacher: Artifact):
    layers = distill_layers.run(layers_config("store", dataset, teacher.id))
    both = distill_steps.run(steps_config("store", dataset, teacher.id, **{"inputs.layers": layers.id}))
    for artifact in (layers, both):
        model = open_model(artifact.uri)
        with record_block_activity(model.network.blocks) as record:
            draw_samples(model)
        budget = model.card.budget
        assert budget is not None
        levels = [80.0, 17.5, 2.5, 0.17] if artifact.kind == "generator" else [80.0, 9.7, 0.43, 0.002]
        assert record.runs == 2 * sum(budget.blocks_at(s) for s in levels) < 2 * 4 * 4


def test_skipping_without_distillation_is_an_ablation_too(dataset: str, teacher: Artifact):
    dropped = distill_steps.run(steps_config("store", dataset, teacher.id, **{"steps.budget.kind": "presto_ls"}))
    assert distillation_method(dropped) == "S-drop"
    assert "layers" not in dropped.manifest["parents"]
    assert draw_samples(open_model(dropped.uri)).isfinite().all()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
@pytest.mark.parametrize("mode", ["presto", "ase"])
def test_two_workers_distil_layers_though_blocks_are_left_out(shared_ray, dataset: str, mode: str, teacher: Artifact):
    """Budgets below the depth on both workers: gradients of skipped blocks are missing, and nobody waits for them."""
    two = {"cluster.num_workers": 2, "cluster.cpus_per_worker": 0.7}
    table = {"layers.mode": mode, "layers.budget": {"kind": "table", "kept": [1, 2]}}
    layers = distill_layers.run(layers_config("store", dataset, teacher.id, **two, **table))
    assert weights_of(layers) != weights_of(teacher)
    before, after = (open_model(a.uri).network.blocks for a in (teacher, layers))
    untouched = [all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters())) for a, b in zip(before, after)]
    assert untouched == ([False, True, True, False] if mode == "presto" else [False, False, True, True])
    steps = two | {"inputs.layers": layers.id, "steps.budget": {"kind": "uniform", "kept": 2}}
    both = distill_steps.run(steps_config("store", dataset, teacher.id, **steps))
    assert both.manifest["training"] == {"generator_step": 2, "total_step": 12}


# --- refused before any compute


def test_layers_of_another_base_are_refused(dataset: str, teacher: Artifact):
    layers = distill_layers.run(layers_config("store", dataset, teacher.id))
    other = train_teacher.run(teacher_config("store", dataset, seed=1, **DEEP))
    with pytest.raises(UserError, match=f"{layers.id}.*{teacher.id}.*{other.id}.*inputs.teacher={teacher.id}"):
        distill_steps.run(steps_config("store", dataset, other.id, **{"inputs.layers": layers.id}))


def test_something_else_than_layers_is_refused(dataset: str, teacher: Artifact):
    with pytest.raises(UserError, match=f"inputs.layers={re.escape(teacher.uri)} .*presto distill-layers"):
        distill_steps.run(steps_config("store", dataset, teacher.id, **{"inputs.layers": teacher.id}))


def test_layers_without_a_table_are_refused(dataset: str, teacher: Artifact):
    layers = distill_layers.run(layers_config("store", dataset, teacher.id))
    tables: list[object] = [None, {}, {"edges": []}, {"kept": [1, 4], "edges": [], "distribution": {}}]
    for table in tables:
        manifest = json.loads(json.dumps(layers.manifest))
        manifest["model"]["layer_budget"] = table
        with pytest.raises(UserError, match=f"{layers.id} .*presto distill-layers"):
            check_layers_match_teacher(replace(layers, manifest=manifest), teacher)


@pytest.mark.parametrize("kept", [5, 9])
def test_a_table_that_does_not_fit_is_refused_by_both_stages(dataset: str, teacher: Artifact, kept: int):
    budget = {"kind": "uniform", "kept": kept}
    message = f"runs {kept} blocks and the network has 4"
    with pytest.raises(UserError, match=message):
        distill_layers.run(layers_config("store", dataset, teacher.id, **{"layers.budget": budget}))
    with pytest.raises(UserError, match=message):
        distill_steps.run(steps_config("store", dataset, teacher.id, **{"steps.budget": budget}))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"kind": "uniform", "kept": 0}, r"layers\.budget\.kept=0: input should be greater than or equal to 1"),
        ({"kind": "table", "kept": [4, 0]}, r"layers\.budget\.kept\.1=0: input should be greater than or equal to 1"),
        ({"kind": "table", "kept": [4, 2]}, r"kept=\[4, 2\] must not decrease"),
        ({"kind": "presto"}, r"layers\.budget: kind must be one of 'presto_l'"),
    ],
)
def test_a_table_that_makes_no_sense_is_one_message(budget: dict[str, object], message: str):
    with pytest.raises(UserError, match=message) as caught:
        load_config(LayersStage, None, {"layers.budget": budget})
    assert "\n" not in str(caught.value)


def test_a_model_of_other_latents_is_not_evaluated_beside_this_teacher(dataset: str, workdir: Path, teacher: Artifact):
    other = make_dataset(str(workdir / "other"), shard_rows=(11,)).uri
    foreign = train_teacher.run(teacher_config("elsewhere", other, **DEEP, seed=1))  # toy data sets share an id
    layers = distill_layers.run(layers_config("store", dataset, teacher.id))
    with pytest.raises(UserError, match=f"{layers.id} .*{foreign.id} .*inputs.teacher={teacher.id}"):
        check_comparable({"generator": layers}, foreign)
    with pytest.raises(UserError, match=rf"{re.escape(foreign.uri)} .*inputs\.compared"):
        check_comparable({"compared_0": foreign}, teacher)


# --- what an evaluation makes of them


def test_every_model_has_its_rows_and_a_name_of_its_own(dataset: str, teacher: Artifact):
    layers = distill_layers.run(layers_config("store", dataset, teacher.id))
    again = distill_layers.run(layers_config("store", dataset, teacher.id, seed=1))
    student = distill_steps.run(steps_config("store", dataset, teacher.id))
    limited = BaseSampler(steps=8, guidance_scale=2, guidance_interval=(0.3, 5), guidance_rescale=0.7)
    config = EvaluateConfig(
        base=(BaseSampler(), limited), layers=(BaseSampler(sampler="euler", steps=8),), student_steps=(1, 4)
    )
    models = {"teacher": teacher, "generator": student, "compared_0": layers, "compared_1": again}
    systems = list_compared_systems(config, models)
    restrained = "teacher dpmpp_2m 8 w=2 at 0.3-5 rescale 0.7"
    names = ["teacher dpmpp_2m 40", restrained, f"L {layers.id[:6]} euler 8", f"L {again.id[:6]} euler 8", "S 1", "S 4"]
    assert [s.name for s in systems] == names
    assert systems[1].nfe == 10  # two of the eight levels are guided
    assert [EvaluatedSystem.from_json(json.dumps(asdict(s))) for s in systems] == systems
    assert [s.model for s in systems] == ["teacher", "teacher", "compared_0", "compared_1", "generator", "generator"]
    assert [s.role for s in systems] == ["teacher", "teacher", "layers", "layers", "generator", "generator"]


def test_activations_are_measured_where_blocks_run(dataset: str, teacher: Artifact):
    layers = distill_layers.run(layers_config("store", dataset, teacher.id, **{"layers.mode": "ase"}))
    models = {"teacher": open_model(teacher.uri), "compared_0": open_model(layers.uri)}
    found = measure_hidden_variance(models, {"teacher": "teacher", "compared_0": "ASE"}, dataset)
    assert all(list(line["variance"]) == ["0", "1", "2", "3"] for line in found["teacher"])
    ran = [len(line["variance"]) for line in found["ASE"]]  # from low noise to high
    assert ran == sorted(ran, reverse=True)
    assert (ran[0], ran[-1]) == (4, 2)
    assert all(v > 0 for line in found["ASE"] for v in line["variance"].values())


@pytest.mark.parametrize("role", ["teacher", "dataset"])
def test_an_empty_input_is_refused(dataset: str, role: str):
    with pytest.raises(
        UserError, match=f"inputs.{role} is empty; give a registry name such as presto-{role}@candidate"
    ):
        distill_layers.run(layers_config("store", dataset, "t", **{f"inputs.{role}": ""}))
