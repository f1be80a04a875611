"""Describe, verify and measure a data set: an intact one passes, and every kind of damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli.dataset import app
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.inspection import compute_stats, describe, list_splits, verify
from pipelines.data.layout import QUARANTINE, TRACKS
from pipelines.ingest.curation import RejectedFile, make_quarantine_table, to_parquet
from pipelines.ingest.latent_cache import IngestFailure
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError, commit
from tests.support.synthetic_dataset import make_dataset


@pytest.fixture
def dataset(workdir: Path) -> LatentDataset:
    return make_dataset(str(workdir / "data"))


def edit_manifest(workdir: Path, change) -> LatentDataset:
    """Apply `change` to the manifest and reopen the data set."""
    path = workdir / "data/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["dataset"])
    path.write_text(json.dumps(manifest))
    return open_dataset(str(workdir / "data"))


def test_an_intact_data_set_is_counted(dataset: LatentDataset):
    found = verify(dataset)
    assert (found.shards, found.rows, found.files) == (5, 46, 1)  # config.yaml next to the shards


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"shards/1\.parquet"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), r"1\.parquet.*blake3"),
        (lambda path: path.write_bytes(b""), r"1\.parquet.*blake3"),
    ],
)
def test_a_shard_that_is_gone_or_changed_is_named(dataset: LatentDataset, workdir: Path, damage, message: str):
    damage(workdir / "data/shards/1.parquet")
    with pytest.raises(StoreError, match=rf"{message}.*; .*storage\.root"):
        verify(dataset)


def test_every_problem_is_counted_and_some_are_named(dataset: LatentDataset, workdir: Path):
    for number in range(4):
        (workdir / f"data/shards/{number}.parquet").write_bytes(b"nothing")
    (workdir / "data/config.yaml").write_text("other")
    with pytest.raises(StoreError, match=r"0\.parquet.*config\.yaml") as caught:
        verify(dataset)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_does_not_fit_its_shards_is_found(dataset: LatentDataset, workdir: Path):
    changed = edit_manifest(workdir, lambda d: d["shards"][0].update(rows=11) or d["latents"].update(frames=9))
    with pytest.raises(
        StoreError,
        match=r"0\.parquet has 10 rows.* 11; .*1\.parquet has latents \[4, 8\].*\[4, 9\]",
    ):
        verify(changed)


@pytest.mark.parametrize(
    ("shard", "other", "message"),
    [
        (0, "validation", "composition 'k0' is in two splits, train and validation"),
        (0, "test", "composition 'k0' is in two splits, train and test"),
        (3, "test", "composition 'k3' is in two splits, validation and test"),
        (0, "held_out", "composition 'k0' is in two splits, train and held_out"),
    ],
)
def test_a_composition_in_two_splits_is_found(
    dataset: LatentDataset, workdir: Path, shard: int, other: str, message: str
):
    leaking = edit_manifest(workdir, lambda d: d["shards"].append(d["shards"][shard] | {"split": other}))
    with pytest.raises(StoreError, match=message):
        verify(leaking)


def test_statistics_are_those_of_the_rows(dataset: LatentDataset, workdir: Path):
    facts = compute_stats(dataset)
    assert facts["rows"] == "46"
    assert facts["different captions"] == "46"
    assert facts["doubles"].startswith("0 rows")
    assert "sigma_data 1.0000: " in facts["normalised"]
    assert "DIFFERS" not in facts["normalised"]
    assert facts["with a caption"] == "100.0%"
    assert facts["with a tempo"] == f"{45 / 46:.1%}"  # one row's tempo is 0, which means unknown
    off = edit_manifest(workdir, lambda d: d["latents"].update(std=[1.0] * 4))
    assert "DIFFERS" in compute_stats(off)["normalised"]


def test_the_same_latents_twice_are_counted(dataset: LatentDataset, workdir: Path):
    doubled = edit_manifest(workdir, lambda d: d["shards"].append(d["shards"][0]))
    assert compute_stats(doubled)["doubles"].startswith("10 rows")


def test_the_description_matches_the_manifest(dataset: LatentDataset, workdir: Path):
    counts = {"rows": {"train": 30, "validation": 8, "test": 8}, "licences": ["CC0"]}
    counts |= {"hours": {"train": 1.5, "validation": 0.25, "test": 0.25}}
    facts = describe(edit_manifest(workdir, lambda d: d.update(counts)))
    assert facts["rows"] == "30 train (1.50 h), 8 validation (0.25 h), 8 test (0.25 h)"
    assert facts["shards"] == "3 train, 1 validation, 1 test"
    assert "note" not in facts
    assert facts["latents"].startswith("4 channels x 8 frames, 21.53 frames")
    assert facts["licences"] == "CC0"
    assert facts["where"] == dataset.uri


def test_a_data_set_of_former_times_is_read_by_the_name_of_its_split(workdir: Path):
    make_dataset(str(workdir / "data"), splits=("held_out",))
    rows = {"rows": {"train": 30, "held_out": 8}, "hours": {"train": 1.5, "held_out": 0.25}}
    former = edit_manifest(workdir, lambda d: d.update(rows))
    facts = describe(former)
    assert facts["rows"] == "30 train (1.50 h), 8 held_out (0.25 h)"
    assert facts["shards"] == "3 train, 1 held_out"
    assert facts["note"] == former.test_split_note
    assert verify(former).rows == 38


def test_the_commands_find_a_data_set_by_its_uri(dataset: LatentDataset):
    runner = CliRunner()
    done = runner.invoke(app, ["stats", f"inputs.dataset={dataset.uri}"])
    assert done.exit_code == 0, done.exception
    assert "sigma_data 1.0000" in done.output
    assert runner.invoke(app, ["verify", f"inputs.dataset={dataset.uri}"]).exit_code == 0


PIECES = [("train", "a"), ("train", "a"), ("train", "b"), ("validation", "c"), ("test", "d"), ("test", "e")]


@pytest.fixture
def ingested(workdir: Path) -> LatentDataset:
    """A data set with the track and quarantine lists of ingest."""
    data = make_dataset(str(workdir / "data"))
    rows = [
        {"file": f"{i}.wav", "split": split, "composition": name, "rows": 10 * i, "seconds": 1800.0}
        for i, (split, name) in enumerate(PIECES)
    ]
    bad = [
        RejectedFile("x [1].wav", "s3://m/x [1].wav", IngestFailure("decode", "AudioError", "not readable as audio"))
    ]
    files = {
        TRACKS: "".join(json.dumps(row) + "\n" for row in rows).encode(),
        QUARANTINE: to_parquet(make_quarantine_table(bad)),
    }
    commit(open_folder(data.uri), data.manifest, files)
    return open_dataset(data.uri)


def test_splits_are_counted_and_their_pieces_named(ingested: LatentDataset):
    found = list_splits(ingested)
    assert found["train"] == {"compositions": 2, "tracks": 3, "rows": 30, "hours": 1.5, "names": ["a", "b"]}
    assert found["validation"] == {"compositions": 1, "tracks": 1, "rows": 30, "hours": 0.5, "names": ["c"]}
    assert found["test"] == {"compositions": 2, "tracks": 2, "rows": 90, "hours": 1.0, "names": ["d", "e"]}


def test_quarantine_split_and_json_on_the_command_line(ingested: LatentDataset):
    runner, where = CliRunner(), f"inputs.dataset={ingested.uri}"
    listed = json.loads(runner.invoke(app, ["quarantine", where, "--json"]).stdout)
    assert listed == [
        {"uri": "s3://m/x [1].wav", "file": "x [1].wav", "stage": "decode", "error": "AudioError",
         "message": "not readable as audio"},
    ]  # fmt: skip
    table = runner.invoke(app, ["quarantine", where]).stdout
    assert "x [1].wav" in table
    assert "not readable" in table
    assert json.loads(runner.invoke(app, ["split", where, "--json"]).stdout) == list_splits(ingested)
    table = runner.invoke(app, ["split", where]).stdout
    assert [table.count(name) for name in ("train", "validation", "test")] == [1, 2, 2]  # a row each, and two titles
    assert json.loads(runner.invoke(app, ["stats", where, "--json"]).stdout)["rows"] == "46"


def test_a_data_set_without_lists_names_the_missing_file(dataset: LatentDataset):
    with pytest.raises(StoreError, match=r"tracks\.jsonl"):
        list_splits(dataset)
