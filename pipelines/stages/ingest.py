"""Audio -> latents on object storage: encode what was not encoded yet, assemble shards, then commit the data set."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np

from pipelines.cluster.actor_pool import actor_resources, map_with_actors
from pipelines.cluster.session import ray_session
from pipelines.console import console, progress_bar
from pipelines.data.layout import (
    DOUBLES,
    QUARANTINE,
    SPLITS,
    TRACKS,
)
from pipelines.ingest.curation import (
    Bad,
    Curated,
    curated,
    quarantine_table,
    require_few_bad,
    shown,
    to_parquet,
    tracks_row,
)
from pipelines.ingest.encode import (
    encode_tracks,
    encoding_resources,
    unknown_tracks,
)
from pipelines.ingest.latent_cache import Pool
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.segments import Encoding
from pipelines.ingest.shard_writer import (
    ShardAssembler,
    ShardPlan,
    plan_shards,
)
from pipelines.ingest.sources import Track, find_tracks
from pipelines.stages.runner import (
    REPORTS,
    Workplace,
    run_stage,
)
from pipelines.storage.filesystem import absolute, open_folder
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.artifacts.store import read_bytes
from presto_core.audio.codec import Codec
from presto_core.audio.latent_stats import LatentStats
from presto_core.audio.load_codec import load_codec
from presto_core.config.loader import settings_yaml
from presto_core.config.schema import IngestStage
from presto_core.text.encoder import text_digest

SAID = {"train": "to train on", "held_out": "held out"}


def run(config: IngestStage) -> Artifact:
    """Encode sources into a data set, or find it encoded.

    Raises:
        SourceError: no audio, or too many unreadable files.
        StoreError: a source or the storage cannot be read or written.
        CodecError: stereo is wanted of a mono codec.
    """
    codec = load_codec(config.codec.kind, path=config.codec.path or None)
    encoding = Encoding.of(config, codec)
    pool = Pool(open_folder(absolute(config.storage.root)).child("encoded").child(encoding.key))
    pool.load()
    tracks = find_tracks(config.ingest)
    unknown = unknown_tracks(tracks, pool)
    session = ray_session(config.cluster, **encoding_resources(config.cluster, len(unknown)))
    with session if unknown else nullcontext():
        if unknown:
            _encode(config, encoding, tracks, unknown, pool)
        found = curated(tracks, pool)
        _require_usable(config, found, len(tracks))
        inputs = {"source": found.digest, "codec": codec.digest, "text": _text_digest(config)}

        def make(place: Workplace) -> None:
            plans = plan_shards(found.entries, rows_per_shard=config.ingest.rows_per_shard)
            _commit(config, codec, found, _assemble(config, plans, pool, place), place)

        return run_stage("ingest", config, make, register_as=config.ingest.name, inputs=inputs)


def _text_digest(config: IngestStage) -> str:
    return text_digest(config.text.kind, path=config.text.path, max_tokens=config.text.max_tokens)


def _encode(config: IngestStage, encoding: Encoding, tracks: list[Track], unknown: list[Track], pool: Pool) -> None:
    known = len(tracks) - len(unknown)
    if known:
        console.print(f"ingest: {known} of {len(tracks)} files are known already")
    began, before = time.monotonic(), set(pool.contents)
    with progress_bar("ingest", len(tracks)) as bar:
        bar.update(known)
        encode_tracks(config, encoding, unknown, pool, bar)
    pool.compact()
    audio = sum(pool.contents[new].seconds for new in pool.contents.keys() - before)
    seconds = time.monotonic() - began
    console.print(f"ingest: {audio / 60:.1f} min of new audio in {seconds:.0f} s, {audio / seconds:.0f} x real time")


def _require_usable(config: IngestStage, found: Curated, total: int) -> None:
    """Refuse a source of which too much is bad (all of it is listed in a file), or nothing is left to train on."""
    try:
        require_few_bad(found.bad, total, config.ingest.max_bad_fraction)
    except SourceError as error:
        path = REPORTS / "quarantine.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(bad) for bad in found.bad))
        raise SourceError(f"{str(error).rstrip('.')}. All of them are in {path}") from None
    if not any(entry.track.split == "train" for entry in found.entries):
        raise SourceError(f"no window for training came out of {total} tracks; lower ingest.held_out_fraction")


def _line(bad: Bad) -> str:
    parts = (bad.uri, bad.failure.stage, bad.failure.error, bad.failure.message)
    return "\t".join(shown(part) for part in parts) + "\n"


def _assemble(config: IngestStage, plans: list[ShardPlan], pool: Pool, place: Workplace) -> list[dict[str, Any]]:
    """Make every shard that an interrupted run has not; what they came to, in the plan's order."""
    there = {info.base_name for info in place.scratch.files(missing_ok=True)}
    pending = [plan for plan in plans if f"{plan.name}.json" not in there]
    if len(pending) < len(plans):
        console.print(f"ingest: {len(plans) - len(pending)} of {len(plans)} shards are there already")
    with progress_bar("shards", len(plans)) as bar:
        bar.update(len(plans) - len(pending))
        if pending:
            items = [{"plan": json.dumps(_plain(plan))} for plan in pending]
            places = (pool.folder.uri, place.artifact.uri, place.scratch.uri)
            with ray_session(config.cluster, **actor_resources(config.cluster, len(items))):
                for row in map_with_actors(items, ShardAssembler, config.cluster, config, *places):
                    bar.update(bar.done + 1, row["name"])
    return [json.loads(read_bytes(place.scratch, f"{plan.name}.json")) for plan in plans]


