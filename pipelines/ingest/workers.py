"""Decoding tasks and encoding actors for Ray workers.

Files pass through in segments of a few minutes, so that memory depends neither on their length nor on their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipelines.cluster.device import select_worker_device
from pipelines.ingest.latent_cache import IngestFailure, segment_name, write_segment
from pipelines.ingest.segments import EncodeSettings, FileResult, Segment, segment_file
from pipelines.ingest.sources import Track
from pipelines.storage.filesystem import open_folder, open_source
from presto_core.artifacts.folder import Folder
from presto_core.audio.chunks import AudioError, Waveform
from presto_core.audio.load_codec import load_codec
from presto_core.config.schema import IngestStage
from presto_core.errors import UserError

ENCODE_BATCH = 16  # windows


def decode_track(
    batch: dict[str, Any], encoding: EncodeSettings, cache_uri: str, known_refs: list[Any]
) -> Iterator[dict[str, list[Any]]]:
    """Decode one track in a Ray Data task; yield a row per segment, the last one with the track's FileResult.

    A UserError is returned in a row, because Ray would wrap one raised in a task and hide its message.
    """
    index, fields = json.loads(batch["item"][0])
    track = Track(**fields)
    try:
        source, cache_folder = open_source(track.source_uri), open_folder(cache_uri)
        pending = _empty_row(index)
        for digest, segment_or_result in segment_file(
            track, source, encoding, known_digests=_get_known_digests(known_refs[0])
        ):
            if isinstance(segment_or_result, FileResult):
                yield pending | {"end": [json.dumps(asdict(segment_or_result))]}
            elif segment_or_result.number:
                yield pending
            if isinstance(segment_or_result, Segment):
                pending = _segment_row(index, digest, segment_or_result, cache_folder)
    except UserError as error:
        yield _empty_row(index) | {"error": [str(error)]}


@lru_cache(maxsize=1)
def _get_known_digests(reference: Any) -> frozenset[str]:
    """Return the digests of contents that need no decoding; read once per worker."""
    import ray

    return frozenset(ray.get(reference))


def _empty_row(index: int) -> dict[str, list[Any]]:
    return {
        "index": [index], "digest": [""], "segment": [-1], "audio": [b""], "shape": ["[]"], "starts": ["[]"],
        "end": [""], "failure": [""], "error": [""],
    }  # fmt: skip


def _segment_row(index: int, digest: str, segment: Segment, cache_folder: Folder) -> dict[str, list[Any]]:
    row = _empty_row(index) | {"digest": [digest], "segment": [segment.number]}
    if not len(segment.audio) or cache_folder.exists(segment_name(digest, segment.number)):
        return row
    layout = {"shape": [json.dumps(segment.audio.shape)], "starts": [json.dumps(segment.starts.tolist())]}
    return row | layout | {"audio": [segment.audio.tobytes()]}


class Encoder:
    """The codec and the latent cache of one process."""

    def __init__(self, config: IngestStage, cache_uri: str) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        device = select_worker_device(config.cluster)
        self.codec = load_codec(config.codec.kind, path=config.codec.path or None, device=device)
        self.cache_folder = open_folder(cache_uri)

    def encode_and_store(self, digest: str, segment: Segment) -> IngestFailure | None:
        """Write a segment's latents to the cache, or return why it cannot be encoded."""
        try:
            latents = self._encode(segment.audio)
        except Exception as error:  # of any class: one bad file must not end the run
            return IngestFailure("encode", type(error).__name__, " ".join(str(error).split()))
        starts = segment.starts / self.codec.sample_rate_hz
        write_segment(self.cache_folder, digest, segment.number, latents=latents, start_seconds=starts)
        return None

    @torch.inference_mode()
    def _encode(self, audio: Waveform) -> Any:
        """Encode audio [R, channels, window] to latents [R, C, T], float16."""
        parts = torch.from_numpy(audio).split(ENCODE_BATCH)
        latents = torch.cat([self.codec.encode(part).cpu() for part in parts]).numpy()
        if not np.isfinite(latents).all():
            raise AudioError("encodes to latents that are not finite")
        return latents.astype(np.float16)


class FileEncoder:
    """Decodes and encodes one track per call and returns its FileResult; a Ray Data actor, or used in this process.

    Args:
        known: digests of contents that need no decoding, or a list with a Ray reference to them.
    """

    def __init__(
        self, config: IngestStage, encoding: EncodeSettings, cache_uri: str, known: frozenset[str] | list[Any]
    ) -> None:
        self.encoder, self.encoding = Encoder(config, cache_uri), encoding
        self.known_digests = known if isinstance(known, frozenset) else _get_known_digests(known[0])

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        index, fields = json.loads(item["item"])
        track, cache_folder = Track(**fields), self.encoder.cache_folder
        row = {"index": index, "segments": 0, "end": "", "failure": ""}
        is_stored = True
        for digest, segment_or_result in segment_file(
            track, open_source(track.source_uri), self.encoding, known_digests=self.known_digests
        ):
            if isinstance(segment_or_result, FileResult):
                row["end"] = json.dumps(asdict(segment_or_result))
                continue
            row["segments"] += 1
            if row["failure"] or not len(segment_or_result.audio):
                continue
            # segments are written in order: after the first missing one, assume that the rest is missing too
            if is_stored := is_stored and cache_folder.exists(segment_name(digest, segment_or_result.number)):
                continue
            if failure := self.encoder.encode_and_store(digest, segment_or_result):
                row["failure"] = json.dumps(asdict(failure))
        return row


class SegmentEncoder:
    """A Ray Data actor that encodes the audio of one segment per call and passes the other fields on."""

    def __init__(self, config: IngestStage, cache_uri: str) -> None:
        self.encoder = Encoder(config, cache_uri)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = {name: row[name] for name in ("index", "end", "failure", "error")}
        result["segments"] = int(row["segment"] >= 0)
        if row["audio"]:
            audio = np.frombuffer(bytearray(row["audio"]), np.float32).reshape(json.loads(row["shape"]))
            segment = Segment(row["segment"], audio, np.array(json.loads(row["starts"])))
            if failure := self.encoder.encode_and_store(row["digest"], segment):
                result["failure"] = json.dumps(asdict(failure))
        return result
