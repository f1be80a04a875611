"""Stage: audio -> latents on object storage: encode new files, write shards, then commit the data set."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from pipelines.cluster.actor_pool import map_items, open_pool, runs_in_process
from pipelines.cluster.device import check_reserved
from pipelines.cluster.session import ray_session
from pipelines.console import console, make_printable, print_warning, progress_bar
from pipelines.data.layout import DUPLICATES, QUARANTINE, SPLITS, TRACKS
from pipelines.ingest.bad_files import BadFileLimit, TooManyBadFilesError, check_bad_fraction, find_bad_headers
from pipelines.ingest.curation import (
    CuratedTracks,
    RejectedFile,
    curate,
    find_failure,
    make_quarantine_table,
    make_track_row,
    to_parquet,
)
from pipelines.ingest.encode import encode_tracks, encoding_resources, find_tracks_to_encode
from pipelines.ingest.field_names import describe_ignored
from pipelines.ingest.latent_cache import WORKER_DIED, LatentCache
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.segments import EncodeSettings
from pipelines.ingest.shard_writer import ShardPlan, ShardWriter, plan_shards
from pipelines.ingest.sources import Track, find_tracks
from pipelines.ingest.summary import describe_bad, describe_result
from pipelines.stages.runner import REPORTS, StageContext, run_stage
from pipelines.storage.filesystem import absolute_uri, open_folder
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.artifacts.store import read_bytes
from presto_core.audio.codec import Codec
from presto_core.audio.latent_stats import LatentStats
from presto_core.audio.load_codec import load_codec
from presto_core.config.data import IngestConfig
from presto_core.config.loader import settings_to_yaml
from presto_core.config.schema import IngestStage
from presto_core.config.sections import ClusterConfig
from presto_core.text.encoder import text_digest

PREFIX = "ingest: "
FEW_HEADERS = 500  # reading them is so short that no progress is shown


def run(config: IngestStage) -> Artifact:
    """Encode sources into a data set, or reuse it.

    Raises:
        SourceError: no audio, or too many unreadable files.
        StoreError: a source or the storage cannot be read or written.
        CodecError: stereo is requested from a mono codec.
    """
    _print_former_key(config.ingest)
    check_reserved(config.cluster)
    codec = load_codec(config.codec.kind, path=config.codec.path or None)
    encode_settings = EncodeSettings.from_config(config, codec)
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    cache = LatentCache(root.child("encoded").child(encode_settings.key))
    cache.load()
    skipped = Counter[str]()
    tracks = find_tracks(config.ingest, skipped=skipped)
    pending = find_tracks_to_encode(tracks, cache)
    with _list_bad_files():
        limit = _check_early(config, tracks, pending, cache)
    with _open_session(config.cluster, len(pending)):
        if pending:
            with _list_bad_files():
                _encode(config, encode_settings, tracks, pending, cache, limit)
        curated_tracks = curate(tracks, cache)
        _print_ignored_keys(curated_tracks)
        with _list_bad_files():
            check_bad_fraction(curated_tracks.bad, len(tracks), config.ingest.max_bad_fraction)
        _check_usable(curated_tracks, len(tracks))
        inputs = {"source": curated_tracks.digest, "codec": codec.digest, "text": _compute_text_digest(config)}

        def execute(ctx: StageContext) -> None:
            plans = plan_shards(curated_tracks.entries, rows_per_shard=config.ingest.rows_per_shard)
            _commit(config, codec, curated_tracks, _write_shards(config, plans, cache, ctx), ctx)

        artifact = run_stage("ingest", config, execute, register_as=config.ingest.name, inputs=inputs)
    _print_summary(artifact, curated_tracks, skipped)
    return artifact


def _open_session(cluster: ClusterConfig, pending: int) -> AbstractContextManager[object]:
    """A Ray session that encodes so many files; none if there is nothing to encode or this process does it."""
    if not pending or runs_in_process(cluster):
        return nullcontext()
    console.print("ingest: starting Ray …")
    return ray_session(cluster, **encoding_resources(cluster, pending))


def _print_former_key(settings: IngestConfig) -> None:
    if settings.held_out_fraction is not None:
        console.print(
            f"ingest: held_out_fraction={settings.held_out_fraction} is a former setting; it is used as "
            f"validation_fraction={settings.validation_fraction} test_fraction={settings.test_fraction}",
            style="yellow",
        )


def _print_ignored_keys(curated_tracks: CuratedTracks) -> None:
    keys = sorted(curated_tracks.ignored_keys.items())
    if keys:
        named = ", ".join(f"{describe_ignored([name])} in {count} files" for name, count in keys)
        print_warning(f"ingest: sidecars have keys that are not read: {named}")


def _compute_text_digest(config: IngestStage) -> str:
    text, frames = config.text, config.ingest.chunk_frames
    return text_digest(text.kind, path=text.path, max_tokens=text.max_tokens, frames=frames)


def _check_early(config: IngestStage, tracks: list[Track], pending: list[Track], cache: LatentCache) -> BadFileLimit:
    """Refuse a source with too many files that are known to be bad, before Ray starts; return the count of them.

    Known are files that an earlier run read, files that are not there, and, of local ones, those whose beginning cannot
    be decoded. Of object storage, whole files would have to be fetched.
    """
    limit = BadFileLimit(len(tracks), config.ingest.max_bad_fraction)
    new = {track.uri for track in pending}
    limit.bad |= {bad.uri: bad for bad in curate([t for t in tracks if t.uri not in new], cache).bad}
    quiet = len(pending) < FEW_HEADERS
    with nullcontext() if quiet else progress_bar("headers", len(pending)) as bar:
        bad = find_bad_headers(pending, on_progress=lambda done: None if bar is None else bar.update(done))
    stopped = "; nothing was encoded" if pending else ""
    check_bad_fraction([*limit.bad.values(), *bad], limit.total, limit.allowed, stopped=stopped)
    return limit


def _encode(
    config: IngestStage,
    encode_settings: EncodeSettings,
    tracks: list[Track],
    pending: list[Track],
    cache: LatentCache,
    limit: BadFileLimit,
) -> None:
    num_cached = len(tracks) - len(pending)
    if num_cached:
        console.print(f"ingest: {num_cached} of {len(tracks)} files are known already")
    began, before = time.monotonic(), set(cache.contents)

    def count_bad(track: Track) -> None:
        failure = find_failure(track, cache)
        if failure is not None and failure != WORKER_DIED:
            limit.add(RejectedFile(track.file, track.uri, failure))

    with progress_bar("ingest", len(tracks), done=num_cached, waits_for="starting workers") as bar:
        encode_tracks(config, encode_settings, pending, cache, bar, on_result=count_bad)
    cache.compact()
    audio = sum(cache.contents[new].seconds for new in cache.contents.keys() - before)
    seconds = time.monotonic() - began
    console.print(f"ingest: {audio / 60:.1f} min of new audio in {seconds:.0f} s, {audio / seconds:.0f} x real time")


@contextmanager
def _list_bad_files() -> Iterator[None]:
    """If there are too many bad files, write all of them to a file, and print them by reason."""
    try:
        yield
    except TooManyBadFilesError as error:
        path = REPORTS / "quarantine.tsv"
        make_folders(path.parent)
        path.write_text("".join(map(_format_line, error.bad)), encoding="utf-8")
        _print_lines(describe_bad(error.bad))
        raise SourceError(f"{str(error).rstrip('.')}. All of them are in {path}") from None


def _check_usable(curated_tracks: CuratedTracks, total: int) -> None:
    """Refuse a source with nothing to train on."""
    if not any(entry.track.split == "train" for entry in curated_tracks.entries):
        raise SourceError(
            f"no window for training came out of {total} tracks; lower ingest.validation_fraction and "
            "ingest.test_fraction, or ingest more music"
        )


def _format_line(rejected: RejectedFile) -> str:
    parts = (rejected.uri, rejected.failure.stage, rejected.failure.error, rejected.failure.message)
    return "\t".join(make_printable(part) for part in parts) + "\n"


def _write_shards(
    config: IngestStage, plans: list[ShardPlan], cache: LatentCache, ctx: StageContext
) -> list[dict[str, Any]]:
    """Write every shard that an interrupted run did not; return the results of all, in the plan's order."""
    existing = {info.base_name for info in ctx.scratch.list_files(missing_ok=True)}
    pending = [plan for plan in plans if f"{plan.name}.json" not in existing]
    if len(pending) < len(plans):
        console.print(f"ingest: {len(plans) - len(pending)} of {len(plans)} shards exist already")
    with progress_bar("shards", len(plans), done=len(plans) - len(pending), waits_for="starting workers") as bar:
        if pending:
            items = [{"plan": json.dumps(_plan_to_dict(plan))} for plan in pending]
            folders = (cache.folder.uri, ctx.artifact, ctx.scratch)
            with open_pool(config.cluster, len(items)):
                for row in map_items(items, ShardWriter, config.cluster, config, *folders):
                    bar.update(bar.done + 1, row["name"])
    return [json.loads(read_bytes(ctx.scratch, f"{plan.name}.json")) for plan in plans]


