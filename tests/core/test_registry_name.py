"""Names under which results are registered: refused in the configuration, before a run starts or is submitted."""

from __future__ import annotations

import pytest

from presto_core.config.loader import ConfigError, load_config
from presto_core.config.registry_name import MAX_LENGTH, check_registry_name
from presto_core.config.schema import IngestStage, LayersStage, StepsStage, TeacherStage
from presto_core.config.stage import StageConfig

ODD_NAMES = (
    "my/model", "..", ".", ".hidden", "-flag", "o'brien", 'a"b', "a`b", "a\\b", "100%", "a;b", "a:b", "a@b", "a b",
    " a", "", " ", "tab\t", "line\n", "a\x1b[31m", "a\x00", "größe", "漢字", "a\u202eb", "a[/red]b", "dot.",
    "x" * (MAX_LENGTH + 1),
)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(
    ("stage", "key"),
    [(TeacherStage, "name"), (LayersStage, "name"), (StepsStage, "name"), (IngestStage, "ingest.name")],
)
def test_an_odd_name_is_refused_by_key_value_and_rule(stage: type[StageConfig], key: str, name: str):
    with pytest.raises(ConfigError) as refusal:
        load_config(stage, None, {key: name})
    shown = str(refusal.value)
    assert shown.startswith(f"{key}: ")
    assert repr(name) in shown or str(len(name)) in shown
    assert "letters" in shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    "name", ["champion", "candidate", "candidate-ls", "archived-3", "v3", "V12", "0" * 16, "presto-tiny-s"]
)
def test_a_name_that_stands_for_something_else_is_refused(name: str):
    with pytest.raises(ValueError, match=name):
        check_registry_name(name)


@pytest.mark.parametrize(
    "name", ["presto-generator", "my_model.v2", "a", "7b", "champions", "v3-large", "x" * MAX_LENGTH]
)
def test_a_plain_name_is_taken_and_does_not_change_the_run_id(name: str):
    assert load_config(StepsStage, None, {"name": name}).run_id() == StepsStage().run_id()
