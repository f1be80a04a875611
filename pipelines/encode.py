"""The encoding half of ingest: planned groups of tracks -> Parquet shards, one actor call a shard."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.shards import Array, Rows, to_parquet
from pipelines.sources import Track, described
from pipelines.storage import open_folder
from presto_core.audio.chunks import AudioError, decode, windows
from presto_core.audio.codec import load_codec
from presto_core.audio.latent_stats import LatentStats
from presto_core.audio.text import TextEmbedding, load_text_encoder
from presto_core.config.schema import IngestStage
from presto_core.diffusion.conditioning import key_index
from presto_core.registry.store import Folder, StoreError, reason, write_bytes

ENCODE_BATCH = 16  # windows
SILENCE_RMS = 1e-3  # -60 dB: a window below holds no music
ROWS_OF_UNKNOWN_LENGTH = 32  # guessed for a track whose length no manifest states


@dataclass(frozen=True)
class ShardPlan:
    """Tracks that become one shard."""

    name: str
    split: str
    tracks: list[dict[str, Any]]


def plan_shards(tracks: list[Track], *, rows_per_shard: int, chunk_seconds: float) -> list[ShardPlan]:
    """Group tracks, in order and by split, into shards of about the wanted number of rows."""
    plans: list[ShardPlan] = []
    for split in ("train", "held_out"):
        group: list[dict[str, Any]] = []
        rows = 0.0
        members = [t for t in tracks if t.split == split]
        for track in members:
            group.append(track.to_dict())
            rows += track.seconds // chunk_seconds or ROWS_OF_UNKNOWN_LENGTH
            if rows >= rows_per_shard or track is members[-1]:
                plans.append(ShardPlan(f"{split}-{len(plans):05d}", split, group))
                group, rows = [], 0.0
    return plans


class ShardEncoder:
    """A Ray Data actor: one planned shard in, one Parquet file written, its description out."""

    def __init__(self, config: IngestStage, source_uri: str, artifact_uri: str, scratch_uri: str) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        self.config = config
        self.source, self.artifact, self.scratch = map(open_folder, (source_uri, artifact_uri, scratch_uri))
        self.codec = load_codec(config.codec.kind, path=config.codec.path or None)
        self.text = load_text_encoder(config.text.kind, path=config.text.path, max_tokens=config.text.max_tokens)
        self.described = {
            "codec": {
                "kind": config.codec.kind,
                "path": config.codec.path,
                "digest": self.codec.digest,
                "sample_rate_hz": self.codec.sample_rate_hz,
                "hop": self.codec.hop,
            },
            "text": {
                "kind": config.text.kind,
                "path": config.text.path,
                "name": self.text.name,
                "digest": self.text.digest,
                "dim": self.text.dim,
                "max_tokens": self.text.max_tokens,
            },
        }

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        plan = ShardPlan(**json.loads(item["plan"]))
        parts, bad, silent, used = [], [], 0, []
        for fields in plan.tracks:
            track = Track(**fields)
            try:
                rows, dropped, track = self._encode(track)
            except (AudioError, UnicodeDecodeError, json.JSONDecodeError, ValueError) as error:
                bad.append({"file": track.file, "error": type(error).__name__, "message": str(error)})
                continue
            parts.append(rows)
            used.append(track.to_dict())
            silent += dropped
        result: dict[str, Any] = {"bad": bad, "silent": silent, "tracks": used, **self.described}
        if parts:
            result |= self._write(plan, Rows.cat(parts))
        write_bytes(self.scratch, f"{plan.name}.json", json.dumps(result).encode())
        return {"result": json.dumps(result)}

    def _encode(self, track: Track) -> tuple[Rows, int, Track]:
        """A track's rows, how many silent windows were left out, and the track with what its sidecar or tags tell."""
        settings = self.config.ingest
        content = read_whole(self.source, track.file)
        track = described(track, content, self.source)
        samples = decode(io.BytesIO(content), sample_rate_hz=self.codec.sample_rate_hz)
        length = settings.chunk_frames * self.codec.hop
        cut = windows(samples, length=length, step=length - settings.overlap_frames * self.codec.hop)
        loud = np.sqrt((cut**2).mean(axis=1)) >= SILENCE_RMS
        if not loud.any():
            raise AudioError("holds silence only")
        audio = torch.from_numpy(np.ascontiguousarray(cut[loud]))[:, None]
        with torch.inference_mode():
            latents = torch.cat([self.codec.encode(part) for part in audio.split(ENCODE_BATCH)]).numpy()
            text = self.text.encode([track.caption])
        if not np.isfinite(latents).all():
            raise AudioError("encodes to latents that are not finite")
        return _rows(track, latents, text), int((~loud).sum()), track

    def _write(self, plan: ShardPlan, rows: Rows) -> dict[str, Any]:
        file = f"shards/{plan.name}.parquet"
        entry = write_bytes(self.artifact, file, to_parquet(rows))
        stats = LatentStats.of(rows.latents)
        return {
            "shard": {"file": file, "split": plan.split, "rows": len(rows), "sha256": entry["sha256"]},
            "bytes": entry["bytes"],
            "stats": [stats.count, stats.mean.tolist(), stats.m2.tolist()],
            "shape": list(rows.latents.shape[1:]),
        }


def _rows(track: Track, latents: Array, text: TextEmbedding) -> Rows:
    count = len(latents)

    def repeated(value: Any, dtype: Any) -> Any:
        return np.repeat(np.asarray(value, dtype=dtype), count, axis=0)

    tempo = np.nan if track.tempo_bpm is None else track.tempo_bpm
    return Rows(
        latents=latents.astype(np.float16),
        text_pooled=repeated(text.pooled, np.float16),
        text_tokens=repeated(text.tokens, np.float16),
        text_mask=repeated(text.mask, bool),
        tempo_bpm=repeated([tempo], np.float32),
        key=repeated([key_index(track.key)], np.int8),
        caption=repeated([track.caption], object),
        track=repeated([track.file], object),
        composition=repeated([track.composition], object),
    )


def read_whole(folder: Folder, name: str) -> bytes:
    try:
        with folder.filesystem.open_input_file(folder.file(name)) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise AudioError("is listed in the manifest but not there") from None
    except OSError as error:
        raise StoreError(f"cannot read {folder.uri}/{name}: {reason(error)}") from error
