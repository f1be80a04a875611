"""Ingest of real sound files: what is encoded, what is left out and said, what is reused, in process, in Ray, on S3."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import presto_core.audio
from pipelines import ingest
from pipelines.dataset import open_dataset, read_here
from pipelines.embedded_s3 import Server
from pipelines.encode import ShardEncoder, plan_shards
from pipelines.shards import Rows, from_parquet
from pipelines.sources import SourceError, Track, find_tracks
from pipelines.storage import absolute, open_folder
from pipelines.tracking import open_tracker
from presto_core.audio.chunks import decode
from presto_core.audio.codec import load_codec
from presto_core.audio.mel_pca import ENCODER_FILE
from presto_core.audio.tensor_file import TensorFile
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage
from presto_core.config.sections import TrackingConfig
from presto_core.registry.manifest import Artifact, artifact_folder, run_folder
from presto_core.registry.store import read_file, write_bytes

RATE_HZ, HOP, FRAMES = 44100, 2048, 8
WINDOW = FRAMES * HOP  # 0.37 s
GOOD = {
    "b.flac": 3,
    "bright.wav": 4,
    "half.wav": 2,
    "sub/waltz.wav": 2,
    "the_end-2.wav": 5,
}  # windows with music in them
BAD = {"broken.wav": "not readable", "short.wav": "shorter than one window", "silent.wav": "holds silence only"}


def notes(windows: float, *, seed: int, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Half-second notes of random pitch."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(windows * WINDOW * rate_hz / RATE_HZ)) / rate_hz
    hz = 110 * 2 ** (rng.integers(0, 36, 40) / 12)
    return 0.3 * np.sin(2 * np.pi * hz[(2 * time).astype(int)] * time)


def write_music(folder: Path) -> None:
    """Eight files of several formats: five with music in them, three of no use."""
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "bright.wav", notes(4.5, seed=1), RATE_HZ)
    told = {"caption": "bright notes", "tempo_bpm": 120, "key": "A minor", "licence": "CC BY 4.0"}
    (folder / "bright.json").write_text(json.dumps(told))
    stereo = np.stack([notes(3.5, seed=2, rate_hz=22050), notes(3.5, seed=3, rate_hz=22050)], axis=1)
    soundfile.write(folder / "b.flac", stereo, 22050)
    soundfile.write(folder / "sub/waltz.wav", notes(2.1, seed=4), RATE_HZ, subtype="FLOAT")
    (folder / "sub/waltz.txt").write_text("a slow waltz\n")
    soundfile.write(folder / "half.wav", np.concatenate([notes(2, seed=5), np.zeros(2 * WINDOW)]), RATE_HZ)
    soundfile.write(folder / "the_end-2.wav", notes(5, seed=6), RATE_HZ)
    (folder / "broken.wav").write_bytes(b"no music " * 100)
    soundfile.write(folder / "short.wav", notes(0.5, seed=7), RATE_HZ)
    soundfile.write(folder / "silent.wav", np.zeros(3 * WINDOW), RATE_HZ)


def config_of(source: str, **overrides: object) -> IngestStage:
    keys = {
        "ingest.source": source,
        "ingest.chunk_frames": FRAMES,
        "ingest.rows_per_shard": 64,
        "ingest.licence": "CC0",
    }
    keys |= {"ingest.held_out_fraction": 0.4, "ingest.max_bad_fraction": 0.4, "cluster.data_workers": 1}
    return load_config(IngestStage, None, keys | {"storage.root": "store", "text.max_tokens": 8} | overrides)


def encode_here(config: IngestStage, *, leave: int = 0) -> list[Path]:
    """Do what an interrupted run has done: encode all but the last `leave` shards, commit nothing."""
    source = open_folder(absolute(config.ingest.source))
    settings = config.ingest
    tracks, digest = find_tracks(source, held_out_fraction=settings.held_out_fraction, licence=settings.licence)
    root, run_id = open_folder(absolute(config.storage.root)), config.run_id(ingest.inputs_of(config, digest))
    artifact, scratch = artifact_folder(root, run_id), run_folder(root, run_id)
    encoder = ShardEncoder(config, source.uri, artifact.uri, scratch.uri)
    seconds = config.derived()["chunk_seconds"]
    plans = plan_shards(tracks, rows_per_shard=settings.rows_per_shard, chunk_seconds=seconds)
    for plan in plans[: len(plans) - leave]:
        encoder({"plan": json.dumps(vars(plan))})
    return sorted(Path(artifact.path).rglob("*.parquet"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of this module, so that one MLflow data base serves it; music in `music`."""
    folder = tmp_path_factory.mktemp("ingest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_music(folder / "music")
        yield folder


@dataclass(frozen=True)
class Made:
    """A data set made by Ray, read back."""

    artifact: Artifact
    rows: dict[str, Rows]

    def file(self, name: str) -> str:
        return read_file(open_folder(self.artifact.uri), name, self.artifact.manifest).decode()

    @property
    def info(self) -> dict:
        return self.artifact.manifest["dataset"]

    def rows_of(self, track: str) -> Rows:
        both = Rows.cat(list(self.rows.values()))
        return both.take(np.flatnonzero(both.track == track))


@pytest.fixture(scope="module")
def made(home: Path, ray_here: None) -> Made:
    artifact = ingest.run(config_of("music"))
    data = open_dataset(artifact.uri)
    rows = {s: Rows.cat(list(read_here(data.uri, data.shards(s)))) for s in ("train", "held_out")}
    return Made(artifact, rows)


@pytest.mark.ray
@pytest.mark.services
def test_every_window_of_music_is_a_row_of_the_codecs_latents(made: Made, home: Path):
    """Each track again, window by window: decode, cut in a loop, encode one at a time."""
    codec = load_codec("mel_pca")
    for track, count in GOOD.items():
        samples = decode(io.BytesIO((home / "music" / track).read_bytes()), sample_rate_hz=RATE_HZ)
        windows = [samples[at : at + WINDOW] for at in range(0, count * WINDOW, WINDOW)]
        expected = torch.cat([codec.encode(torch.from_numpy(w)[None, None]) for w in windows]).numpy()
        assert expected.shape == (count, codec.channels, FRAMES)
        np.testing.assert_allclose(made.rows_of(track).latents, expected, atol=1e-3 * np.abs(expected).max())
    assert sum(map(len, made.rows.values())) == sum(GOOD.values())


@pytest.mark.ray
@pytest.mark.services
def test_the_manifest_tells_shapes_counts_and_statistics_of_the_training_rows(made: Made):
    info, train = made.info, made.rows["train"].latents.astype(np.float64)
    assert info["rows"] == {split: len(rows) for split, rows in made.rows.items()}
    assert (info["latents"]["channels"], info["latents"]["frames"]) == train.shape[1:]
    np.testing.assert_allclose(info["latents"]["mean"], train.mean((0, 2)), rtol=1e-9)
    overall = np.sqrt(train.var((0, 2)).mean())
    np.testing.assert_allclose(info["latents"]["std"], [overall] * train.shape[1], rtol=1e-9)
    assert info["hours"]["train"] == pytest.approx(len(train) * WINDOW / RATE_HZ / 3600, abs=5e-5)
    assert info["codec"]["digest"] == load_codec("mel_pca").digest
    assert (info["text"]["dim"], info["text"]["max_tokens"]) == (384, 8)
    assert info["silent_windows"] == 2


@pytest.mark.ray
@pytest.mark.services
def test_what_is_told_of_a_track_stands_beside_its_rows(made: Made):
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
    assert (bright.text_pooled == bright.text_pooled[0]).all()
    assert not (bright.text_pooled[0] == half.text_pooled[0]).all()


@pytest.mark.ray
@pytest.mark.services
def test_tracks_and_licences_are_kept_with_what_sidecars_add(made: Made):
    tracks = [json.loads(line) for line in made.file("tracks.jsonl").splitlines()]
    assert [t["file"] for t in tracks] == sorted(GOOD)
    known = {t["file"]: t for t in tracks}
    assert known["bright.wav"]["licence"] == "CC BY 4.0"
    assert (known["bright.wav"]["key"], known["bright.wav"]["tempo_bpm"]) == ("A minor", 120.0)
    assert known["half.wav"]["licence"] == "CC0"
    assert made.info["licences"] == ["CC BY 4.0", "CC0"]


@pytest.mark.ray
@pytest.mark.services
def test_files_of_no_use_are_quarantined_with_their_reason(made: Made):
    quarantine = {entry["file"]: entry["message"] for entry in json.loads(made.file("quarantine.json"))}
    assert quarantine.keys() == BAD.keys()
    assert all(reason in quarantine[file] for file, reason in BAD.items())
    assert made.info["bad_files"] == 3


@pytest.mark.ray
@pytest.mark.services
def test_what_is_held_out_is_not_in_training(made: Made, home: Path):
    train, held_out = made.rows["train"], made.rows["held_out"]
    assert len(train)
    assert len(held_out)
    assert not set(train.composition) & set(held_out.composition)
    planned = find_tracks(open_folder("music"), held_out_fraction=0.4, licence="")[0]
    assert set(held_out.track) == {t.file for t in planned if t.split == "held_out"} & GOOD.keys()


@pytest.mark.ray
@pytest.mark.services
def test_the_same_source_again_is_the_same_data_set(made: Made, capsys: pytest.CaptureFixture[str]):
    again = ingest.run(config_of("music"))
    assert again == made.artifact
    assert "is done already, its result is used" in capsys.readouterr().err
    tracker = open_tracker(TrackingConfig())
    assert tracker.resolve("presto-dataset@candidate", "store").id == made.artifact.id
    assert len(tracker.client.search_model_versions("name = 'presto-dataset'")) == 1
    assert not Path(run_folder(open_folder("store"), made.artifact.id).path).exists()


@pytest.mark.ray
@pytest.mark.services
def test_a_source_on_s3_and_a_run_that_was_interrupted_give_the_same_shards(made: Made, object_store: Server):
    """Two encoders, this process before the interruption and a Ray actor after it: bit for bit the same files."""
    remote = open_folder("s3://latents/ingest-test/music")
    for path in Path("music").rglob("*.*"):
        write_bytes(remote, str(path.relative_to("music")), path.read_bytes())
    config = config_of(remote.uri, **{"storage.root": "s3://latents/ingest-test/store"})
    encode_here(config, leave=1)
    there = ingest.run(config)
    assert there.manifest["dataset"]["shards"] == made.info["shards"]
    assert there.manifest["dataset"]["latents"] == made.info["latents"]
    assert there.id != made.artifact.id  # an upload's times are its own: it counts as another source


# --- without Ray: the shards are there already


def test_a_changed_source_is_another_data_set(home: Path, tmp_path: Path):
    write_music(tmp_path / "music")
    ids = []
    for caption in ("first", "first, changed"):
        (tmp_path / "music/half.txt").write_text(caption)
        config = config_of(str(tmp_path / "music"), **{"storage.root": str(tmp_path / "store")})
        encode_here(config)
        artifact = ingest.run(config)
        rows = Rows.cat(list(read_here(artifact.uri, open_dataset(artifact.uri).shards("train"))))
        held_out = Rows.cat(list(read_here(artifact.uri, open_dataset(artifact.uri).shards("held_out"))))
        assert caption in {*rows.caption, *held_out.caption}
        ids.append(artifact.id)
    assert ids[0] != ids[1]


def test_other_codec_weights_make_another_data_set(tmp_path: Path):
    shutil.copytree(Path(presto_core.audio.__file__).parent / "weights", tmp_path / "codec")
    config = config_of("music", **{"codec.path": str(tmp_path / "codec")})
    before = ingest.inputs_of(config, "same source")
    weights = TensorFile.load(tmp_path / "codec" / ENCODER_FILE)
    nudged = {**weights.tensors, "mean": weights.tensors["mean"] + 1e-3}
    TensorFile(weights.settings, nudged).save(tmp_path / "codec" / ENCODER_FILE)
    after = ingest.inputs_of(config, "same source")
    assert config.run_id(before) != config.run_id(after)


def test_too_many_files_of_no_use_are_refused_by_name(home: Path, tmp_path: Path):
    config = config_of("music", **{"ingest.max_bad_fraction": 0.37, "storage.root": str(tmp_path)})
    shards = encode_here(config)
    with pytest.raises(
        SourceError, match=r"3 of 8 files could not be used, more than .*max_bad_fraction=0\.37"
    ) as caught:
        ingest.run(config)
    for file, why in BAD.items():
        assert f"{file}: " in str(caught.value)
        assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert shards
    assert not list(tmp_path.rglob("artifacts/*/manifest.json"))  # so no reader will ever see them


def test_exactly_the_allowed_share_passes():
    bad = [{"file": f"{i}.wav", "message": "silent"} for i in range(29)]
    ingest._require_few_bad(bad, 100, 0.29)  # 0.29 * 100 is below 29 in floating point
    with pytest.raises(SourceError, match=r"29 of 100 files .*4\.wav: silent and 24 more$"):
        ingest._require_few_bad(bad, 100, 0.28)


def test_a_source_that_leaves_nothing_to_train_on_is_refused(home: Path, tmp_path: Path):
    config = config_of("music", **{"ingest.held_out_fraction": 1, "storage.root": str(tmp_path)})
    encode_here(config)
    with pytest.raises(SourceError, match=r"no window for training came out of 8 tracks; lower ingest\.held_out"):
        ingest.run(config)


def test_overlapping_windows_share_their_frames(home: Path, tmp_path: Path):
    """Half a window of overlap: each window's second half is the next one's first, but for the codec's edges."""
    config = config_of("music", **{"ingest.overlap_frames": FRAMES // 2, "storage.root": str(tmp_path)})
    both = Rows.cat([from_parquet(path.read_bytes()) for path in encode_here(config)])
    latents = both.latents[both.track == "the_end-2.wav"].astype(np.float32)
    assert len(latents) == 9  # 5 windows' length holds 9 windows half a window apart
    inner = np.abs(latents[:-1, :, 5:7] - latents[1:, :, 1:3]).max()
    assert inner < 0.02 * np.abs(latents[:-1, :, 5:7] - latents[:-1, :, 1:3]).max()


@pytest.mark.parametrize("rows_per_shard", [1, 10, 1000])
def test_shards_are_planned_in_order_and_by_split(rows_per_shard: int):
    tracks = [Track(f"{i:02d}", split="held_out" if i % 3 == 0 else "train", seconds=40.0 * (i % 2)) for i in range(20)]
    plans = plan_shards(tracks, rows_per_shard=rows_per_shard, chunk_seconds=10.0)
    for split in ("train", "held_out"):
        planned = [t["file"] for p in plans if p.split == split for t in p.tracks]
        assert planned == [t.file for t in tracks if t.split == split]
    assert all({t["split"] for t in p.tracks} == {p.split} for p in plans)
    assert len({p.name for p in plans}) == len(plans)
    for (
        plan
    ) in plans:  # four rows where the length is known, else 32 are guessed; the last track crosses the wanted size
        rows = [4 if t["seconds"] else 32 for t in plan.tracks]
        assert sum(rows[:-1]) < rows_per_shard
    assert rows_per_shard < 1000 or len(plans) == 2