def _plan_to_dict(plan: ShardPlan) -> dict[str, Any]:
    return {"name": plan.name, "split": plan.split, "parts": [vars(part) for part in plan.parts]}


def _commit(
    config: IngestStage, codec: Codec, curated_tracks: CuratedTracks, results: list[dict[str, Any]], ctx: StageContext
) -> None:
    """Commit the data set by writing its manifest."""
    info = _describe_dataset(config, codec, curated_tracks, results)
    tracks = "".join(json.dumps(make_track_row(entry)) + "\n" for entry in curated_tracks.entries)
    commit_artifact(
        ctx.artifact,
        kind="dataset",
        artifact_id=ctx.run_id,
        config_yaml=settings_to_yaml(config),
        parents={},
        files={
            TRACKS: tracks.encode(),
            QUARANTINE: to_parquet(make_quarantine_table(curated_tracks.bad)),
            DUPLICATES: json.dumps(curated_tracks.duplicates, indent=2, sort_keys=True).encode(),
        },
        details={"dataset": info},
    )


def _describe_dataset(
    config: IngestStage, codec: Codec, curated_tracks: CuratedTracks, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the manifest records of the data set."""
    shards = [result["shard"] for result in results]
    training = [result["stats"] for result in results if result["shard"]["split"] == "train"]
    stats = LatentStats.merge_all([LatentStats(n, np.array(mean), np.array(m2)) for n, mean, m2 in training])
    rows = {split: sum(shard["rows"] for shard in shards if shard["split"] == split) for split in SPLITS}
    channels, frames = results[0]["shape"]
    # an interrupted run of an earlier version left results without them
    cut_captions = len({file for result in results for file in result.get("cut_captions", ())})
    seconds = frames * codec.hop / codec.sample_rate_hz
    return {
        "shards": shards,
        "rows": rows,
        "hours": {split: round(n * seconds / 3600, 4) for split, n in rows.items()},
        "latents": {"channels": channels, "frames": frames, "mean": stats.mean.tolist(), "std": [stats.std] * channels},
        "codec": {
            "kind": config.codec.kind,
            "path": config.codec.path,
            "digest": codec.digest,
            "sample_rate_hz": codec.sample_rate_hz,
            "hop": codec.hop,
        },
        "text": {
            "kind": config.text.kind,
            "path": config.text.path,
            "max_tokens": config.text.max_tokens,
            **results[0]["text"],
        },
        "licences": sorted({entry.track.licence for entry in curated_tracks.entries if entry.track.licence}),
        "caption_sources": dict(
            sorted(Counter(entry.track.caption_source for entry in curated_tracks.entries).items())
        ),
        "captioned_rows": sum(result["captioned"] for result in results),
        **({"cut_captions": cut_captions} if cut_captions else {}),
        "silent_windows": sum(entry.content.silent for entry in curated_tracks.entries),
        "bad_files": len(curated_tracks.bad),
        "doubles": len(curated_tracks.duplicates),
    }


def _print_summary(artifact: Artifact, curated_tracks: CuratedTracks, skipped: Counter[str]) -> None:
    info = artifact.manifest["dataset"]
    _print_lines(describe_result(info, curated_tracks, skipped))
    if curated_tracks.bad:
        command = f"presto dataset quarantine {shlex.quote(artifact.uri)}"
        console.print(f"ingest: all of them: {command}", markup=False)
    _print_warnings(info)


def _print_lines(lines: list[str]) -> None:
    """Print a summary, with the command's name before each label."""
    for line in lines:
        prefix = " " * len(PREFIX) if line.startswith(" ") else PREFIX
        console.print(f"{prefix}{line}", markup=False)


def _print_warnings(info: dict[str, Any]) -> None:
    if cut := info.get("cut_captions"):
        print_warning(
            f"ingest: the captions of {cut} tracks are cut, as they have more tokens than "
            f"text.max_tokens={info['text']['max_tokens']}; shorten them, or raise text.max_tokens"
        )
    for line in _describe_missing_splits(info["rows"]):
        print_warning(f"ingest: {line}")


def _describe_missing_splits(rows: dict[str, int]) -> list[str]:
    """Say what a data set without validation or test rows cannot do, and which setting adds them."""
    without_test = "reports will use validation rows and say so" if rows["validation"] else "nothing can be reported"
    consequences = {"validation": "nothing can choose weights or settings", "test": without_test}
    return [
        f"there are no {split} rows, so {consequence}; raise ingest.{split}_fraction or ingest more music"
        for split, consequence in consequences.items()
        if not rows[split]
    ]
