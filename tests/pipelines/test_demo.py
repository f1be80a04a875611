"""How the one-command flow spreads settings over its stages."""

from __future__ import annotations

import pytest

from pipelines.demo import stage_configs
from presto_core.config.loader import ConfigError
from presto_core.config.schema import EvaluateStage, IngestStage, StepsStage


def ingest_source(*overrides: str) -> str:
    ingest = stage_configs("demo", list(overrides))["ingest"]
    assert isinstance(ingest, IngestStage)
    return ingest.ingest.source


def test_ingest_reads_the_corpus_that_was_built_unless_told_otherwise():
    assert ingest_source() == ".presto/corpus"
    assert ingest_source("corpus.folder=elsewhere") == "elsewhere"
    assert ingest_source("corpus.folder=elsewhere", "ingest.source=/music") == "/music"


def test_an_override_reaches_every_stage_that_has_its_section():
    configs = stage_configs("demo", ["seed=5", "steps.generator_updates=7", "cluster.num_workers=1"])
    steps, evaluate = configs["distill-steps"], configs["evaluate"]
    assert isinstance(steps, StepsStage)
    assert isinstance(evaluate, EvaluateStage)
    assert steps.steps.generator_updates == 7
    assert {config.seed for config in configs.values()} == {5}
    assert {config.cluster.num_workers for config in configs.values()} == {1}


def test_an_override_that_fits_no_stage_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean 'steps\.p_dmd"):
        stage_configs("demo", ["steps.p_dmdd.kind=karras"])
