"""Captions longer than the text encoder reads are counted in the shards and printed by ingest."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pipelines.ingest.latent_cache import write_segment
from pipelines.ingest.shard_writer import SegmentSlice, ShardPlan, ShardWriter
from pipelines.ingest.sources import Track
from pipelines.stages.ingest import _print_warnings
from pipelines.storage.filesystem import open_folder
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage

LONG = "slow piano " * 40


@pytest.mark.parametrize(("split", "files"), [("train", ["long.wav", "wording.wav"]), ("test", ["long.wav"])])
def test_a_shard_names_the_tracks_of_which_a_caption_is_cut(tmp_path: Path, split: str, files: list[str]):
    """A further wording counts only where it is used."""
    tracks = [
        Track("short.wav", caption="piano", split=split),
        Track("long.wav", caption=LONG, split=split),
        Track("wording.wav", caption="piano", captions=(LONG,), split=split),
    ]
    cache, artifact, scratch = (open_folder(str(tmp_path / name)) for name in ("cache", "artifact", "scratch"))
    for i in range(len(tracks)):
        latents, starts = np.zeros((4, 2, 8), np.float16), np.arange(4.0)
        write_segment(cache, f"{i:08x}", 0, latents=latents, start_seconds=starts)
    parts = [SegmentSlice(asdict(track), f"{i:08x}", 0, 4, 0, 4) for i, track in enumerate(tracks)]
    writer = ShardWriter(load_config(IngestStage, None, {}), cache.uri, artifact, scratch)
    plan = ShardPlan(f"{split}-00000", split, parts)
    writer({"plan": json.dumps({"name": plan.name, "split": split, "parts": [asdict(part) for part in parts]})})
    assert json.loads((tmp_path / f"scratch/{plan.name}.json").read_text())["cut_captions"] == files


def test_the_number_of_cut_captions_is_printed(capsys: pytest.CaptureFixture[str]):
    info = {"rows": {"train": 1, "validation": 1, "test": 1}}
    _print_warnings(info)
    assert "max_tokens" not in capsys.readouterr().err
    _print_warnings(info | {"cut_captions": 12, "text": {"max_tokens": 40}})
    printed = " ".join(capsys.readouterr().err.split())
    assert "captions of 12 tracks are cut" in printed
    assert "text.max_tokens=40" in printed
