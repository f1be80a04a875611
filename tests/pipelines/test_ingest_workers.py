"""The result of ingest does not depend on which Ray worker decodes and which encodes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import ray
import soundfile

from pipelines.ingest.sources import find_tracks
from pipelines.ingest.workers import FileEncoder, SegmentEncoder, decode_track
from presto_core.config.data import IngestConfig
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage
from tests.pipelines.test_segments import encoding
from tests.support.music import FRAMES, RATE_HZ, notes, write_awkward_but_good, write_bad


@pytest.mark.ray
@pytest.mark.services
def test_files_come_to_the_same_whether_one_process_decodes_and_encodes_them_or_two_do(shared_ray, tmp_path: Path):
    """With GPUs, tasks decode and actors encode; with CPUs, one actor does both."""
    music = tmp_path / "music"
    write_awkward_but_good(music)
    write_bad(music)
    soundfile.write(music / "long.wav", notes(600, seed=1, rate_hz=RATE_HZ), RATE_HZ)
    config = load_config(IngestStage, None, {"ingest.chunk_frames": FRAMES})
    tracks = find_tracks(IngestConfig(source=str(music)))
    apart, together = (str(tmp_path / name) for name in ("apart", "together"))
    known = [ray.put(frozenset())]
    both, encoder = FileEncoder(config, encoding(), together, known), SegmentEncoder(config, apart)
    for i, track in enumerate(tracks):
        item = json.dumps([i, asdict(track)])
        once = both({"item": item})
        rows = [encoder(row(batch)) for batch in decode_track({"item": [item]}, encoding(), apart, known)]
        assert [r["end"] for r in rows if r["end"]] == [once["end"]], track.file
        assert sum(r["segments"] for r in rows) == once["segments"], track.file
        assert [r["failure"] for r in rows if r["failure"]] == [once["failure"]] * bool(once["failure"])
    files = {p.relative_to(together) for p in Path(together).rglob("*.parquet")}
    assert len(files) >= 10
    assert {p.relative_to(apart) for p in Path(apart).rglob("*.parquet")} == files
    assert all((Path(apart) / f).read_bytes() == (Path(together) / f).read_bytes() for f in files)


def row(batch: dict[str, list[object]]) -> dict[str, object]:
    return {name: values[0] for name, values in batch.items()}
