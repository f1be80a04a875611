"""`presto explain` and `presto config`: every setting has a meaning, and what is printed is what a stage reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from infra.cli.explain import find_stage
from infra.cli.main import app
from infra.cli.setting_views import format_value
from pipelines.presets.resolve import PRESETS, load_stage_config
from pipelines.stages.table import STAGES
from presto_core.config.describe import REQUIRED, Setting, describe_settings
from presto_core.config.loader import ConfigError, list_presets, load_config
from presto_core.config.provenance import COMMAND_LINE, DEFAULT, DERIVED, load_and_trace
from presto_core.config.schema import LayersStage, StepsStage

COMMAND = typer.main.get_command(app)
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process and returns what it prints; its errors are raised."""

    def run_command(*args: str) -> str:
        COMMAND.main(list(args), standalone_mode=False)
        return capsys.readouterr().out

    return run_command


def by_key(stage: str) -> dict[str, Setting]:
    return {setting.key: setting for setting in describe_settings(STAGES[stage].config)}


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_has_a_meaning_a_type_and_a_default_or_is_required(stage: str):
    settings = describe_settings(STAGES[stage].config)
    assert len(settings) > 40
    lacking = [s.key for s in settings if not s.meaning.strip() or not s.type or "docstring" in s.meaning]
    assert not lacking
    for setting in settings:
        assert setting.is_section or setting.default is REQUIRED or json.dumps(setting.default) is not None
        assert not setting.choices or setting.default in (*setting.choices, None)


