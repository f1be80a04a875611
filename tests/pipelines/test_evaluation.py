"""What is compared on which rows: order of prompts, splits, the choice by validation, and the terminal's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.dataset import open_dataset
from pipelines.evaluate import report
from pipelines.evaluate.comparison import list_validated_systems
from pipelines.evaluate.quality import choose_systems
from pipelines.evaluate.rows import cycle, order_by_track, read_prompts, read_rows
from pipelines.evaluate.sampling import count_clips
from pipelines.evaluate.systems import EvaluatedSystem, list_real_systems
from presto_core.config.evaluation import EmbedderConfig, EvaluateConfig
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import EvaluateStage
from tests.support.synthetic_dataset import make_dataset

STUDENT = EvaluatedSystem("S 4", "generator", 4, 4, "generator", "S", split="test")


# --- rows


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40))
def test_the_first_rows_cover_the_tracks_as_evenly_as_they_can(tracks: list[str]) -> None:
    order = order_by_track(np.array(tracks))
    assert sorted(order) == list(range(len(tracks)))
    names = [tracks[i] for i in order]
    for stop in range(1, len(names) + 1):
        counts = {name: names[:stop].count(name) for name in tracks}
        fewest = min((n for name, n in counts.items() if n < tracks.count(name)), default=max(counts.values()))
        assert max(counts.values()) <= fewest + 1


def test_the_order_depends_on_the_rows_alone_and_starts_again_after_the_last() -> None:
    tracks = np.array(["a", "b", "a", "c"] * 5)
    assert np.array_equal(order_by_track(tracks), order_by_track(tracks))
    assert cycle(3, 2, 5).tolist() == [2, 0, 1, 2, 0]


def test_prompts_are_those_of_the_rows_that_are_sampled(tmp_path: Path) -> None:
    make_dataset(str(tmp_path))
    dataset = open_dataset(str(tmp_path))
    for split in ("train", "validation", "test"):
        rows, prompts = read_rows(dataset, split), read_prompts(dataset, split)
        assert prompts.caption.tolist() == rows.caption.tolist()
        assert prompts.track.tolist() == rows.track.tolist()
        assert np.array_equal(prompts.tempo_bpm, rows.tempo_bpm, equal_nan=True)
        assert len(set(prompts.groups)) == len(set(rows.track))


# --- splits


def test_the_reference_is_the_whole_split_and_systems_have_their_counts(tmp_path: Path) -> None:
    make_dataset(str(tmp_path))
    dataset, config = open_dataset(str(tmp_path)), EvaluateConfig(num_samples=9, validation_samples=3)
    reference, floor = list_real_systems("test")[:2]
    rows = sum(shard.rows for shard in dataset.shards("test"))
    assert count_clips(reference, config, dataset) == rows
    assert count_clips(reference, config.model_copy(update={"reference_samples": 2}), dataset) == 2
    assert count_clips(floor, config, dataset) == 9
    assert count_clips(STUDENT, config, dataset) == 9
    assert count_clips(STUDENT.on_split("validation"), config, dataset) == 3


def test_the_validation_split_is_sampled_where_it_is_another_one(tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "new"))
    make_dataset(str(tmp_path / "old"), splits=("held_out",))
    new, old = open_dataset(str(tmp_path / "new")), open_dataset(str(tmp_path / "old"))
    listed = list_validated_systems(EvaluateConfig(), [STUDENT], new)
    assert [(s.name, s.split) for s in listed] == [("real music", "validation"), ("S 4", "validation")]
    assert list_validated_systems(EvaluateConfig(validation_samples=0), [STUDENT], new) == []
    assert list_validated_systems(EvaluateConfig(), [STUDENT], old) == []
    assert old.test_split == "held_out"
    assert "no test split" in old.test_split_note
    assert not new.test_split_note


# --- choice


def row(name: str, model: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "model": model, "mmd": 1.0, **values}


def test_each_models_row_is_chosen_by_validation_and_never_by_test() -> None:
    rows = [
        row("S 1", "s", mmd=0.1, validation={"mmd": 0.3}),
        row("S 4", "s", mmd=0.2, validation={"mmd": 0.2}),
        row("LS 1", "ls"),
        row("LS 4", "ls", mmd=0.01),
        {"name": "their system", "model": "folder their system", "role": "folder"},
    ]
    choose_systems(rows)
    assert [r["name"] for r in rows if r["chosen"]] == ["S 4", "LS 1", "their system"]


def test_without_a_test_split_the_lowest_reported_row_is_chosen() -> None:
    rows = [row("LS 1", "ls", mmd=0.3), row("LS 4", "ls", mmd=0.2)]
    choose_systems(rows, has_test_split=False)
    assert [r["name"] for r in rows if r["chosen"]] == ["LS 4"]


# --- settings


def test_embedders_are_names_or_name_and_folder() -> None:
    def load(text: str) -> tuple[EmbedderConfig, ...]:
        return load_config(EvaluateStage, None, [f"evaluate.embedders={text}"]).evaluate.embedders

    assert load("musicnn") == (EmbedderConfig(),)
    assert load("[musicnn, clap=/models/a b]")[1] == EmbedderConfig(kind="clap", path="/models/a b")
    assert load("[{kind: ast, path: x/y}]") == (EmbedderConfig(kind="ast", path="x/y"),)
    for wrong, named in (("[clapp=x]", "clapp"), ("[clap]", "clap"), ("[musicnn=x]", "musicnn"), ("[]", "embedders")):
        with pytest.raises(ConfigError, match=named):
            load(wrong)
    with pytest.raises(ConfigError, match="twice"):
        load("[musicnn, musicnn]")


# --- the table


def result_of(*systems: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A report's content."""
    return {
        "systems": list(systems),
        "floor": {"name": "real music, train", "mmd": 0.001, "density": 0.9, "coverage": 0.8, "precision": 0.6},
        "controls": [],
        "split": "test",
        "notes": [],
        "samples": 64,
        "embeddings": {"generated": 128, "reference": 96},
        "embedding": {"name": "musicnn-mtt-penultimate", "digest": "ebb341494c65ee10d3bc"},
        "decoder_digest": "0a1b2c3d4e5f60718293",
        "hardware": {"device": "a [small] machine", "torch": "2", "threads": 1},
        "seed": 7,
        "clip_seconds": 5.94,
    } | fields


