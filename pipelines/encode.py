"""Audio -> latents in the pool, with Ray Data: CPU tasks decode and cut files, a pool of actors encodes what they cut.

A file goes through in segments of a minute or two, so memory depends neither on how long files are nor on how many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pipelines.cluster import ClusterError, actor_resources, ordered, rows_of, with_actors
from pipelines.encoding import Encoding, End, Segment, decoder_versions, opened
from pipelines.pool import DIED, Content, Failure, Pool, Seen, segment_name, write_segment
from pipelines.progress import Bar, console
from pipelines.sources import Track
from pipelines.storage import open_folder
from presto_core.audio.chunks import AudioError
from presto_core.audio.codec import load_codec
from presto_core.config.errors import UserError
from presto_core.config.schema import IngestStage
from presto_core.config.sections import ClusterConfig
from presto_core.registry.store import Folder

ENCODE_BATCH = 16  # windows
ATTEMPTS = 3  # where workers die
ROUND = 2048  # tracks of one execution of Ray Data
SAVE_EVERY_S = 10.0
SHARED_DECODE_CPUS = 0.2  # beside encoders on the same cores; where GPUs encode, a decoder has a core of its own


def unknown_tracks(tracks: list[Track], pool: Pool) -> list[Track]:
    """Tracks that must be read: new ones, changed ones, and those that only another decoder failed on."""
    return [track for track in tracks if track.stamp and not _is_known(track, pool)]


def _is_known(track: Track, pool: Pool) -> bool:
    seen = pool.seen.get(track.uri)
    if seen is None or seen.stamp != track.stamp:
        return False
    return seen.failure is not None or _is_settled(pool.contents.get(seen.sha256))


def _is_settled(content: Content | None) -> bool:
    return content is not None and (content.failure is None or content.decoder == decoder_versions())


def encoding_resources(config: ClusterConfig, items: int) -> dict[str, float]:
    """What `encode_tracks` takes of a cluster."""
    needs = actor_resources(config, items)
    return needs | {"cpus": needs["cpus"] + _decode_cpus(config)}


def _decode_cpus(config: ClusterConfig) -> float:
    return 1.0 if config.gpus_per_worker else SHARED_DECODE_CPUS


def encode_tracks(config: IngestStage, encoding: Encoding, tracks: list[Track], pool: Pool, bar: Bar) -> None:
    """Read tracks, encode what the pool does not hold, and note what came of each; inside a Ray session.

    Workers may die: what they had in hand is tried again, a few times.

    Raises:
        UserError: source or storage does not answer; what is done stays done.
        ClusterError: workers die again and again.
    """
    for attempt in range(ATTEMPTS):
        left = [track for track in tracks if attempt == 0 or _died(track, pool)]
        if left and attempt:
            console.print(f"ingest: a worker died, {len(left)} files are tried again")
        try:
            for first in range(0, len(left), ROUND):
                _encode_round(config, encoding, left[first : first + ROUND], pool, bar)
        except ClusterError:
            if attempt == ATTEMPTS - 1:
                raise


def _died(track: Track, pool: Pool) -> bool:
    """Whether nothing is known of a track because the worker that had it died."""
    seen = pool.seen.get(track.uri)
    return seen is None or seen.stamp != track.stamp or seen.failure == DIED


def _encode_round(config: IngestStage, encoding: Encoding, tracks: list[Track], pool: Pool, bar: Bar) -> None:
    saved = time.monotonic()
    try:
        for track, end in _ended(config, encoding, tracks, pool):
            _note(pool, track, end)
            if end.failure != DIED:
                bar.update(bar.done + 1, track.file)
            if time.monotonic() - saved > SAVE_EVERY_S:
                pool.save()
                saved = time.monotonic()
    finally:
        pool.save()


def _note(pool: Pool, track: Track, end: End) -> None:
    """Remember what a track came to; what had nothing to do with its content is tried again the next time."""
    failure = end.failure
    if failure is not None and failure.stage == "fetch":
        pool.seen[track.uri] = Seen(track.uri, track.stamp, "", failure=failure)
        return
    describes = failure is not None and failure.stage == "describe"
    pool.add(seen=Seen(track.uri, track.stamp, end.sha256, end.facts, failure if describes else None))
    if not describes and not _is_settled(pool.contents.get(end.sha256)):
        pool.add(content=Content(end.sha256, end.rows, end.silent, end.seconds, failure, decoder_versions()))


def _ended(config: IngestStage, encoding: Encoding, tracks: list[Track], pool: Pool) -> Iterator[tuple[Track, End]]:
    """Run tracks through decoders and encoders; each as soon as all before it are done."""
    import ray

    cluster = config.cluster
    known = ray.put(frozenset(sha for sha, content in pool.contents.items() if _is_settled(content)))
    items = ordered([{"item": json.dumps([i, asdict(t)])} for i, t in enumerate(tracks)], may_fail=True)
    items.context.target_max_block_size = 1  # each segment is a block: it is encoded while the next one is decoded
    cut = items.map_batches(
        decode_track, batch_size=1, num_cpus=_decode_cpus(cluster), fn_args=(encoding, pool.folder.uri, [known])
    )
    encoded = with_actors(cut, SegmentEncoder, cluster, len(tracks), config, pool.folder.uri)
    failed: dict[int, Failure] = {}
    segments: dict[int, int] = {}
    for row in rows_of(encoded):
        index, end = row["index"], row["end"]
        if row["failure"]:
            failed[index] = Failure(**json.loads(row["failure"]))
        segments[index] = segments.get(index, 0) + (row["segment"] >= 0)
        if end:
            yield tracks[index], _completed(End(**json.loads(end)), failed.get(index), segments[index])


def _completed(end: End, failure: Failure | None, segments: int) -> End:
    """The end of a file, knowing what its encoders said."""
    said = Failure(**end.failure) if isinstance(end.failure, dict) else end.failure  # JSON made it a dict
    if said is None and failure is None and segments < len(end.rows):
        failure = DIED
    return End(end.sha256, end.facts, tuple(end.rows), end.silent, end.seconds, said or failure)


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
        for sha256, found in opened(track, source, encoding, known=_fetched(ray, known[0])):
            if isinstance(found, End):
                yield held | {"end": [json.dumps(asdict(found))]}
            elif found.number:
                yield held
            if isinstance(found, Segment):
                held = _row(index, sha256, found, pool)
    except UserError as error:
        yield _blank(index) | {"error": [str(error)]}


@lru_cache(maxsize=1)
def _fetched(ray: Any, reference: Any) -> frozenset[str]:
    """Contents that need no decoding; read once a worker."""
    return frozenset(ray.get(reference))


def _blank(index: int) -> dict[str, list[Any]]:
    return {
        "index": [index], "sha256": [""], "segment": [-1], "audio": [b""], "shape": ["[]"], "starts": ["[]"],
        "end": [""], "failure": [""], "error": [""],
    }  # fmt: skip


def _row(index: int, sha256: str, found: Segment, pool: Folder) -> dict[str, list[Any]]:
    blank = _blank(index) | {"sha256": [sha256], "segment": [found.number]}
    if not len(found.audio) or pool.exists(segment_name(sha256, found.number)):
        return blank
    told = {"shape": [json.dumps(found.audio.shape)], "starts": [json.dumps(found.starts.tolist())]}
    return blank | told | {"audio": [found.audio.tobytes()]}


class SegmentEncoder:
    """A Ray Data actor: audio of one segment in, its latents written to the pool; what else there is goes through."""

    def __init__(self, config: IngestStage, pool_uri: str) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        device = "cuda" if config.cluster.gpus_per_worker else "cpu"
        self.codec = load_codec(config.codec.kind, path=config.codec.path or None, device=device)
        self.pool = open_folder(pool_uri)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        told = {name: row[name] for name in ("index", "segment", "end", "failure", "error")}
        if row["audio"]:
            try:
                latents = self._encoded(row)
            except Exception as error:  # of whatever kind: one file's trouble is not the run's
                failure = Failure("encode", type(error).__name__, " ".join(str(error).split()))
                return told | {"failure": json.dumps(asdict(failure))}
            starts = np.array(json.loads(row["starts"])) / self.codec.sample_rate_hz
            write_segment(self.pool, row["sha256"], row["segment"], latents=latents, start_seconds=starts)
        return told

    @torch.inference_mode()
    def _encoded(self, row: dict[str, Any]) -> Any:
        """[R, C, T] float16."""
        audio = torch.frombuffer(bytearray(row["audio"]), dtype=torch.float32).reshape(json.loads(row["shape"]))
        latents = torch.cat([self.codec.encode(part).cpu() for part in audio.split(ENCODE_BATCH)]).numpy()
        if not np.isfinite(latents).all():
            raise AudioError("encodes to latents that are not finite")
        return latents.astype(np.float16)
