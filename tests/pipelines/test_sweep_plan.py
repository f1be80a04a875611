"""The plan of a sweep: spaces that fit the schema, deterministic proposals, and one message per mistake."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import islice

import pytest

from pipelines.cluster.resources import TrialResources, check_fits, max_concurrent_trials
from pipelines.cluster.session import ClusterError
from pipelines.presets.resolve import PRESETS
from pipelines.sweep.plan import SweepPlan, make_plan, random_suggester
from presto_core.config.loader import list_presets, load_config
from presto_core.config.schema import StepsStage, stage_configs
from presto_core.config.sections import ClusterConfig
from presto_core.config.stage import TrainingStage
from tune_spaces import layers
from tune_spaces.domains import Choice, Conditional, Range, combinations, list_range_keys, sample
from tune_spaces.spaces import SPACES

SWEEPS = [name for name in list_presets(PRESETS) if name.startswith("sweeps/")]
TRAINING = {name: stage for name, stage in stage_configs().items() if issubclass(stage, TrainingStage)}
EVERY = "validation.every=5"


def plan(*args: str) -> SweepPlan:
    return make_plan(["demo", EVERY, *args])


@pytest.mark.parametrize("depth", [2, 28])
@pytest.mark.parametrize("name", SPACES)
def test_every_space_samples_valid_settings(name: str, depth: int):
    """A renamed field must break this test before it breaks a run."""
    rng, space = random.Random(0), SPACES[name](depth)
    assert space
    for _ in range(5):
        settings = sample(space, random_suggester(rng))
        for stage in TRAINING.values():
            mine = {k: v for k, v in settings.items() if k.partition(".")[0] in stage.model_fields}
            load_config(stage, "demo", mine, preset_folder=PRESETS)
    read = {key for stage in TRAINING.values() for key in space if key.partition(".")[0] in stage.model_fields}
    assert read == set(space)


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 8, 28])
def test_layer_budgets_keep_more_blocks_as_noise_falls(depth: int):
    tables = [budget["kept"] for budget in layers.list_budgets(depth)]
    assert len({tuple(table) for table in tables}) == len(tables)
    assert [depth] * layers.BINS in tables
    for table in tables:
        assert table == sorted(table)
        assert 1 <= table[0] <= table[-1] <= depth


@pytest.mark.parametrize("work", layers.FLOPS_FRACTIONS)
@pytest.mark.parametrize("tilt", layers.TILTS)
def test_layer_budgets_have_the_work_they_are_named_for(work: float, tilt: float):
    kept = layers.make_budget_table(28, flops_fraction=work, tilt=tilt)
    assert sum(kept) / len(kept) / 28 == pytest.approx(work, abs=0.5 / 28)


def test_parameters_exist_for_their_family_only():
    space = {"steps.p_dmd": Conditional({"lognormal": {"mean": Range(-1, 1)}, "karras": {"rho": Choice((3.0, 7.0))}})}
    drawn = [sample(space, random_suggester(random.Random(i))) for i in range(20)]
    kinds = {d["steps.p_dmd.kind"]: set(d) - {"steps.p_dmd.kind"} for d in drawn}
    assert kinds == {"lognormal": {"steps.p_dmd.mean"}, "karras": {"steps.p_dmd.rho"}}
    assert list_range_keys(space) == ["steps.p_dmd"]
    config = load_config(StepsStage, None, {"steps.p_dmd.kind": "karras", "steps.p_dmd.rho": 3.0})
    assert config.steps.p_dmd.model_dump()["rho"] == 3.0


def test_a_grid_holds_every_combination_once():
    space: dict[str, Choice | Conditional] = {
        "a": Choice((1, 2, 3)),
        "b": Conditional({"x": {"c": Choice((1, 2))}, "y": {}}),
    }
    found = [json.dumps(c) for c in combinations(space)]
    assert len(found) == len(set(found)) == 3 * 3


def test_the_papers_table_is_eight_runs_of_which_one_is_the_presets_own():
    proposals = list(plan("sweep.spaces=[paper]", "sweep.search=grid").iter_proposals())
    assert len(proposals) == len({p.run_id for p in proposals}) == 8
    assert proposals[0].settings == {}


def test_proposals_are_deterministic_and_more_samples_extend_them():
    few, many = (plan("sweep.spaces=[noise,losses]", f"sweep.samples={n}") for n in (5, 12))
    assert list(few.iter_proposals()) == list(islice(many.iter_proposals(), 5))
    assert len({p.run_id for p in many.iter_proposals()}) == 12
    assert few.id == many.id
    assert few.id != plan("sweep.spaces=[noise,losses]", "sweep.seed=1").id


def test_a_space_that_is_used_up_ends_the_search():
    proposals = list(plan('sweep.domains={"seed": [0, 1, 2]}', "sweep.samples=50").iter_proposals())
    assert [p.settings.get("seed", 0) for p in proposals[1:]] in ([1, 2], [2, 1])


def test_a_run_is_the_same_run_outside_the_sweep():
    """Its run_id equals that of the command with the same settings, so nothing is trained twice."""
    found = plan("sweep.spaces=[losses]")
    proposal = list(islice(found.iter_proposals(), 2))[1]
    alone = load_config(StepsStage, "demo", proposal.settings, preset_folder=PRESETS)
    assert alone.run_id() == proposal.run_id


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_preset_can_be_planned(name: str):
    found = make_plan([name])
    assert 1 < sum(1 for _ in found.iter_proposals()) <= found.num_trials


MISTAKES = [
    (["--space", "nosie"], "'nosie'"),
    (["--space", "noise", "validation.every=0"], "validation.every=0"),
    (["--space", "noise", "validation.every=500"], "validation.every=500"),
    (["--space", "noise", "sweep.grace=500"], "sweep.grace=500"),
    (["--space", "noise", "--samples", "0"], "sweep.samples=0"),
    (["--space", "noise", "--metric", "fdd"], "sweep.metrics=fdd"),
    (["--space", "noise", "--search", "grid"], "'steps.p_gen'"),
    (["--space", "noise", "--scheduler", "pbt"], "scheduler=pbt"),
    (["--space", "paper-layers"], "paper-layers"),
    ([], "distill-steps"),
    (['sweep.domains={"steps.gan.wieght_mode": [1]}'], "'steps.gan.weight_mode'"),
    (['sweep.domains={"steps.gan.kind": ["wgan"]}'], "steps.gan.kind='wgan'"),
    (['sweep.domains={"seed": []}'], "'seed'"),
    (['sweep.domains={"steps.ema_decay": {low: 1, high: 1}}'], "low=1"),
    (['sweep.domains={"loop.log_every": [1, 2]}'], "'loop.log_every'"),
    (['sweep.domains={"seed": [1]}', "cluster.cpus_per_worker=99", "cluster.cpus=2"], "cluster.cpus_per_worker"),
    (["--space", "noise", "cluster.gpus_per_worker=64"], "128 GPUs"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES)
def test_every_mistake_is_one_message_before_any_trial(args, message, empty, monkeypatch, capsys):
    from infra.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["presto", "sweep", "demo", "validation.every=5", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stderr = capsys.readouterr().err.strip()
    assert ended.value.code in (1, 2)
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert not (empty / ".presto").exists()


@pytest.mark.parametrize(
    ("cluster", "nodes", "at_once"),
    [
        (ClusterConfig(num_workers=0, cpus_per_worker=0.9), [{"CPU": 2}], 2),
        (ClusterConfig(num_workers=0, cpus_per_worker=1), [{"CPU": 2}], 1),
        (ClusterConfig(num_workers=2, cpus_per_worker=0.8), [{"CPU": 2}], 1),
        (ClusterConfig(num_workers=1, cpus_per_worker=3, gpus_per_worker=0.25), [{"CPU": 16, "GPU": 1}], 4),
    ],
)
def test_as_many_trials_run_as_fit(cluster: ClusterConfig, nodes, at_once: int):
    check_fits(TrialResources.from_cluster_config(cluster), nodes)
    assert max_concurrent_trials(TrialResources.from_cluster_config(cluster), nodes, limit=0) == at_once
    assert max_concurrent_trials(TrialResources.from_cluster_config(cluster), nodes, limit=1) == 1


def test_a_worker_that_fits_no_node_is_refused():
    needs = TrialResources.from_cluster_config(ClusterConfig(num_workers=2, gpus_per_worker=2))
    with pytest.raises(ClusterError, match=r"2 \(the largest: 1\).*cluster\.gpus_per_worker"):
        check_fits(needs, [{"CPU": 8, "GPU": 1}] * 4)


def test_dry_run_starts_without_torch_ray_or_optuna():
    script = (
        "import sys; from infra.cli import main as cli; sys.argv = ['presto', 'sweep', 'sweeps/demo', '--dry-run']\n"
        "try: cli.main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "print('HEAVY', sorted({'torch', 'ray', 'mlflow', 'optuna', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert "36 trials" in done.stdout
    assert "0: (the settings of the preset)" in done.stdout
