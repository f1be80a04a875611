"""What encodes in Ray's workers: a file goes through in segments of a minute or two.

So memory depends neither on how long files are nor on how many.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipelines.ingest.latent_cache import (
    Failure,
    segment_name,
    write_segment,
)
from pipelines.ingest.segments import (
    Encoding,
    End,
    Segment,
    opened,
)
from pipelines.ingest.sources import Track
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.audio.chunks import AudioError, Waveform
from presto_core.audio.load_codec import load_codec
from presto_core.config.schema import IngestStage
from presto_core.errors import UserError

ENCODE_BATCH = 16  # windows


def decode_track(
    batch: dict[str, Any], encoding: Encoding, pool_uri: str, known: list[Any]
) -> Iterator[dict[str, list[Any]]]:
    """A Ray Data task: one track in, a row for each segment out, the last one with what the track came to.

    What the user can mend is said in a row: raised in a task, Ray would bury the sentence.
    """
    import ray

    index, fields = json.loads(batch["item"][0])
    track = Track(**fields)
    try:
        source, pool = open_folder(track.place), open_folder(pool_uri)
        held = _blank(index)
        for digest, found in opened(track, source, encoding, known=_fetched(ray, known[0])):
            if isinstance(found, End):
                yield held | {"end": [json.dumps(asdict(found))]}
            elif found.number:
                yield held
            if isinstance(found, Segment):
                held = _row(index, digest, found, pool)
    except UserError as error:
        yield _blank(index) | {"error": [str(error)]}


@lru_cache(maxsize=1)
def _fetched(ray: Any, reference: Any) -> frozenset[str]:
    """Contents that need no decoding; read once a worker."""
    return frozenset(ray.get(reference))


def _blank(index: int) -> dict[str, list[Any]]:
    return {
        "index": [index], "digest": [""], "segment": [-1], "audio": [b""], "shape": ["[]"], "starts": ["[]"],
        "end": [""], "failure": [""], "error": [""],
    }  # fmt: skip


def _row(index: int, digest: str, found: Segment, pool: Folder) -> dict[str, list[Any]]:
    blank = _blank(index) | {"digest": [digest], "segment": [found.number]}
    if not len(found.audio) or pool.exists(segment_name(digest, found.number)):
        return blank
    told = {"shape": [json.dumps(found.audio.shape)], "starts": [json.dumps(found.starts.tolist())]}
    return blank | told | {"audio": [found.audio.tobytes()]}


class Encoder:
    """Codec and pool of one process."""

    def __init__(self, config: IngestStage, pool_uri: str) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        device = "cuda" if config.cluster.gpus_per_worker else "cpu"
        self.codec = load_codec(config.codec.kind, path=config.codec.path or None, device=device)
        self.pool = open_folder(pool_uri)

    def keep(self, digest: str, segment: Segment) -> Failure | None:
        """Write a segment's latents to the pool, or say why there are none."""
        try:
            latents = self._encoded(segment.audio)
        except Exception as error:  # of whatever kind: one file's trouble is not the run's
            return Failure("encode", type(error).__name__, " ".join(str(error).split()))
        starts = segment.starts / self.codec.sample_rate_hz
        write_segment(self.pool, digest, segment.number, latents=latents, start_seconds=starts)
        return None

    @torch.inference_mode()
    def _encoded(self, audio: Waveform) -> Any:
        """[R, channels, window] -> [R, C, T] float16."""
        parts = torch.from_numpy(audio).split(ENCODE_BATCH)
        latents = torch.cat([self.codec.encode(part).cpu() for part in parts]).numpy()
        if not np.isfinite(latents).all():
            raise AudioError("encodes to latents that are not finite")
        return latents.astype(np.float16)


class FileEncoder:
    """A Ray Data actor: one track in, its latents written to the pool, what the track came to out."""

    def __init__(self, config: IngestStage, encoding: Encoding, pool_uri: str, known: list[Any]) -> None:
        import ray

        self.encoder, self.encoding, self.known = Encoder(config, pool_uri), encoding, ray.get(known[0])

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        index, fields = json.loads(item["item"])
        track, pool = Track(**fields), self.encoder.pool
        row = {"index": index, "segments": 0, "end": "", "failure": ""}
        there = True
        for digest, found in opened(track, open_folder(track.place), self.encoding, known=self.known):
            if isinstance(found, End):
                row["end"] = json.dumps(asdict(found))
                continue
            row["segments"] += 1
            if row["failure"] or not len(found.audio):
                continue
            # they were written in order: where one is not there, those after it are not, but for rare ones made again
            if there := there and pool.exists(segment_name(digest, found.number)):
                continue
            if failure := self.encoder.keep(digest, found):
                row["failure"] = json.dumps(asdict(failure))
        return row


class SegmentEncoder:
    """A Ray Data actor: audio of one segment in, its latents written to the pool; what else there is goes through."""

    def __init__(self, config: IngestStage, pool_uri: str) -> None:
        self.encoder = Encoder(config, pool_uri)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        told = {name: row[name] for name in ("index", "end", "failure", "error")}
        told["segments"] = int(row["segment"] >= 0)
        if row["audio"]:
            audio = np.frombuffer(bytearray(row["audio"]), np.float32).reshape(json.loads(row["shape"]))
            segment = Segment(row["segment"], audio, np.array(json.loads(row["starts"])))
            if failure := self.encoder.keep(row["digest"], segment):
                told["failure"] = json.dumps(asdict(failure))
        return told
