"""How `presto demo` distributes settings over its stages."""

from __future__ import annotations

import pytest

from pipelines.presets.resolve import PRESETS
from pipelines.workflows.demo import DEMO_FLOW, describe_node, load_flow_configs
from presto_core.config.loader import ConfigError, read_preset
from presto_core.config.schema import EvaluateStage, IngestStage, StepsStage


def ingest_source(*overrides: str) -> str:
    ingest = load_flow_configs("demo", list(overrides))["ingest"]
    assert isinstance(ingest, IngestStage)
    (source,) = ingest.ingest.source
    return source


def test_ingest_reads_the_corpus_that_was_built_by_default():
    assert ingest_source() == ".presto/corpus"
    assert ingest_source("corpus.folder=elsewhere") == "elsewhere"
    assert ingest_source("corpus.folder=elsewhere", "ingest.source=/music") == "/music"


def test_an_override_reaches_every_stage_that_has_its_section():
    configs = load_flow_configs("demo", ["seed=5", "steps.generator_updates=7", "cluster.num_workers=1"])
    steps, evaluate = configs["S"], configs["evaluate"]
    assert isinstance(steps, StepsStage)
    assert isinstance(evaluate, EvaluateStage)
    assert steps.steps.generator_updates == 7
    assert {config.seed for config in configs.values()} == {5}
    assert {config.cluster.num_workers for config in configs.values()} == {1}


def test_an_override_that_fits_no_stage_is_refused():
    with pytest.raises(ConfigError, match=r"'steps\.p_dmd"):
        load_flow_configs("demo", ["steps.p_dmdd.kind=karras"])


def test_every_node_reads_artifacts_of_earlier_nodes():
    before: set[str] = set()
    for name, step in DEMO_FLOW.items():
        assert {*step.inputs.values(), *step.compared} <= before, name
        before.add(name)


def test_the_baseline_differs_from_presto_l_only_in_its_defining_settings():
    configs = load_flow_configs("demo", ["layers.steps=7"])
    ours, baseline = (configs[name].model_dump()["layers"] for name in ("L", "ASE"))
    different = {key: (ours[key], baseline[key]) for key in ours if ours[key] != baseline[key]}
    assert different == {
        "mode": ("presto", "ase"),
        "budget_conditioning": (True, False),
        "self_teacher_weight": (ours["self_teacher_weight"], 0.0),
    }
    assert ours["steps"] == 7


def test_the_baselines_preset_is_the_flows_baseline():
    preset = read_preset("ablations/ase", PRESETS)["layers"]
    settings = load_flow_configs("demo", [])["ASE"].model_dump()["layers"]
    assert preset == {key: settings[key] for key in preset}


def test_a_dry_run_shows_the_inputs_of_each_node():
    assert describe_node("LS") == "## LS, made from dataset ingest, teacher teacher, layers L"
    assert describe_node("evaluate").endswith("compared ASE, compared L, compared S, compared LS")
    assert describe_node("evaluate", ("S", "evaluate")).endswith("teacher teacher, compared S")
