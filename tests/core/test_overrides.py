"""Values of overrides: a text setting takes its text as it is, and YAML is read only where a list or mapping is due."""

from __future__ import annotations

from typing import Any

import pytest

from presto_core.config.loader import ConfigError, load_config
from presto_core.config.overrides import parse_override, parse_value
from presto_core.config.schema import (
    CorpusStage,
    EvaluateStage,
    GenerateStage,
    IngestStage,
    StepsStage,
    SweepStage,
    TeacherStage,
)
from presto_core.config.stage import StageConfig

TRICKY = [
    "/m/Best of #1 hits", "/m/A: B", "[Live] 1999", "{x} y", "1234567890123456", "0123", "1e5", "12:30:45", "yes",
    "- a", "*star", "&amp", "!bang", "%TAG", "@at", "`tick`", "a, b", "'tis", 'say "hi"', "5 o'clock'", "2026-11-30",
    "null", "~/x", " spaced ", "key=value", "ピアノ 😀", "it's: [1", "#", "x #y", "C:\\new\\table", "''x'",
    "| a", "> b",
]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
@pytest.mark.parametrize(
    ("stage", "key"),
    [
        (GenerateStage, "inputs.generator"),
        (CorpusStage, "corpus.folder"),
        (TeacherStage, "name"),
        (TeacherStage, "storage.root"),
        (EvaluateStage, "evaluate.folders.theirs"),
        (TeacherStage, "submit.env.TITLE"),
    ],
)
def test_a_text_setting_takes_its_text_as_it_is(stage: type[StageConfig], key: str, text: str):
    assert parse_override(stage, f"{key}={text}") == (key, text)


@pytest.mark.parametrize("text", TRICKY)
def test_one_source_is_taken_as_it_is_and_a_list_of_sources_keeps_its_texts(text: str):
    assert load_config(IngestStage, None, [f"ingest.source={text}"]).ingest.source == (text,)


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("[/m/a, /m/b]", ["/m/a", "/m/b"]),
        ("['/m/A: B', \"/m/#1\"]", ["/m/A: B", "/m/#1"]),
        ("[1234567890123456, 0123, yes, 1.10]", ["1234567890123456", "0123", "yes", "1.10"]),
        ("- /m/a\n- /m/b\n", ["/m/a", "/m/b"]),
        ("[]", []),
        ("[Live] and [Loud]", "[Live] and [Loud]"),
        ("[A: B]", "[A: B]"),
        ("'[Live]'", "[Live]"),
    ],
)
def test_a_list_of_texts_is_yaml_whose_items_stay_texts(text: str, listed: Any):
    assert parse_value(IngestStage, "ingest.source", text) == listed


def test_a_text_quoted_as_a_whole_loses_its_quotes_and_an_empty_one_is_empty():
    assert load_config(EvaluateStage, None, ["inputs.generator=''"]).inputs.generator == ""
    assert load_config(EvaluateStage, None, ["inputs.generator="]).inputs.generator == ""
    assert load_config(IngestStage, None, ['ingest.licence="my own"']).ingest.licence == "my own"
    assert load_config(IngestStage, None, [r'ingest.licence="a\tb"']).ingest.licence == "a\tb"


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_nothing_is_none_where_a_setting_may_be_none(text: str):
    assert load_config(GenerateStage, None, [f"generate.key={text}"]).generate.key is None
    assert load_config(GenerateStage, None, [f"generate.seconds={text}"]).generate.seconds is None


def test_an_artifact_id_of_digits_is_a_text_alone_and_in_a_list():
    overrides = ["inputs.generator=1234567890123456", "inputs.compared=[0123456789012345, 1e15]"]
    inputs = load_config(EvaluateStage, None, overrides).inputs
    assert (inputs.generator, inputs.compared) == ("1234567890123456", ("0123456789012345", "1e15"))


def test_a_mapping_to_texts_is_yaml_whose_values_stay_texts():
    config = load_config(TeacherStage, None, ["submit.env={LEVEL: 1, ON: yes, ID: 007}", "submit.env.MORE=2"])
    assert config.submit.env == {"LEVEL": "1", "ON": "yes", "ID": "007", "MORE": "2"}


def test_numbers_choices_and_sections_are_read_as_before():
    overrides = ["steps.p_dmd.kind=karras", "steps.p_dmd.rho=3e0", "steps.gan.taps=[1, 2]", "loop.compile=yes"]
    config = load_config(StepsStage, None, [*overrides, "cluster={reader: ray, num_workers: 2}"])
    assert config.steps.p_dmd.model_dump()["rho"] == 3.0
    assert (config.steps.gan.taps, config.loop.compile) == ((1, 2), True)
    assert (config.cluster.reader, config.cluster.num_workers) == ("ray", 2)
    domains = load_config(SweepStage, None, ["sweep.domains={steps.p_gen.rho: [1, 2.5]}"]).sweep.domains
    assert domains == {"steps.p_gen.rho": (1, 2.5)}


@pytest.mark.parametrize("text", ["[1", "a: b: c", "2026-13-45"])
def test_a_value_that_is_no_yaml_where_yaml_is_due_is_one_message(text: str):
    with pytest.raises(ConfigError, match=r"steps\.gan\.taps"):
        load_config(StepsStage, None, [f"steps.gan.taps={text}"])


def test_the_suggested_list_can_be_typed():
    with pytest.raises(ConfigError) as caught:
        load_config(EvaluateStage, None, ["inputs.compared=/m/A: #1"])
    suggested = str(caught.value).rpartition("write ")[2]
    assert load_config(EvaluateStage, None, [suggested]).inputs.compared == ("/m/A: #1",)


def test_a_number_where_a_preset_needs_a_text_is_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"inputs\.generator=1234567890123456 must be a text; write it in quotes"):
        load_config(GenerateStage, None, {"inputs.generator": 1234567890123456})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_number_of_any_section_is_infinite_or_nan(value: float):
    for stage, key in (
        (TeacherStage, "teacher.optim.learning_rate"),
        (TeacherStage, "cluster.shard_cache_gb"),
        (StepsStage, "steps.p_dmd.mean"),
        (EvaluateStage, "evaluate.schedule.sigma_max"),
        (IngestStage, "ingest.loudness_lufs"),
    ):
        with pytest.raises(ConfigError, match=rf"{key}={value}"):
            load_config(stage, None, {key: value})
