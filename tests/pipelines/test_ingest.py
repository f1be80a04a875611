"""Ingest real sound files with Ray, locally and on S3: encoded, rejected and reused files."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import presto_core.audio
from pipelines.data.dataset import open_dataset
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.sources import find_tracks
from pipelines.registry.resolve import resolve
from pipelines.stages import ingest
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact, run_folder
from presto_core.artifacts.store import read_file, write_bytes
from presto_core.audio.chunks import decode
from presto_core.audio.load_codec import load_codec
from presto_core.audio.mel_codec.mel_pca import ENCODER_FILE
from presto_core.audio.mel_codec.tensor_file import TensorFile
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage
from presto_core.config.sections import TrackingConfig
from tests.support.music import FRAMES, RATE_HZ, WINDOW, notes, write_music

GOOD = {
    "b.flac": 3,
    "bright.wav": 4,
    "half.wav": 2,
    "sub/waltz.wav": 2,
    "the_end-2.wav": 5,
}  # windows with music in them
BAD = {"broken.wav": "not readable", "short.wav": "shorter than one window", "silent.wav": "holds silence only"}


def config_of(source: str, **overrides: object) -> IngestStage:
    keys = {
        "ingest.source": source,
        "ingest.chunk_frames": FRAMES,
        "ingest.rows_per_shard": 5,
        "ingest.licence": "CC0",
    }
    keys |= {
        "ingest.validation_fraction": 0.35,
        "ingest.test_fraction": 0.3,
        "ingest.max_bad_fraction": 0.4,
        "cluster.data_workers": 1,
    }
    return load_config(IngestStage, None, keys | {"storage.root": "store", "text.max_tokens": 8} | overrides)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of this module, which shares one MLflow database; its music is in `music`."""
    folder = tmp_path_factory.mktemp("ingest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_music(folder / "music")
        yield folder


@dataclass(frozen=True)
class IngestedDataset:
    """A data set written by Ray, read back."""

    artifact: Artifact
    rows: dict[str, FullRows]

    def file(self, name: str) -> bytes:
        return read_file(open_folder(self.artifact.uri), name, self.artifact.manifest)

    @property
    def info(self) -> dict[str, Any]:
        return self.artifact.manifest["dataset"]

    def rows_of(self, track: str) -> FullRows:
        both = FullRows.concatenate(list(self.rows.values()))
        mine = both.take(np.flatnonzero(both.track == track))
        return mine.take(np.argsort(mine.start_seconds))


def read_back(artifact: Artifact) -> IngestedDataset:
    data = open_dataset(artifact.uri)
    return IngestedDataset(
        artifact,
        {
            s: FullRows.concatenate(list(read_with_threads(data.uri, data.shards(s), FullRows)))
            for s in data.splits
            if data.info["rows"][s]
        },
    )


# over 10 s: starts the Ray session and its first workers, each of which imports torch
@pytest.fixture(scope="module")
def made(home: Path, shared_ray: None) -> IngestedDataset:
    return read_back(ingest.run(config_of("music", **{"cluster.num_workers": 1})))  # 0: this process


def files_of(artifact: Artifact) -> dict[str, bytes]:
    """Return every byte of a local data set; of its manifest, all but creation time and versions."""
    folder = Path(artifact.uri)
    manifest = {k: v for k, v in artifact.manifest.items() if k not in ("created", "made_with")}
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    del files["manifest.json"]
    return files | {"manifest": json.dumps(manifest, sort_keys=True).encode()}


@pytest.mark.ray
@pytest.mark.services
def test_every_window_of_music_is_a_row_of_the_codecs_latents(made: IngestedDataset, home: Path):
    """Compare with a simple loop per track: decode, cut, and encode one window at a time."""
    codec = load_codec("mel_pca")
    for track, count in GOOD.items():
        samples = decode(io.BytesIO((home / "music" / track).read_bytes()), sample_rate_hz=RATE_HZ)
        windows = [samples[at : at + WINDOW] for at in range(0, count * WINDOW, WINDOW)]
        expected = torch.cat([codec.encode(torch.from_numpy(w)[None, None]) for w in windows]).numpy()
        assert expected.shape == (count, codec.channels, FRAMES)
        rows = made.rows_of(track)
        np.testing.assert_allclose(rows.latents, expected, atol=1e-3 * np.abs(expected).max())
        np.testing.assert_allclose(rows.start_seconds, np.arange(count) * WINDOW / RATE_HZ, rtol=1e-6)
    assert sum(map(len, made.rows.values())) == sum(GOOD.values())


@pytest.mark.ray
@pytest.mark.services
def test_the_manifest_lists_shapes_counts_and_statistics_of_the_training_rows(made: IngestedDataset):
    info, train = made.info, made.rows["train"].latents.astype(np.float64)
    assert info["rows"] == {split: len(rows) for split, rows in made.rows.items()}
    assert (info["latents"]["channels"], info["latents"]["frames"]) == train.shape[1:]
    np.testing.assert_allclose(info["latents"]["mean"], train.mean((0, 2)), rtol=1e-9)
    overall = np.sqrt(train.var((0, 2)).mean())
    np.testing.assert_allclose(info["latents"]["std"], [overall] * train.shape[1], rtol=1e-9)
    assert info["hours"]["train"] == pytest.approx(len(train) * WINDOW / RATE_HZ / 3600, abs=5e-5)
    assert info["codec"]["digest"] == load_codec("mel_pca").digest
    assert (info["text"]["dim"], info["text"]["max_tokens"]) == (384, 8)
    assert info["caption_sources"] == {"name": 3, "sidecar": 2}
    assert (info["silent_windows"], info["captioned_rows"]) == (2, sum(GOOD.values()))


@pytest.mark.ray
@pytest.mark.services
def test_shards_are_full_but_for_the_last_of_a_split(made: IngestedDataset):
    for split in made.rows:
        sizes = [shard["rows"] for shard in made.info["shards"] if shard["split"] == split]
        assert set(sizes[:-1]) <= {5}
        assert 0 < sizes[-1] <= 5
        assert sum(sizes) == len(made.rows[split])


@pytest.mark.ray
@pytest.mark.services
def test_the_metadata_of_a_track_is_in_its_rows(made: IngestedDataset):
    captions = {track: set(made.rows_of(track).caption) for track in GOOD}
    assert captions == {
        "b.flac": {"b"}, "bright.wav": {"bright notes"}, "half.wav": {"half"},
        "sub/waltz.wav": {"a slow waltz"}, "the_end-2.wav": {"the end 2"},
    }  # fmt: skip
    bright, half = made.rows_of("bright.wav"), made.rows_of("half.wav")
    assert set(bright.tempo_bpm) == {120.0}
    assert set(bright.key) == {21}  # A minor: 12 + 9
    assert np.isnan(half.tempo_bpm).all()
    assert set(half.key) == {24}
    assert bright.text_mask.sum(1).tolist() == [4] * 4  # [CLS] bright notes [SEP]
    assert (
        np.ptp(bright.text_pooled.astype(np.float32), axis=0).max() < 2e-3
    )  # other captions in the batch change the rounding
    assert not (bright.text_pooled[0] == half.text_pooled[0]).all()


@pytest.mark.ray
@pytest.mark.services
def test_tracks_and_licences_are_kept_with_what_sidecars_add(made: IngestedDataset, home: Path):
    tracks = [json.loads(line) for line in made.file("tracks.jsonl").splitlines()]
    assert [(t["file"], t["rows"]) for t in tracks] == sorted(GOOD.items())
    known = {t["file"]: t for t in tracks}
    assert known["bright.wav"]["licence"] == "CC BY 4.0"
    assert (known["bright.wav"]["key"], known["bright.wav"]["tempo_bpm"]) == ("A minor", 120.0)
    assert known["half.wav"]["licence"] == "CC0"
    assert made.info["licences"] == ["CC BY 4.0", "CC0"]
    assert str(home).encode() not in made.file("tracks.jsonl")


@pytest.mark.ray
@pytest.mark.services
def test_files_of_no_use_are_quarantined_with_their_reason(made: IngestedDataset, home: Path):
    table = pq.read_table(io.BytesIO(made.file("quarantine.parquet"))).to_pylist()
    assert {row["file"] for row in table} == BAD.keys()
    for row in table:
        assert row["uri"] == str(home / "music" / row["file"])
        assert (row["stage"], row["error"]) == ("decode", "AudioError")
        assert BAD[row["file"]] in row["message"]
    assert made.info["bad_files"] == 3


@pytest.mark.ray
@pytest.mark.services
def test_no_piece_is_in_two_splits_and_every_split_has_the_planned_files(made: IngestedDataset, home: Path):
    compositions = [name for rows in made.rows.values() for name in set(rows.composition)]
    assert len(compositions) == len(set(compositions))
    planned = find_tracks(config_of("music").ingest)
    for split, rows in made.rows.items():
        assert set(rows.track) == {t.file for t in planned if t.split == split} & GOOD.keys()


@pytest.mark.ray
@pytest.mark.services
def test_the_same_source_again_is_the_same_data_set_and_nothing_is_read(
    made: IngestedDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ingest, "encode_tracks", None)  # would be called for unknown files
    again = ingest.run(config_of("music"))
    assert again == made.artifact
    assert "is finished, its result is reused" in capsys.readouterr().err
    tracker = open_tracker(TrackingConfig())
    assert resolve(tracker.client, "presto-dataset@candidate", "store").id == made.artifact.id
    assert len(tracker.client.search_model_versions("name = 'presto-dataset'")) == 1
    assert not Path(run_folder(open_folder("store"), made.artifact.id).path).exists()


@pytest.mark.ray
@pytest.mark.services
def test_without_ray_the_bytes_are_the_same(made: IngestedDataset, home: Path):
    assert files_of(ingest.run(config_of("music", **{"storage.root": "alone"}))) == files_of(made.artifact)


@pytest.mark.ray
@pytest.mark.services
def test_a_larger_source_encodes_the_new_files_only_and_is_what_it_would_be_from_scratch(
    made: IngestedDataset, home: Path
):
    shutil.copytree("music", "more")
    soundfile.write("more/new.wav", notes(6, seed=20), RATE_HZ)
    shutil.copy("music/half.wav", "more/half again.wav")  # another name, the same content
    before = {p: p.stat().st_mtime_ns for p in Path("store/encoded").rglob("latents/*/*.parquet")}
    grown = ingest.run(config_of("more"))
    after = {p: p.stat().st_mtime_ns for p in Path("store/encoded").rglob("latents/*/*.parquet")}
    assert before.items() < after.items()
    assert len(after) == len(before) + 1
    assert json.loads(read_back(grown).file("doubles.json")) == {"half.wav": "half again.wav"}
    assert grown.id != made.artifact.id
    kept = files_of(grown)
    shutil.rmtree("store")
    assert files_of(ingest.run(config_of("more"))) == kept


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_the_same_audio_on_s3_is_the_same_data_set(made: IngestedDataset, object_store: Server):
    remote = open_folder("s3://latents/ingest-test/music")
    for path in Path("music").rglob("*.*"):
        write_bytes(remote, str(path.relative_to("music")), path.read_bytes())
    there = ingest.run(config_of(remote.uri, **{"storage.root": "s3://latents/ingest-test/store"}))
    assert there.id == made.artifact.id
    assert there.manifest["dataset"] == made.info


@pytest.mark.ray
@pytest.mark.services
def test_too_many_files_of_no_use_are_refused_by_name_and_listed(made: IngestedDataset, home: Path):
    with pytest.raises(SourceError, match=r"3 of 8 files .*ingest\.max_bad_fraction=0\.37") as caught:
        ingest.run(config_of("music", **{"ingest.max_bad_fraction": 0.37}))
    for file, why in BAD.items():
        assert f"{file}: " in str(caught.value)
        assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    listed = Path(".presto/reports/quarantine.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(home / "music" / file) for file in sorted(BAD)]


@pytest.mark.ray
@pytest.mark.services
def test_a_source_that_leaves_nothing_to_train_on_is_refused(made: IngestedDataset):
    with pytest.raises(SourceError, match=r"no window for training came out of 8 tracks; lower ingest\.valid"):
        ingest.run(config_of("music", **{"ingest.test_fraction": 0.98, "ingest.validation_fraction": 0.01}))


@pytest.mark.ray
@pytest.mark.services
def test_missing_splits_are_named_with_the_settings_that_fill_them(
    made: IngestedDataset, capsys: pytest.CaptureFixture[str]
):
    everything = ingest.run(config_of("music", **{"ingest.validation_fraction": 0, "ingest.test_fraction": 0}))
    assert everything.manifest["dataset"]["rows"] == {"train": sum(GOOD.values()), "validation": 0, "test": 0}
    printed = " ".join(capsys.readouterr().err.split())
    for split in ("validation", "test"):
        assert re.search(rf"there are no {split} rows, so [\w ]+; raise ingest\.{split}_fraction", printed)


@pytest.mark.ray
@pytest.mark.services
def test_a_changed_caption_is_another_data_set_of_the_same_latents(made: IngestedDataset, home: Path):
    shutil.copytree("music", "retold")
    Path("retold/half.txt").write_text("told anew")
    before = sorted(Path("store/encoded").rglob("latents/*/*.parquet"))
    retold = read_back(ingest.run(config_of("retold")))
    assert set(retold.rows_of("half.wav").caption) == {"told anew"}
    assert retold.artifact.id != made.artifact.id
    assert sorted(Path("store/encoded").rglob("latents/*/*.parquet")) == before


def test_other_codec_weights_encode_anew(tmp_path: Path):
    from pipelines.ingest.segments import EncodeSettings

    shutil.copytree(Path(presto_core.audio.__file__).parent / "weights", tmp_path / "codec")
    config = config_of("music", **{"codec.path": str(tmp_path / "codec")})
    before = EncodeSettings.from_config(config, load_codec("mel_pca", path=config.codec.path))
    weights = TensorFile.load(tmp_path / "codec" / ENCODER_FILE)
    nudged = {**weights.tensors, "mean": weights.tensors["mean"] + 1e-3}
    TensorFile(weights.settings, nudged).save(tmp_path / "codec" / ENCODER_FILE)
    assert EncodeSettings.from_config(config, load_codec("mel_pca", path=config.codec.path)).key != before.key
