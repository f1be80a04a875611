"""Write encoded segments and captions as Parquet shards of equal size, one actor call per shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pipelines.data.layout import SPLITS
from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import FullRows, to_parquet, write_shard
from pipelines.ingest.latent_cache import EncodedContent, read_segment
from pipelines.ingest.sources import Track
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import write_bytes
from presto_core.audio.latent_stats import LatentStats
from presto_core.config.schema import IngestStage
from presto_core.diffusion.conditioning import key_index
from presto_core.text.encoder import TextEmbedding, load_text_encoder


@dataclass(frozen=True)
class CuratedTrack:
    """A track of the data set with its metadata, and its encoded content."""

    track: Track
    content: EncodedContent


@dataclass(frozen=True)
class SegmentSlice:
    """Rows [start, stop) of one encoded segment, which has `rows` rows, of a recording of `seconds`."""

    track: dict[str, Any]
    digest: str
    segment: int
    rows: int
    start: int
    stop: int
    seconds: float = 0.0


@dataclass(frozen=True)
class ShardPlan:
    """The content of one shard: its segment slices, in order."""

    name: str
    split: str
    parts: list[SegmentSlice]


def plan_shards(entries: list[CuratedTrack], *, rows_per_shard: int) -> list[ShardPlan]:
    """Plan shards of exactly `rows_per_shard` rows, except for the last one of a split.

    Tracks are sorted by content hash, so that each shard mixes music from the whole source and the plan depends on
    content only, not on the order of arrival.
    """
    plans: list[ShardPlan] = []
    sorted_tracks = sorted(entries, key=lambda entry: entry.content.digest)
    for split in SPLITS:
        group: list[SegmentSlice] = []
        num_rows = 0
        for part in _iter_slices(sorted_tracks, split):
            start = part.start
            while start < part.stop:
                stop = min(part.stop, start + rows_per_shard - num_rows)
                group.append(replace(part, start=start, stop=stop))
                num_rows, start = num_rows + stop - start, stop
                if num_rows == rows_per_shard:
                    plans.append(ShardPlan(f"{split}-{len(plans):05d}", split, group))
                    group, num_rows = [], 0
        if group:
            plans.append(ShardPlan(f"{split}-{len(plans):05d}", split, group))
    return plans


def _iter_slices(entries: list[CuratedTrack], split: str) -> Iterator[SegmentSlice]:
    """Yield the whole segments of a split's tracks."""
    for entry in entries:
        if entry.track.split == split:
            for segment, rows in enumerate(entry.content.rows):
                yield SegmentSlice(
                    asdict(entry.track), entry.content.digest, segment, rows, 0, rows, entry.content.seconds
                )


class ShardWriter:
    """A Ray Data actor that writes one planned shard per call and stores its description in the scratch folder."""

    def __init__(self, config: IngestStage, cache_uri: str, artifact: Folder, scratch: Folder) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        self.cache_folder, self.artifact, self.scratch = open_folder(cache_uri), artifact, scratch
        text, frames = config.text, config.ingest.chunk_frames
        self.with_timing = text.kind == "diffusers"
        self.text = load_text_encoder(text.kind, path=text.path, max_tokens=text.max_tokens, frames=frames)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        fields = json.loads(item["plan"])
        plan = ShardPlan(fields["name"], fields["split"], [SegmentSlice(**part) for part in fields["parts"]])
        too_long = self._find_tracks_with_long_captions(plan.parts)
        rows = self._read_rows(plan.parts)
        file = f"shards/{plan.name}.parquet"
        entry = write_shard(self.artifact, file, to_parquet(rows))
        stats = LatentStats.from_latents(rows.latents)
        result = {
            "shard": {"file": file, "split": plan.split, "rows": len(rows), **entry},
            "stats": [stats.count, stats.mean.tolist(), stats.m2.tolist()],
            "shape": list(rows.latents.shape[1:]),
            "captioned": int(rows.text_mask.any(axis=1).sum()),
            "cut_captions": too_long,
            "text": {"name": self.text.name, "digest": self.text.digest, "dim": self.text.dim},
        }
        write_bytes(self.scratch, f"{plan.name}.json", json.dumps(result).encode())
        return {"name": plan.name}

    def _find_tracks_with_long_captions(self, parts: list[SegmentSlice]) -> list[str]:
        """Return the files of which a caption has more tokens than the text encoder reads."""
        captions = sorted({caption for part in parts for caption in choose_captions(part)})
        too_long = {caption for caption in captions if self.text.find_cut_text(caption)}
        return sorted({part.track["file"] for part in parts if too_long.intersection(choose_captions(part))})

    @torch.inference_mode()
    def _read_rows(self, parts: list[SegmentSlice]) -> FullRows:
        captions_of_parts = [choose_captions(part) for part in parts]
        captions = sorted({caption for chosen in captions_of_parts for caption in chosen})
        texts, index = self.text.encode(captions), {caption: i for i, caption in enumerate(captions)}
        track_rows = []
        for part, chosen in zip(parts, captions_of_parts):
            latents, starts = read_segment(self.cache_folder, part.digest, part.segment, rows=part.rows)
            which, text_rows = slice(part.start, part.stop), [index[caption] for caption in chosen]
            rows = _make_rows(Track(**part.track), latents[which], starts[which], texts, text_rows, chosen)
            if self.with_timing:
                total = np.full_like(rows.start_seconds, part.seconds)
                rows = replace(rows, timing=np.stack([rows.start_seconds, total], axis=1).astype(np.float32))
            track_rows.append(rows)
        return FullRows.concatenate(track_rows)


def choose_captions(part: SegmentSlice) -> list[str]:
    """Return the caption of each row: wordings take turns in training; elsewhere every row has the whole caption.

    The turn starts at a place that depends on the audio, so that no wording belongs to beginnings of tracks.
    """
    track = part.track
    wordings = [str(track["caption"])]
    if track["split"] == "train":
        wordings += map(str, track.get("captions", ()))
    first = int(part.digest[:8], 16) + part.segment
    return [wordings[(first + row) % len(wordings)] for row in range(part.start, part.stop)]


def _make_rows(
    track: Track, latents: Array, starts: Array, texts: TextEmbedding, text_rows: list[int], captions: list[str]
) -> FullRows:
    """Join a slice's latents [R, C, T] with the text embeddings `text_rows` and the fields of its track."""

    def repeat(value: Any, dtype: Any) -> Any:
        return np.repeat(np.asarray(value, dtype=dtype)[None], len(latents), axis=0)

    return FullRows(
        latents=latents,
        text_pooled=np.asarray(texts.pooled[text_rows], dtype=np.float16),
        text_tokens=np.asarray(texts.tokens[text_rows], dtype=np.float16),
        text_mask=np.asarray(texts.mask[text_rows], dtype=bool),
        tempo_bpm=repeat(np.nan if track.tempo_bpm is None else track.tempo_bpm, np.float32),
        key=repeat(key_index(track.key), np.int8),
        caption=np.asarray(captions, dtype=object),
        track=repeat(track.file, object),
        composition=repeat(track.composition, object),
        start_seconds=starts,
    )