@pytest.mark.parametrize("stage", STAGES)
def test_no_setting_of_the_resolved_configuration_is_left_out(stage: str):
    config, settings = load_and_trace(STAGES[stage].config, "demo", [], preset_folder=PRESETS)
    shown = {setting.key for setting in settings}
    dumped = config.model_dump(mode="json")

    def check(tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if key not in shown:
                assert isinstance(value, dict), key
                check(value, f"{key}.")

    check(dumped, "")


def test_every_bound_that_is_enforced_is_in_the_range():
    """Pydantic's own JSON schema is the reference: a bound there has its number in our words."""
    bounds = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    checked = 0
    for stage in STAGES.values():
        schema = stage.config.model_json_schema()
        for setting in describe_settings(stage.config):
            if setting.kinds or "[]" in setting.key:
                continue
            node = schema
            for name in setting.key.split("."):
                ref = node.get("$ref") or next((o["$ref"] for o in node.get("allOf", []) if "$ref" in o), None)
                if ref:
                    node = schema["$defs"][ref.rpartition("/")[2]]
                node = node.get("properties", {}).get(name, {})
            members = [node, *node.get("anyOf", []), node.get("items", {})]
            limits = [m[b] for m in members for b in bounds if b in m]
            assert bool(limits) <= bool(setting.range), setting
            for limit in limits:
                numbers = [float(n) for n in re.findall(r"-?\d[\d.e+-]*", setting.range)]
                assert float(limit) in numbers, (setting, limit)
                checked += 1
    assert checked > 300


def test_alternatives_items_and_kinds_have_a_range():
    steps, generate, evaluate, promote = map(by_key, ("distill-steps", "generate", "evaluate", "registry"))
    assert generate["generate.seconds"].range == "above 0 and at most 3600"
    assert promote["promote.max_mmd"].range == "above 0"
    assert evaluate["evaluate.student_steps"].range == "each at least 1"
    assert evaluate["evaluate.base[].steps"].range == "at least 1"
    assert steps["steps.ema_decay"].range == "from 0 to 1"
    assert steps["steps.p_gen.num_steps"].kinds == ("grid",)
    assert set(steps["steps.p_gen.sigma_min"].kinds) == {"karras", "grid", "log_uniform"}


def test_a_default_is_that_of_the_stage_and_not_of_the_section_alone():
    assert by_key("train-teacher")["teacher.optim.learning_rate"].default == 1e-3
    assert by_key("distill-steps")["steps.fake_optim.learning_rate"].default == 3e-4
    assert by_key("generate")["inputs.generator"].default == ""
    kept = [s for s in describe_settings(LayersStage) if s.key == "layers.budget.kept"]
    assert {s.kinds for s in kept} == {("uniform",), ("table",)}
    assert all(s.default is REQUIRED for s in kept)


# --- presto config


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", ["demo", "sweeps/demo", None])
def test_what_config_shows_is_what_the_stage_resolves(stage: str, preset: str | None):
    args = [preset] if preset else []
    config = load_stage_config(stage, args)
    traced, settings = load_and_trace(STAGES[stage].config, preset, [], preset_folder=PRESETS)
    assert traced == config
    for setting in settings:
        value: Any = config.model_dump(mode="json")
        for name in setting.key.split("."):
            value = value[name]
        assert setting.value == value, setting.key


def test_config_prints_a_preset_or_rows_for_programs(run: Run):
    args = ("distill-steps", "demo", "steps.p_gen.rho=5")
    config = load_stage_config(args[0], list(args[1:]))
    assert yaml.safe_load(run("config", *args, "--yaml")) == config.model_dump(mode="json")
    rows = json.loads(run("config", *args, "--json"))
    assert rows["steps.p_gen.rho"] == {"value": 5.0, "default": 7.0, "source": COMMAND_LINE}


def test_each_value_has_the_layer_that_set_it():
    overrides = ["steps.p_gen.kind=grid", "steps.p_gen.num_steps=2", "submit.env.A=3", "steps.p_dmd={kind: karras}"]
    _, found = load_and_trace(StepsStage, "demo", overrides, preset_folder=PRESETS)
    rows = {row.key: row for row in found}
    assert rows["steps.p_gen.num_steps"].source == COMMAND_LINE
    assert rows["steps.p_gen.rho"].source == DEFAULT
    assert rows["submit.env"].source == COMMAND_LINE
    assert rows["steps.generator_updates"].source == "demo"
    assert rows["steps.ema_decay"].source == "from_scratch"  # which demo extends
    assert rows["steps.p_dmd.kind"].source == COMMAND_LINE
    assert rows["steps.p_dmd.sigma_max"].source == DEFAULT  # demo's lognormal is gone with its kind
    assert "steps.p_dmd.mean" not in rows
    assert "steps.p_gen.mean" not in rows
    assert (rows["steps.ema_decay"].value, rows["steps.ema_decay"].default) == (0.9, 0.98)


def test_a_value_that_follows_from_another_setting_is_derived(run: Run):
    shown = json.loads(run("config", "ingest", "ingest.held_out_fraction=0.3", "--json"))
    assert shown["ingest.test_fraction"] == {"value": 0.15, "default": 0.1, "source": DERIVED}


def test_config_refuses_what_the_stage_refuses(run: Run):
    for args in (["dmeo"], ["steps.x=1"], ["demo", "steps.ema_decay=2"], ["demo", "demo"]):
        with pytest.raises(ConfigError):
            run("config", "distill-steps", *args)
    with pytest.raises(ConfigError, match="'distill-steps'"):
        run("config", "destill-steps")


def test_a_stage_is_found_by_its_name_and_by_its_command():
    assert find_stage("corpus-build") is find_stage("corpus") is STAGES["corpus"]


# --- presto explain


def test_explain_shows_every_fact_of_a_setting(run: Run):
    text = run("explain", "steps.p_gen.kind")
    for fact in ("lognormal", "mixture", "karras", "presto distill-steps", "ablations/discrete_inputs"):
        assert fact in text
    facts = json.loads(run("explain", "steps.fake_updates_per_generator_update", "--json"))
    assert facts["settings"][0]["stages"] == ["distill-steps"]
    assert (facts["settings"][0]["default"], facts["settings"][0]["range"]) == (5, "at least 1")
    assert facts["presets"]["demo"] == facts["presets"]["presto_tiny"] == 2
    assert "paper" not in facts["presets"]


@pytest.mark.parametrize("args", [("demo",), ("--preset", "demo")])
def test_with_a_preset_explain_shows_its_value_alone(run: Run, args: tuple[str, ...]):
    text = run("explain", "layers.steps", *args)
    assert "60" in text
    assert "50000" not in text  # of the paper
    assert "demo" in run("explain", "layers.mode", *args)  # which leaves it at its default


def test_explain_of_a_section_lists_what_is_in_it(run: Run):
    text = run("explain", "layers")
    for name in ("budget_conditioning", "presto explain layers.optim"):
        assert name in text
    inner = json.loads(run("explain", "evaluate.base", "--json"))["inner"]
    names = ("sampler", "steps", "guidance_scale", "guidance_interval", "guidance_rescale")
    assert [s["key"] for s in inner] == [f"evaluate.base[].{n}" for n in names]
    assert all(name in run("explain") for name in ("steps", "promote", "submit", "seed"))


def test_where_stages_differ_each_of_them_is_shown(run: Run):
    facts = json.loads(run("explain", "name", "--json"))["settings"]
    assert [(f["default"], f["stages"]) for f in facts] == [
        ("presto-teacher", ["import-teacher", "train-teacher"]),
        ("presto-generator", ["distill-layers", "distill-steps"]),
    ]


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("steps.p_gn", "steps.p_gen"),
        ("generator_updates", "steps.generator_updates"),
        ("evaluate.num_sampels", "evaluate.num_samples"),
        ("crop_frame", "data.crop_frames"),
        ("distill-steps", "presto config distill-steps"),
        ("demo", "presto config STAGE demo"),
        ("zzzz", "presto explain"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(run: Run, key: str, suggestion: str):
    with pytest.raises(ConfigError, match=re.escape(suggestion)):
        run("explain", key)


def test_every_setting_can_be_explained_within_eighty_columns(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.terminal.ResultConsole.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    for key in ("steps", "steps.p_gen", "evaluate.base", "evaluate.folders", "sweep.domains", "cluster", ""):
        text = run("explain", *([key] if key else []), "demo") if key else run("explain")
        assert max(map(len, text.splitlines())) <= 80
    text = run("config", "evaluate", "demo")
    assert max(map(len, text.splitlines())) <= 80
    assert "evaluate.validation_samples" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "empty"), ("", "''"), (True, "true"), ([1, "a"], '[1, "a"]'), (REQUIRED, "required"), (5e-05, "5e-05")],
)
def test_values_are_shown_as_they_are_typed(value: object, text: str):
    assert format_value(value) == text


def test_a_shown_value_can_be_typed():
    _, settings = load_and_trace(STAGES["evaluate"].config, "demo", [], preset_folder=PRESETS)
    typed = [f"{s.key}={format_value(s.value)}" for s in settings if s.value is not None]
    again = load_config(STAGES["evaluate"].config, None, typed)
    assert again == load_stage_config("evaluate", ["demo"])


def test_presets_that_extend_each_other_are_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    assert list_presets(tmp_path) == ["a", "b"]
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(StepsStage, "a", preset_folder=tmp_path)
