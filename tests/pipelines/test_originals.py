"""The recordings of a data set's rows: found by content, decoded as ingest read them, and refused if changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from blake3 import blake3

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate.originals import find_originals
from pipelines.ingest.latent_cache import LatentCache, SourceRecord
from pipelines.ingest.segments import EncodeSettings
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import artifact_folder, commit_artifact, read_artifact
from presto_core.audio.load_codec import load_codec
from presto_core.config.loader import load_config, settings_to_yaml
from presto_core.config.schema import IngestStage
from presto_core.errors import UserError

RATE_HZ, FRAMES, OVERLAP, HOP = 44_100, 20, 10, 2048


def save_music(path: Path, *, seed: int) -> np.ndarray:
    samples = (0.3 * np.random.default_rng(seed).standard_normal(4 * RATE_HZ)).astype(np.float32)
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    return samples


@pytest.fixture
def store(tmp_path: Path) -> tuple[LatentDataset, dict[str, Path]]:
    """A data set of two tracks with its latent cache's journal, and the files of the tracks."""
    config = load_config(IngestStage, None, [f"ingest.chunk_frames={FRAMES}", f"ingest.overlap_frames={OVERLAP}"])
    root = open_folder(str(tmp_path / "store"))
    cache = LatentCache(root.child("encoded").child(EncodeSettings.from_config(config, load_codec("mel_pca")).key))
    paths = {name: tmp_path / "music" / name for name in ("a.wav", "b.wav")}
    (tmp_path / "music").mkdir()
    rows = []
    for seed, (name, path) in enumerate(paths.items()):
        save_music(path, seed=seed)
        digest, stat = blake3(path.read_bytes()).hexdigest(), path.stat()
        stamp = json.dumps([[(stat.st_size, stat.st_mtime_ns)], True])
        cache.add(source_record=SourceRecord(str(path), stamp, digest))
        rows.append(json.dumps({"file": name, "blake3": digest}) + "\n")
    cache.save()
    folder = artifact_folder(root, "0123456789abcdef")
    codec = {"kind": "mel_pca", "path": "", "digest": load_codec("mel_pca").digest}
    commit_artifact(
        folder,
        kind="dataset",
        artifact_id="0123456789abcdef",
        config_yaml=settings_to_yaml(config),
        parents={},
        files={"tracks.jsonl": "".join(rows).encode()},
        details={"dataset": {"shards": [], "codec": codec}},
    )
    return LatentDataset(folder.uri, read_artifact(folder).manifest), paths


def test_windows_are_the_samples_that_were_encoded(store) -> None:
    dataset, paths = store
    originals, why = find_originals(dataset, ["b.wav", "a.wav", "b.wav"])
    assert why == ""
    assert originals is not None
    second = float(np.float32((FRAMES - OVERLAP) * HOP / RATE_HZ))  # as a row stores it
    audio = originals.read(["b.wav", "a.wav"], [second, 0.0])
    assert audio.shape == (2, 1, FRAMES * HOP)
    for window, name, start in ((audio[0], "b.wav", (FRAMES - OVERLAP) * HOP), (audio[1], "a.wav", 0)):
        samples, _ = soundfile.read(paths[name], dtype="float32")
        assert np.array_equal(window[0], samples[start : start + FRAMES * HOP])


@pytest.mark.parametrize("change", ["deleted", "other content", "unknown track"])
def test_recordings_that_are_not_as_they_were_are_counted_and_none_is_used(store, change: str) -> None:
    dataset, paths = store
    if change == "deleted":
        paths["b.wav"].unlink()
    if change == "other content":
        save_music(paths["b.wav"], seed=7)
    wanted = ["a.wav", "c.wav" if change == "unknown track" else "b.wav"]
    originals, why = find_originals(dataset, wanted)
    assert originals is None
    assert why.startswith("1 of 2 recordings")
    assert wanted[1] in why


def test_a_change_during_the_evaluation_is_named(store) -> None:
    dataset, paths = store
    originals, _ = find_originals(dataset, paths)
    assert originals is not None
    save_music(paths["a.wav"], seed=9)
    with pytest.raises(UserError, match=r"a\.wav has changed"):
        originals.read(["a.wav"], [0.0])


def test_a_window_that_the_file_does_not_have_is_named(store) -> None:
    dataset, paths = store
    originals, _ = find_originals(dataset, paths)
    assert originals is not None
    with pytest.raises(UserError, match="no window at 100 s"):
        originals.read(["a.wav"], [100.0])
