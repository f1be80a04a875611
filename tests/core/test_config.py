"""Configuration: precedence, suggestions, run ids, and a start without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.presets.resolve import PRESETS
from presto_core.config.loader import ConfigError, flatten, list_presets, load_config, to_yaml
from presto_core.config.noise import KarrasNoise, LogNormalNoise, MixtureNoise
from presto_core.config.schema import (
    CorpusStage,
    EvaluateStage,
    IngestStage,
    LayersStage,
    StepsStage,
    TeacherStage,
    stage_configs,
)


def preset(tmp_path: Path, **content: object) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_override_beats_preset_beats_default(tmp_path: Path):
    path = preset(tmp_path, teacher={"steps": 7, "ema_decay": 0.5})
    config = load_config(TeacherStage, path, ["teacher.steps=9"])
    assert (config.teacher.steps, config.teacher.ema_decay, config.teacher.caption_dropout) == (9, 0.5, 0.1)


def test_preset_extends_another(tmp_path: Path):
    base = preset(tmp_path, teacher={"steps": 7, "ema_decay": 0.5})
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"extends": str(base), "teacher": {"steps": 8}}))
    config = load_config(TeacherStage, child)
    assert (config.teacher.steps, config.teacher.ema_decay) == (8, 0.5)


def test_the_former_share_that_ingest_held_out_is_halved(tmp_path: Path):
    for config in (
        load_config(IngestStage, None, ["ingest.held_out_fraction=0.3"]),
        load_config(IngestStage, preset(tmp_path, ingest={"held_out_fraction": 0.3})),
    ):
        assert (config.ingest.validation_fraction, config.ingest.test_fraction) == (0.15, 0.15)
        again = load_config(IngestStage, None, ["ingest.validation_fraction=0.15", "ingest.test_fraction=0.15"])
        assert config.run_id() == again.run_id() != IngestStage().run_id()
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(config))
    assert load_config(IngestStage, path) == config


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        (IngestStage, ["ingest.held_out_fraction=0.3", "ingest.test_fraction=0.2"], "test_fraction=0.2 is given too"),
        (IngestStage, ["ingest.held_out_fraction=1"], "leave nothing to train on"),
        (IngestStage, ["ingest.held_out_fraction=2"], "ingest.held_out_fraction=2"),
        (IngestStage, ["ingest.held_out_fraction=half"], "ingest.held_out_fraction='half'"),
        (IngestStage, ["ingest.test_fraction=0.6", "ingest.validation_fraction=0.4"], "lower them to a sum below 1"),
        (CorpusStage, ["corpus.held_out_fraction=0.1"], "has become validation_tracks and test_tracks"),
        (CorpusStage, ["corpus.test_tracks=-1"], "corpus.test_tracks=-1"),
    ],
)
def test_impossible_splits_are_refused_by_name(stage: type[IngestStage], overrides: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(stage, None, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_kind_starts_its_section_afresh():
    config = load_config(StepsStage, None, ["steps.p_dmd.std=2", "steps.p_dmd.kind=karras", "steps.p_dmd.rho=3"])
    assert config.steps.p_dmd == KarrasNoise(rho=3)
    assert config.steps.p_dsm == LogNormalNoise()


def test_values_are_yaml():
    text = "steps.p_gan={kind: mixture, components: [{kind: karras}, {kind: lognormal, std: 2}], weights: [1, 2]}"
    config = load_config(StepsStage, None, [text, "steps.generator_optim.learning_rate=3e-5", "steps.gan.taps=[1, 2]"])
    assert config.steps.p_gan == MixtureNoise(components=(KarrasNoise(), LogNormalNoise(std=2)), weights=(1, 2))
    assert config.steps.generator_optim.learning_rate == 3e-5
    assert config.steps.gan.taps == (1, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps.generatr_optim.learning_rate=1", "did you mean 'steps.generator_optim'?"),
        ("steps.gan.wieght_mode=absolute", "did you mean 'steps.gan.weight_mode'?"),
        ("steps.p_dmd.rho=3", "unknown config key 'steps.p_dmd.rho'; known: kind, mean, std"),
        ("stps.seed=1", "did you mean 'steps'?"),
        ("network.dim=3", "belongs to train-teacher"),
        ("steps.p_dmd.kind=gauss", "'karras'"),
        ("steps.ema_decay=1.5", "steps.ema_decay=1.5: input should be less than or equal to 1"),
        (
            "inputs.compared=candidate-ls",
            "inputs.compared='candidate-ls' must be a list; write inputs.compared=[candidate-ls]",
        ),
        ("steps.generator_updates=many", "steps.generator_updates='many'"),
        ("steps", "must have the form dotted.key=value"),
        ("steps.gan.taps=[1", "is not valid YAML"),
        ("steps.p_gen={kind: karras, sigma_min: 5, sigma_max: 1}", "sigma_min=5.0 must be below sigma_max=1.0"),
        ("steps.p_gen={kind: mixture, weights: [1]}", "2 components, 1 weights"),
        (
            "cluster.num_workers=3",
            "steps.global_batch_size=16 must be a multiple of cluster.num_workers=3, as it is of 1",
        ),
        ("cluster.num_workers=two", "cluster.num_workers: must be auto or a whole number, at least 0, not 'two'"),
        ("cluster.num_workers=-1", "must be auto or a whole number, at least 0"),
        ("cluster.min_workers=2", "min_workers=2 needs a number as num_workers, not auto"),
        ("cluster={num_workers: 1, min_workers: 2}", "min_workers=2 must not be above num_workers=1"),
        ("cluster.parallel.offload_real_score=true", "offload_real_score=true needs real_score=shard"),
    ],
)
def test_every_mistake_gives_a_one_line_error_with_a_fix(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(StepsStage, None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("dmeo", "did you mean 'demo'?"), ("zzz", "known presets: ablations/"), ("/no/file.yaml", "")]
)
def test_unknown_preset_is_refused_with_a_suggestion(name: str, message: str):
    with pytest.raises(ConfigError, match="unknown preset") as caught:
        load_config(StepsStage, name, preset_folder=PRESETS)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "a: [unclosed", "just words"])
def test_preset_that_is_no_preset_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(StepsStage, path)


def test_run_id_follows_the_result_and_not_the_location():
    plain = load_config(TeacherStage).run_id({"dataset": "a"})
    elsewhere = ["cluster.num_workers=2", "storage.root=s3://b", "loop.log_every=3", "tracking.experiment=x"]
    assert load_config(TeacherStage, None, elsewhere).run_id({"dataset": "a"}) == plain
    assert load_config(TeacherStage, None, ["inputs.dataset=other"]).run_id({"dataset": "a"}) == plain
    assert load_config(TeacherStage, None, ["seed=1"]).run_id({"dataset": "a"}) != plain
    assert load_config(TeacherStage).run_id({"dataset": "b"}) != plain


def test_settings_that_came_later_leave_earlier_run_ids_as_they_were():
    parents = {"dataset": "a", "teacher": "b"}  # ids of commit 6d8fb16
    assert load_config(TeacherStage).run_id({"dataset": "a"}) == "57ce1f3477a91563"
    assert load_config(LayersStage).run_id(parents) == "37fc13a4df1f06ff"
    assert load_config(TeacherStage, None, ["teacher.attribute_dropout=0.1"]).run_id() != TeacherStage().run_id()
    assert load_config(TeacherStage, None, ["network.spectrum_bins=8"]).run_id() != TeacherStage().run_id()


def test_micro_batches_are_derived_and_do_not_change_the_run_id():
    config = load_config(TeacherStage, None, ["cluster.num_workers=2", "loop.micro_batch_size=6"])
    assert config.derive_values()["batch_size_per_worker"] == 16
    assert config.derive_values()["gradient_accumulation_steps"] == 3
    assert config.run_id() == load_config(TeacherStage).run_id()


def test_elastic_groups_keep_the_global_batch():
    keys = ["teacher.global_batch_size=24", "cluster.num_workers=8", "cluster.min_workers=3", "loop.micro_batch_size=4"]
    assert load_config(TeacherStage, None, keys).derive_values()["by_number_of_workers"] == {
        3: "8 per worker, accumulated in 2",
        4: "6 per worker, accumulated in 2",
        6: "4 per worker, accumulated in 1",
        8: "3 per worker, accumulated in 1",
    }
    with pytest.raises(ConfigError, match=r"=24 must be a multiple of cluster\.min_workers=5, as it is of 1, 2, 3, 4"):
        load_config(TeacherStage, None, [*keys, "cluster.min_workers=5"])


@pytest.mark.parametrize("stage", stage_configs())
def test_printed_yaml_reproduces_the_configuration(stage: str, tmp_path: Path):
    config = load_config(stage_configs()[stage], "demo", preset_folder=PRESETS)
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(config))
    assert load_config(stage_configs()[stage], path) == config


@pytest.mark.parametrize("stage", stage_configs())
@pytest.mark.parametrize("name", list_presets(PRESETS))
def test_every_preset_is_valid_for_every_stage(stage: str, name: str):
    load_config(stage_configs()[stage], name, preset_folder=PRESETS)


def test_dotted_names_are_the_override_keys():
    flat = flatten(load_config(StepsStage).model_dump(mode="json"))
    assert flat["steps.p_gen.rho"] == 7.0
    overrides = {k: v for k, v in flat.items() if v is not None}
    assert load_config(StepsStage, None, overrides) == load_config(StepsStage)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "[{guidance_scale: 2, guidance_interval: [5, 0.3]}]",
            "evaluate.base.0: guidance_interval=[5, 0.3] must rise: lowest noise level first",
        ),
        ("[]", "evaluate.base=[]: tuple should have at least 1 item after validation, not 0"),
    ],
)
def test_a_list_with_a_wrong_entry_is_not_also_called_too_short(value: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(EvaluateStage, None, [f"evaluate.base={value}"])
    assert str(caught.value) == message


def test_dry_run_imports_neither_torch_nor_ray_nor_mlflow():
    script = (
        "import sys; from infra.cli import main as cli; sys.argv = ['presto', 'distill-steps', 'demo', '--dry-run']\n"
        "try: cli.main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "print('HEAVY', sorted({'torch', 'ray', 'mlflow', 'boto3', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert "total_steps" in done.stdout
    assert "p_dmd:" in done.stdout