def _plain(plan: ShardPlan) -> dict[str, Any]:
    return {"name": plan.name, "split": plan.split, "parts": [vars(part) for part in plan.parts]}


def _commit(config: IngestStage, codec: Codec, found: Curated, results: list[dict[str, Any]], place: Workplace) -> None:
    """Make the data set exist by writing its manifest."""
    info = _described(config, codec, found, results)
    tracks = "".join(json.dumps(tracks_row(entry)) + "\n" for entry in found.entries)
    commit_artifact(
        place.artifact,
        kind="dataset",
        artifact_id=place.run_id,
        config_yaml=settings_yaml(config),
        parents={},
        files={
            TRACKS: tracks.encode(),
            QUARANTINE: to_parquet(quarantine_table(found.bad)),
            DOUBLES: json.dumps(found.doubles, indent=2, sort_keys=True).encode(),
        },
        details={"dataset": info},
    )
    _summarise(info)


def _described(config: IngestStage, codec: Codec, found: Curated, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of the data set."""
    shards = [result["shard"] for result in results]
    training = [result["stats"] for result in results if result["shard"]["split"] == "train"]
    stats = LatentStats.merged([LatentStats(n, np.array(mean), np.array(m2)) for n, mean, m2 in training])
    rows = {split: sum(shard["rows"] for shard in shards if shard["split"] == split) for split in SPLITS}
    channels, frames = results[0]["shape"]
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
        "licences": sorted({entry.track.licence for entry in found.entries if entry.track.licence}),
        "caption_sources": dict(sorted(Counter(entry.track.caption_source for entry in found.entries).items())),
        "captioned_rows": sum(result["captioned"] for result in results),
        "silent_windows": sum(entry.content.silent for entry in found.entries),
        "bad_files": len(found.bad),
        "doubles": len(found.doubles),
    }


def _summarise(info: dict[str, Any]) -> None:
    rows, hours = info["rows"], info["hours"]
    parts = [f"{rows[split]} rows ({hours[split]:.2f} h) {what}" for split, what in SAID.items()]
    parts += [f"{info['silent_windows']} silent windows left out", f"{info['bad_files']} bad files in quarantine"]
    parts += [f"{info['doubles']} doubles"] if info["doubles"] else []
    console.print(f"ingest: {', '.join(parts)}")
    if not rows["held_out"]:
        console.print("[yellow]ingest: nothing is held out, so `presto evaluate` will refuse this data set")
