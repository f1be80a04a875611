"""Audio -> latents in the pool, with Ray Data.

Where CPUs encode, each of a pool of actors decodes, cuts and encodes one file after another. Where GPUs do, CPU tasks
decode and cut, and actors encode (encoders.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict

from pipelines.cluster.actor_pool import (
    actor_resources,
    ordered,
    rows_of,
    with_actors,
)
from pipelines.cluster.session import ClusterError
from pipelines.console import Bar, console
from pipelines.ingest.latent_cache import (
    DIED,
    Content,
    Failure,
    Pool,
    Seen,
)
from pipelines.ingest.segments import (
    Encoding,
    End,
    decoder_versions,
)
from pipelines.ingest.sources import Track
from pipelines.ingest.workers import (
    FileEncoder,
    SegmentEncoder,
    decode_track,
)
from presto_core.config.schema import IngestStage
from presto_core.config.sections import ClusterConfig

ATTEMPTS = 3  # where workers die
ROUND = 2048  # tracks of one execution of Ray Data
TOGETHER, BLOCKS_A_WORKER = 4, 6  # tracks at once at most, and how often a worker is given some at least
SAVE_EVERY_S = 10.0
DECODE_CPUS = 1.0  # of a task that decodes for GPUs


def unknown_tracks(tracks: list[Track], pool: Pool) -> list[Track]:
    """Tracks that must be read: new ones, changed ones, and those that only another decoder failed on."""
    return [track for track in tracks if track.stamp and not _is_known(track, pool)]


def _is_known(track: Track, pool: Pool) -> bool:
    seen = pool.seen.get(track.uri)
    if seen is None or seen.stamp != track.stamp:
        return False
    return seen.failure is not None or _is_settled(pool.contents.get(seen.digest))


def _is_settled(content: Content | None) -> bool:
    return content is not None and (content.failure is None or content.decoder == decoder_versions())


def encoding_resources(config: ClusterConfig, items: int) -> dict[str, float]:
    """What `encode_tracks` takes of a cluster."""
    needs = actor_resources(config, items)
    return needs | {"cpus": needs["cpus"] + (DECODE_CPUS if config.gpus_per_worker else 0)}


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
                chunk = left[first : first + ROUND]
                together = _together(config.cluster, len(chunk)) if attempt == 0 else 1
                _encode_round(config, encoding, chunk, pool, bar, together=together)
        except ClusterError:
            if attempt == ATTEMPTS - 1:
                raise


def _together(config: ClusterConfig, tracks: int) -> int:
    """Tracks that a worker is given at once, so that Ray has less to do; not so many that some wait for others."""
    if config.gpus_per_worker:
        return 1  # one is decoded while another is encoded
    return min(max(tracks // (BLOCKS_A_WORKER * config.data_workers), 1), TOGETHER)


def _died(track: Track, pool: Pool) -> bool:
    """Whether nothing is known of a track because the worker that had it died."""
    seen = pool.seen.get(track.uri)
    return seen is None or seen.stamp != track.stamp or seen.failure == DIED


def _encode_round(
    config: IngestStage, encoding: Encoding, tracks: list[Track], pool: Pool, bar: Bar, *, together: int
) -> None:
    saved = time.monotonic()
    try:
        for track, end in _ended(config, encoding, tracks, pool, together=together):
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
    pool.add(seen=Seen(track.uri, track.stamp, end.digest, end.facts, failure if describes else None))
    if not describes and not _is_settled(pool.contents.get(end.digest)):
        pool.add(content=Content(end.digest, end.rows, end.silent, end.seconds, failure, decoder_versions()))


def _ended(
    config: IngestStage, encoding: Encoding, tracks: list[Track], pool: Pool, *, together: int
) -> Iterator[tuple[Track, End]]:
    """Run tracks through decoders and encoders; each as soon as all before it are done."""
    import ray

    cluster, folder = config.cluster, pool.folder.uri
    known = ray.put(frozenset(digest for digest, content in pool.contents.items() if _is_settled(content)))
    named = [{"item": json.dumps([i, asdict(track)])} for i, track in enumerate(tracks)]
    items = ordered(named, together=together, may_fail=True)
    if cluster.gpus_per_worker:
        items.context.target_max_block_size = 1  # each segment is a block: it is encoded while the next one is decoded
        cut = items.map_batches(decode_track, batch_size=1, num_cpus=DECODE_CPUS, fn_args=(encoding, folder, [known]))
        encoded = with_actors(cut, SegmentEncoder, cluster, len(tracks), config, folder)
    else:
        encoded = with_actors(items, FileEncoder, cluster, len(tracks), config, encoding, folder, [known])
    failed: dict[int, Failure] = {}
    segments: dict[int, int] = {}
    for row in rows_of(encoded):
        index, end = row["index"], row["end"]
        if row["failure"]:
            failed[index] = Failure(**json.loads(row["failure"]))
        segments[index] = segments.get(index, 0) + row["segments"]
        if end:
            yield tracks[index], _completed(End(**json.loads(end)), failed.get(index), segments[index])


def _completed(end: End, failure: Failure | None, segments: int) -> End:
    """The end of a file, knowing what its encoders said."""
    said = Failure(**end.failure) if isinstance(end.failure, dict) else end.failure  # JSON made it a dict
    if said is None and failure is None and segments < len(end.rows):
        failure = DIED
    return End(end.digest, end.facts, tuple(end.rows), end.silent, end.seconds, said or failure)
