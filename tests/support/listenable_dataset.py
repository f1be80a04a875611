"""A small data set of real music of the embedded codec, with captions, tracks and names as nobody would wish them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch

from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.layout import TRACKS
from pipelines.data.shards import to_parquet, write_shard
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import commit
from presto_core.audio.load_codec import load_codec
from presto_core.diffusion.conditioning import UNKNOWN_KEY
from presto_core.networks.flops import LatentShape
from tests.support.music import RATE_HZ, notes
from tests.support.synthetic_dataset import make_dataset, rows

FRAMES = 64  # 3 s
SHAPE = LatentShape(64, FRAMES, 8, 3)
HOSTILE_CAPTION = '<script>alert(1)</script> & "quotes" [/red] \x1b[31mred <img src=x onerror=alert(2)>'
HOSTILE_TRACK = "a[/red]\x1b[31mx.flac"
CAPTIONS = (
    "calm piano with soft strings, slow and warm, 72 bpm, A minor",
    HOSTILE_CAPTION,
    "an unusually long caption: " + "a slow waltz for clarinet, accordion and upright bass, " * 5,
    "",
    "a_caption_of_one_word_" * 12,
    "弦楽四重奏、ゆっくり",
)
WORDINGS = ("a slow piece for piano", "<b>warm</b> strings")
TRAIN_ROWS, HELD_OUT_ROWS = 6, 2


def make_listenable_dataset(uri: str) -> LatentDataset:
    """Commit six rows of `train`, of two tracks, and two rows of each other split; one row of `test` is NaN."""
    data = make_dataset(uri, shape=SHAPE, shard_rows=(TRAIN_ROWS,), held_out_rows=HELD_OUT_ROWS)
    folder, codec, manifest = open_folder(uri), load_codec("mel_pca"), json.loads(json.dumps(data.manifest))
    info = manifest["dataset"]
    audio = torch.from_numpy(notes(FRAMES * TRAIN_ROWS / 8, seed=1).astype(np.float32))[: FRAMES * 2048 * TRAIN_ROWS]
    latents = codec.encode(audio.reshape(TRAIN_ROWS, 1, FRAMES * 2048)).numpy().astype(np.float16)
    for seed, shard in enumerate(info["shards"]):
        part = replace(rows(shard["rows"], seed, SHAPE), latents=latents[: shard["rows"]])
        if shard["split"] == "train":
            tracks = np.array(["piano.wav"] * 3 + [HOSTILE_TRACK] * 3, dtype=object)
            part = replace(
                part,
                caption=np.array(CAPTIONS, dtype=object),
                track=tracks,
                tempo_bpm=np.array([72, 96.5, np.nan, 0, 120, 80], np.float32),
                key=np.array([21, 0, UNKNOWN_KEY, 3, 4, 5], np.int8),
            )
        elif shard["split"] == "test":
            spoiled = part.latents.copy()
            spoiled[1, 0, 0] = np.nan
            part = replace(part, latents=spoiled)
        shard |= write_shard(folder, shard["file"], to_parquet(part))
    info["codec"]["digest"] = codec.digest
    counts = {"train": TRAIN_ROWS, "validation": HELD_OUT_ROWS, "test": HELD_OUT_ROWS}
    hours = {split: count * FRAMES * 2048 / RATE_HZ / 3600 for split, count in counts.items()}
    info |= {"rows": counts, "hours": hours, "licences": ["CC0-1.0"]}
    listed = [
        {"file": "piano.wav", "caption": CAPTIONS[0], "captions": list(WORDINGS), "licence": "CC0-1.0",
         "title": "Nocturne", "composer": "N. Obody", "source": "https://example.org/x", "caption_source": "manifest"},
        {"file": HOSTILE_TRACK, "caption": HOSTILE_CAPTION, "licence": "", "caption_source": "tags"},
    ]  # fmt: skip
    commit(folder, manifest, {TRACKS: "".join(json.dumps(track) + "\n" for track in listed).encode()})
    return open_dataset(uri)