def system(name: str, **values: Any) -> dict[str, Any]:
    quality = {"mmd": 0.0573, "precision": 0.4, "recall": 0.2, "density": 0.5, "coverage": 0.25, "fd_inf": 7.5}
    return {"name": name, "role": "generator", "nfe": 4, "latency_ms": 40.0, "total_ms": 95.0} | quality | values


def test_the_table_has_every_row_the_headline_with_its_interval_and_the_notes(capsys: pytest.CaptureFixture[str]):
    first = system(
        "teacher dpmpp_2m 40 w=2", intervals={"mmd": [0.0473, 0.0673]}, chosen=True, validation={"mmd": 0.06}
    )
    report.print_table(result_of(first, system("S 4", chosen=False), notes=["too few [clips] to rank"]))
    printed = " ".join(capsys.readouterr().out.split())
    assert "57.3 ±10.0" in printed
    for text in ("test split", "teacher dpmpp_2m 40 w=2", "S 4", "real music", "note: too few [clips] to rank"):
        assert text in printed
    assert "a [small] machine" in printed


def test_no_value_and_no_heading_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [system("teacher dpmpp_2m 40 w=1.5", speed_up_end_to_end=1.0), system("LS 4", mmd=0.9, fd_inf=123.45)]
    report.print_table(result_of(*rows))
    printed = capsys.readouterr().out
    for row in rows:
        (line,) = [line for line in printed.splitlines() if "│" in line and row["name"] in line]
        for metric in report.COLUMNS:
            assert metric.name not in row or metric.format_value(row[metric.name]) in line
    for metric in report.COLUMNS:
        assert all(part in printed for part in metric.title.split())
    assert "…" not in printed


def test_a_metric_that_is_unfit_is_marked_in_its_column_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    fitness = {
        "musicnn-mtt-penultimate": {"fd_inf": {"fit": False, "reason": "noise (1) is better"}, "mmd": {"fit": True}}
    }
    report.print_table(result_of(system("S 4"), fitness=fitness))
    printed = capsys.readouterr().out
    assert "7.50†" in printed
    assert "57.3†" not in printed
    assert "fitness test" in " ".join(printed.split())
    assert "FD∞ is not fit for this music: noise (1) is better" in printed


def test_a_report_made_before_is_read_with_its_note() -> None:
    former = {k: v for k, v in result_of(system("student 4")).items() if k not in ("controls", "split", "notes")}
    former["systems"][0] |= {"role": "student", "sampling_ms": 12.0}
    result = report.complete_report(former)
    assert (result["split"], result["clips"]) == ("held_out", [])
    assert result["systems"][0]["role"] == "generator"
    assert result["systems"][0]["latency_ms"] == 12.0
    assert "test split" in result["notes"][0]
