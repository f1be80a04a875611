"""Encode audio to latents in the cache, with Ray Data or, where one worker is asked for, in this process.

On CPUs, each actor decodes, cuts and encodes one file after another. On GPUs, CPU tasks decode and cut, and actors
encode (workers.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from pipelines.cluster.actor_pool import (
    actor_resources,
    dataset_from_items,
    iter_rows,
    map_actors,
    map_in_process,
    runs_in_process,
)
from pipelines.cluster.session import ClusterError
from pipelines.console import Bar, console
from pipelines.ingest.latent_cache import WORKER_DIED, EncodedContent, IngestFailure, LatentCache, SourceRecord
from pipelines.ingest.segments import EncodeSettings, FileResult, decoder_versions
from pipelines.ingest.sources import Track
from pipelines.ingest.workers import FileEncoder, SegmentEncoder, decode_track
from presto_core.config.schema import IngestStage
from presto_core.config.sections import ClusterConfig

ATTEMPTS = 3  # if workers die
TRACKS_PER_EXECUTION = 2048  # tracks per Ray Data execution
MAX_TRACKS_PER_BLOCK, BLOCKS_PER_WORKER = 4, 6  # most tracks per block, and least blocks per worker
SAVE_EVERY_S = 10.0
DECODE_CPUS = 1.0  # per task that decodes for GPUs


def find_tracks_to_encode(tracks: list[Track], cache: LatentCache) -> list[Track]:
    """Return the tracks to read: new ones, changed ones, and those on which another decoder version failed."""
    return [track for track in tracks if track.stamp and not _is_known(track, cache)]


def _is_known(track: Track, cache: LatentCache) -> bool:
    record = cache.source_records.get(track.uri)
    if record is None or record.stamp != track.stamp:
        return False
    return record.failure is not None or _is_final(cache.contents.get(record.digest))


def _is_final(content: EncodedContent | None) -> bool:
    return content is not None and (content.failure is None or content.decoder == decoder_versions())


def encoding_resources(config: ClusterConfig, items: int) -> dict[str, float]:
    """Return the cluster resources that `encode_tracks` needs."""
    needs = actor_resources(config, items)
    return needs | {"cpus": needs["cpus"] + (DECODE_CPUS if config.gpus_per_worker else 0)}


def encode_tracks(
    config: IngestStage,
    encoding: EncodeSettings,
    tracks: list[Track],
    cache: LatentCache,
    bar: Bar,
    *,
    on_result: Callable[[Track], None] = lambda track: None,
) -> None:
    """Read tracks, encode contents that are not in the cache, record each result; needs a Ray session for many workers.

    If a worker dies, its tracks are retried, up to `ATTEMPTS` attempts in all.

    Args:
        on_result: called with each track whose result is in the cache; what it raises ends the run.

    Raises:
        UserError: source or storage does not answer; finished tracks are kept.
        ClusterError: workers still die in the last attempt.
    """
    for attempt in range(ATTEMPTS):
        remaining = [track for track in tracks if attempt == 0 or _has_worker_died(track, cache)]
        if remaining and attempt:
            console.print(f"ingest: a worker died; retrying {len(remaining)} files")
        try:
            for first in range(0, len(remaining), TRACKS_PER_EXECUTION):
                chunk = remaining[first : first + TRACKS_PER_EXECUTION]
                tracks_per_block = _choose_tracks_per_block(config.cluster, len(chunk)) if attempt == 0 else 1
                _encode_chunk(
                    config, encoding, chunk, cache, bar, tracks_per_block=tracks_per_block, on_result=on_result
                )
        except ClusterError:
            if attempt == ATTEMPTS - 1:
                raise


def _choose_tracks_per_block(config: ClusterConfig, tracks: int) -> int:
    """Return how many tracks a worker gets at once: more reduce Ray's overhead, too many leave workers idle."""
    if config.gpus_per_worker:
        return 1  # one track is decoded while another is encoded
    return min(max(tracks // (BLOCKS_PER_WORKER * config.data_workers), 1), MAX_TRACKS_PER_BLOCK)


def _has_worker_died(track: Track, cache: LatentCache) -> bool:
    """Return whether a track has no result because its worker died."""
    record = cache.source_records.get(track.uri)
    return record is None or record.stamp != track.stamp or record.failure == WORKER_DIED


def _encode_chunk(
    config: IngestStage,
    encoding: EncodeSettings,
    tracks: list[Track],
    cache: LatentCache,
    bar: Bar,
    *,
    tracks_per_block: int,
    on_result: Callable[[Track], None],
) -> None:
    last_save = time.monotonic()
    try:
        for track, result in _run_encoders(config, encoding, tracks, cache, tracks_per_block=tracks_per_block):
            _record_result(cache, track, result)
            if result.failure != WORKER_DIED:
                bar.update(bar.done + 1, track.file)
                on_result(track)
            if time.monotonic() - last_save > SAVE_EVERY_S:
                cache.save()
                last_save = time.monotonic()
    finally:
        cache.save()


def _record_result(cache: LatentCache, track: Track, result: FileResult) -> None:
    """Record a track's result; failures that do not depend on its content are retried by the next run."""
    failure = result.failure
    if failure is not None and failure.stage == "fetch":
        cache.source_records[track.uri] = SourceRecord(track.uri, track.stamp, "", failure=failure)
        return
    describes = failure is not None and failure.stage == "describe"
    cache.add(
        source_record=SourceRecord(track.uri, track.stamp, result.digest, result.facts, failure if describes else None)
    )
    if not describes and not _is_final(cache.contents.get(result.digest)):
        cache.add(
            content=EncodedContent(
                result.digest, result.rows, result.silent, result.seconds, failure, decoder_versions()
            )
        )


def _run_encoders(
    config: IngestStage, encoding: EncodeSettings, tracks: list[Track], cache: LatentCache, *, tracks_per_block: int
) -> Iterator[tuple[Track, FileResult]]:
    """Decode and encode tracks; yield each result, in order, as soon as all previous ones are done."""
    cluster, folder = config.cluster, cache.folder.uri
    known = frozenset(digest for digest, content in cache.contents.items() if _is_final(content))
    track_items = [{"item": json.dumps([i, asdict(track)])} for i, track in enumerate(tracks)]
    if runs_in_process(cluster):
        yield from _read_results(tracks, map_in_process(track_items, FileEncoder, config, encoding, folder, known))
        return
    import ray

    known_ref = ray.put(known)
    items = dataset_from_items(track_items, block_items=tracks_per_block, may_fail=True)
    if cluster.gpus_per_worker:
        items.context.target_max_block_size = 1  # one segment per block: it is encoded while the next one is decoded
        decoded = items.map_batches(
            decode_track, batch_size=1, num_cpus=DECODE_CPUS, fn_args=(encoding, folder, [known_ref])
        )
        encoded = map_actors(decoded, SegmentEncoder, cluster, len(tracks), config, folder)
    else:
        encoded = map_actors(items, FileEncoder, cluster, len(tracks), config, encoding, folder, [known_ref])
    yield from _read_results(tracks, iter_rows(encoded))


def _read_results(tracks: list[Track], rows: Iterator[dict[str, Any]]) -> Iterator[tuple[Track, FileResult]]:
    """Merge the rows of each track, which follow each other."""
    failures: dict[int, IngestFailure] = {}
    segments: dict[int, int] = {}
    for row in rows:
        index, end = row["index"], row["end"]
        if row["failure"]:
            failures[index] = IngestFailure(**json.loads(row["failure"]))
        segments[index] = segments.get(index, 0) + row["segments"]
        if end:
            yield tracks[index], _merge_result(FileResult(**json.loads(end)), failures.get(index), segments[index])


def _merge_result(result: FileResult, failure: IngestFailure | None, segments: int) -> FileResult:
    """Merge a file's result with the failures of its encoders."""
    # JSON made it a dict
    file_failure = IngestFailure(**result.failure) if isinstance(result.failure, dict) else result.failure
    if file_failure is None and failure is None and segments < len(result.rows):
        failure = WORKER_DIED
    return FileResult(
        result.digest, result.facts, tuple(result.rows), result.silent, result.seconds, file_failure or failure
    )
