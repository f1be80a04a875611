"""A small committed data set of random latents, to test training without audio."""

from __future__ import annotations

import numpy as np

from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.shards import FullRows, to_parquet, write_shard
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import commit_artifact
from presto_core.audio.latent_stats import LatentStats
from presto_core.networks.flops import LatentShape

CHANNELS, FRAMES, TEXT_DIM, TOKENS = 4, 8, 8, 3
SHAPE = LatentShape(CHANNELS, FRAMES, TEXT_DIM, TOKENS)


def rows(count: int, seed: int, shape: LatentShape = SHAPE) -> FullRows:
    """Return rows whose captions number them: c<seed>-<index>."""
    rng = np.random.default_rng(seed)
    return FullRows(
        latents=(3 + 2 * rng.standard_normal((count, shape.channels, shape.frames))).astype(np.float16),
        text_pooled=rng.standard_normal((count, shape.text_dim)).astype(np.float16),
        text_tokens=rng.standard_normal((count, shape.text_tokens, shape.text_dim)).astype(np.float16),
        text_mask=np.ones((count, shape.text_tokens), dtype=bool),
        tempo_bpm=np.arange(count, dtype=np.float32) + 1000 * seed,
        key=(np.arange(count) % 24).astype(np.int8),
        caption=np.array([f"c{seed}-{i}" for i in range(count)], dtype=object),
        track=np.array([f"t{seed}"] * count, dtype=object),
        composition=np.array([f"k{seed}"] * count, dtype=object),
        start_seconds=np.arange(count, dtype=np.float32),
    )


def make_dataset(
    uri: str,
    *,
    shard_rows: tuple[int, ...] = (10, 7, 13),
    held_out_rows: int = 8,
    poisoned_row: int | None = None,
    shape: LatentShape = SHAPE,
    splits: tuple[str, ...] = ("validation", "test"),
) -> LatentDataset:
    """Commit a data set of the given shards at `uri`; `poisoned_row` of the first gets a NaN not in the statistics.

    Args:
        shard_rows: rows of each shard of `train`.
        held_out_rows: rows of each of the other `splits`, which have one shard each.
        splits: ("held_out",) makes a data set of former times.
    """
    folder = open_folder(uri)
    shard_splits = ["train"] * len(shard_rows) + list(splits)
    counts = [*shard_rows, *[held_out_rows] * len(splits)]
    parts = [rows(n, seed, shape) for seed, n in enumerate(counts)]
    stats = LatentStats.merge_all([LatentStats.from_latents(p.latents) for p in parts[: len(shard_rows)]])
    if poisoned_row is not None:
        parts[0].latents[poisoned_row, 0, 0] = np.nan
    shards = []
    for seed, (split, part) in enumerate(zip(shard_splits, parts)):
        file = f"shards/{seed}.parquet"
        entry = write_shard(folder, file, to_parquet(part))
        shards.append({"file": file, "split": split, "rows": len(part), **entry})
    info = {
        "shards": shards,
        "latents": {
            "channels": shape.channels,
            "frames": shape.frames,
            "mean": stats.mean.tolist(),
            "std": [stats.std] * shape.channels,
        },
        "codec": {"kind": "mel_pca", "path": "", "digest": "none", "sample_rate_hz": 44100, "hop": 2048},
        "text": {
            "kind": "minilm",
            "path": "",
            "name": "x",
            "digest": "none",
            "dim": shape.text_dim,
            "max_tokens": shape.text_tokens,
        },
    }
    commit_artifact(
        folder, kind="dataset", artifact_id="0" * 16, config_yaml="", parents={}, files={}, details={"dataset": info}
    )
    return open_dataset(uri)
