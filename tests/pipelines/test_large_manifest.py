"""A data set of 100,000 shards is opened at once, in little memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipelines.data.dataset import open_dataset

SHARDS = 100_000
DIGEST = "0123456789abcdef" * 4
LATENTS = {"channels": 1, "frames": 1, "mean": [0.0], "std": [1.0]}


def read_memory(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def test_a_manifest_of_many_shards_is_opened_at_once_in_little_memory(tmp_path: Path):
    row = {"rows": 4096, "bytes": 2**28, "blake3": DIGEST, "sha256": DIGEST, "split": "train"}
    shards = [row | {"file": f"shards/train-{number:06d}.parquet"} for number in range(SHARDS)]
    manifest = {"schema_version": 1, "kind": "dataset", "files": {}, "dataset": {"shards": shards, "latents": LATENTS}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True))
    del shards, manifest
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began_s = read_memory("VmRSS"), time.process_time()
    dataset = open_dataset(str(tmp_path))
    assert len(dataset.shards("train")) == SHARDS
    opened_s = time.process_time() - began_s  # of the processor: others may use the cores meanwhile
    print(f"{opened_s:.2f} s, {(read_memory('VmHWM') - before) / 1e6:.0f} MB")
    assert read_memory("VmHWM") - before <= 300e6
    assert opened_s <= 2
