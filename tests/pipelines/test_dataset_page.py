"""`presto dataset listen`: rows are drawn by seed and decoded as stored; page and table escape what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from infra.cli.main import app
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.shards import FullRows, read_table
from pipelines.evaluate.dataset_clips import draw_rows
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import StoreError
from presto_core.audio.load_codec import load_codec
from presto_core.config.loader import ConfigError
from presto_core.errors import UserError
from tests.support.listenable_dataset import (
    CAPTIONS,
    HOSTILE_CAPTION,
    TRAIN_ROWS,
    WORDINGS,
    make_listenable_dataset,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    return make_listenable_dataset(str(tmp_path_factory.mktemp("data") / "set"))


def listen(*args: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["dataset", "listen", *map(str, args)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_all_rows_are_shown_with_what_is_known_of_them(dataset: LatentDataset, empty: Path):
    rows = json.loads(listen(dataset.uri, "--json").stdout)
    assert [row["caption"] for row in rows] == list(CAPTIONS)
    assert rows[0]["other_captions"] == list(WORDINGS)
    assert rows[1]["other_captions"] == [CAPTIONS[0], *WORDINGS]
    assert [row["tempo_bpm"] for row in rows] == [72, 96.5, None, None, 120, 80]
    assert [rows[0]["key"], rows[2]["key"]] == ["A minor", None]
    assert (rows[0]["licence"], rows[3]["licence"]) == ("CC0-1.0", "")
    assert (rows[0]["split"], rows[0]["composition"], rows[0]["title"]) == ("train", "k0", "Nocturne")


def test_the_sound_of_a_row_is_that_of_its_latents(dataset: LatentDataset, empty: Path):
    listen(dataset.uri, "--output", "page")
    table = read_table(open_folder(dataset.uri), dataset.shards("train")[0], columns=FullRows.columns())
    latents = FullRows.from_table(table).latents[4].astype(np.float32)
    expected = load_codec("mel_pca").decode(torch.from_numpy(latents)[None])[0, 0].numpy()
    audio, rate_hz = soundfile.read("page/audio/train-000004.wav", dtype="float32")
    assert rate_hz == 44100
    np.testing.assert_allclose(audio, np.clip(expected, -1, 1), atol=2 / 2**15)


def test_a_draw_depends_on_the_seed_alone_and_has_no_row_twice(dataset: LatentDataset):
    drawn = {seed: [row.number for row in draw_rows(dataset, "train", count=3, seed=seed)] for seed in range(8)}
    assert drawn[0] == [row.number for row in draw_rows(dataset, "train", count=3, seed=0)]
    assert len({tuple(numbers) for numbers in drawn.values()}) > 1
    assert all(len(set(numbers)) == 3 for numbers in drawn.values())
    assert len(draw_rows(dataset, "train", count=100, seed=0)) == TRAIN_ROWS


def test_what_comes_from_the_data_set_is_text_on_the_page_and_in_the_table(dataset: LatentDataset, empty: Path):
    done = listen(dataset.uri, "--output", "page")
    html = Path("page/index.html").read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "<b>warm</b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "\x1b" not in done.stdout + done.stderr + html
    assert "a[/red]\\x1b[31mx.flac" in done.stdout
    assert done.stdout.rstrip().endswith("page/index.html")


def test_a_picture_belongs_to_every_sound(dataset: LatentDataset, empty: Path):
    listen(dataset.uri, "--split", "validation", "--output", "page")
    html = Path("page/index.html").read_text()
    for address in re.findall(r'src="([^"]+\.(?:wav|png))"', html):
        assert (Path("page") / address).is_file()
    assert len(re.findall(r"<audio", html)) == len(re.findall(r"<img", html)) == 2


def test_a_row_that_cannot_be_decoded_is_shown_with_the_reason(dataset: LatentDataset, empty: Path):
    done = listen(dataset.uri, "--split", "test", "--output", "page")
    assert "test row 1 of track" in " ".join(done.stderr.split())
    html = Path("page/index.html").read_text()
    assert "NaN or infinite latents" in html
    assert html.count("<audio") == 1


def test_the_page_is_made_again_and_other_folders_are_left_alone(dataset: LatentDataset, empty: Path):
    for _ in range(2):
        listen(dataset.uri, "--rows", 2, "--output", "page")
    (empty / "mine").mkdir()
    (empty / "mine/index.html").write_text("mine")
    for folder in ("mine", dataset.uri):
        done = listen(dataset.uri, "--output", folder, code=1)
        assert isinstance(done.exception, UserError)
        assert "holds other files" in str(done.exception)
    assert (empty / "mine/index.html").read_text() == "mine"
    assert not (Path(dataset.uri) / "index.html").exists()


def test_a_data_set_is_found_by_path_by_setting_and_by_a_folder_of_this_one(
    dataset: LatentDataset, empty: Path, monkeypatch: pytest.MonkeyPatch
):
    listen(f"inputs.dataset={dataset.uri}", "--rows", 1)
    assert (empty / ".presto/listen/0000000000000000-train-seed0/index.html").is_file()
    monkeypatch.chdir(Path(dataset.uri).parent)
    for command in (["listen", "set", "--dry-run"], ["show", "set"], ["show", "./set", "--json"]):
        done = CliRunner().invoke(app, ["dataset", *command])
        assert done.exit_code == 0, done.exception
    assert not (Path(dataset.uri).parent / ".presto/mlflow.db").exists()  # nobody asked the registry


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (["--split", "eval"], ConfigError, r"--split eval .*train or validation or test"),
        (["--output", "s3://x/y"], UserError, r"s3://x/y must be a folder"),
    ],
)
def test_bad_options_are_one_message(
    dataset: LatentDataset, empty: Path, args: list[str], error: type[UserError], message: str
):
    done = CliRunner().invoke(app, ["dataset", "listen", dataset.uri, *args])
    assert isinstance(done.exception, error)
    assert re.search(message, str(done.exception))


def test_another_codec_is_refused_by_its_digest(tmp_path: Path, empty: Path):
    data = make_listenable_dataset(str(tmp_path / "set"))
    path = tmp_path / "set/manifest.json"
    path.write_text(path.read_text().replace(data.info["codec"]["digest"], "f" * 64))
    done = CliRunner().invoke(app, ["dataset", "listen", str(tmp_path / "set")])
    assert isinstance(done.exception, StoreError)
    assert "ffffffffffff" in str(done.exception)


def test_a_split_without_rows_is_named(dataset: LatentDataset, tmp_path: Path, empty: Path):
    path = Path(make_listenable_dataset(str(tmp_path / "set")).uri) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["dataset"]["shards"] = [s for s in manifest["dataset"]["shards"] if s["split"] != "test"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="no 'test' rows"):
        draw_rows(open_dataset(str(path.parent)), "test", count=1, seed=0)


@pytest.mark.services
def test_a_data_set_on_s3_can_be_played(object_store: Server, empty: Path):
    data = make_listenable_dataset("s3://latents/listen-test/set")
    listen(data.uri, "--rows", 2, "--output", "page")
    assert len(list(Path("page/audio").iterdir())) == 2
    assert HOSTILE_CAPTION not in Path("page/index.html").read_text()
