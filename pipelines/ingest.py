"""Audio -> latents on object storage: decode, cut, encode and write shards with Ray Data, then commit the data set."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pipelines.cluster import actor_resources, map_with_actors, ray_session
from pipelines.encode import ShardEncoder, plan_shards, read_whole
from pipelines.progress import console, progress_bar
from pipelines.sources import SourceError, Track, find_tracks
from pipelines.stage import Workplace, run_stage
from pipelines.storage import absolute, open_folder
from presto_core.audio.codec import load_codec
from presto_core.audio.latent_stats import LatentStats
from presto_core.config.loader import to_yaml
from presto_core.config.schema import IngestStage
from presto_core.registry.manifest import Artifact, commit_artifact
from presto_core.registry.store import Folder

SPLITS = {"train": "to train on", "held_out": "held out"}


def run(config: IngestStage) -> Artifact:
    """Encode a source into a data set, or find it encoded.

    Raises:
        SourceError: no audio, or too many unreadable files.
        StoreError: source or storage cannot be read or written.
    """
    source = open_folder(absolute(config.ingest.source))
    settings = config.ingest
    tracks, digest = find_tracks(source, held_out_fraction=settings.held_out_fraction, licence=settings.licence)

    def make(place: Workplace) -> None:
        results = _encode_all(config, source, tracks, place)
        _commit(config, tracks, results, place)

    return run_stage("ingest", config, make, register_as=settings.name, inputs=inputs_of(config, digest))


def inputs_of(config: IngestStage, source_digest: str) -> dict[str, str]:
    """Hashes of what a data set is made of beside its settings: other codec weights make other latents."""
    codec = load_codec(config.codec.kind, path=config.codec.path or None)
    return {"source": source_digest, "codec": codec.digest}


def _encode_all(config: IngestStage, source: Folder, tracks: list[Track], place: Workplace) -> list[dict[str, Any]]:
    """Encode every shard that an interrupted run has not; results in the plan's order."""
    seconds = config.derived()["chunk_seconds"]
    plans = plan_shards(tracks, rows_per_shard=config.ingest.rows_per_shard, chunk_seconds=seconds)
    pending = [p for p in plans if not place.scratch.exists(f"{p.name}.json")]
    if len(pending) < len(plans):
        console.print(f"ingest: {len(plans) - len(pending)} of {len(plans)} shards are done already")
    with progress_bar("ingest", len(plans)) as bar:
        done = len(plans) - len(pending)
        bar.update(done, f"{len(tracks)} tracks")
        if pending:
            items = [{"plan": json.dumps(vars(p))} for p in pending]
            places = (source.uri, place.artifact.uri, place.scratch.uri)
            with ray_session(config.cluster, **actor_resources(config.cluster, len(items))):
                for _ in map_with_actors(items, ShardEncoder, config.cluster, config, *places):
                    done += 1
                    bar.update(done, f"{len(tracks)} tracks")
    return [json.loads(read_whole(place.scratch, f"{p.name}.json")) for p in plans]


def _commit(config: IngestStage, tracks: list[Track], results: list[dict[str, Any]], place: Workplace) -> None:
    """Check what came out, and make the data set exist by writing its manifest."""
    bad = [entry for result in results for entry in result["bad"]]
    _require_few_bad(bad, len(tracks), config.ingest.max_bad_fraction)
    written = [r for r in results if "shard" in r]
    in_training = [r for r in written if r["shard"]["split"] == "train"]
    if not in_training:
        raise SourceError(f"no window for training came out of {len(tracks)} tracks; lower ingest.held_out_fraction")
    stats = LatentStats.merged(
        [LatentStats(n, np.array(m), np.array(m2)) for n, m, m2 in (r["stats"] for r in in_training)]
    )
    rows = {
        split: sum(r["shard"]["rows"] for r in written if r["shard"]["split"] == split)
        for split in ("train", "held_out")
    }
    described = {t["file"]: t for r in results for t in r["tracks"]}
    used = [described[t.file] for t in tracks if t.file in described]
    channels, frames = written[0]["shape"]
    seconds = frames * written[0]["codec"]["hop"] / written[0]["codec"]["sample_rate_hz"]
    info = {
        "shards": [r["shard"] for r in written],
        "rows": rows,
        "hours": {split: round(n * seconds / 3600, 4) for split, n in rows.items()},
        "latents": {"channels": channels, "frames": frames, "mean": stats.mean.tolist(), "std": [stats.std] * channels},
        "codec": written[0]["codec"],
        "text": written[0]["text"],
        "licences": sorted({t["licence"] for t in used if t["licence"]}),
        "silent_windows": sum(r["silent"] for r in results),
        "bad_files": len(bad),
    }
    commit_artifact(
        place.artifact,
        kind="dataset",
        artifact_id=place.run_id,
        config_yaml=to_yaml(config),
        parents={},
        files={
            "tracks.jsonl": "".join(json.dumps(t) + "\n" for t in used).encode(),
            "quarantine.json": json.dumps(bad, indent=2).encode(),
        },
        details={"dataset": info},
    )
    _summarise(info, bad)


def _require_few_bad(bad: list[dict[str, str]], total: int, allowed: float) -> None:
    if len(bad) / total > allowed:
        named = "; ".join(f"{b['file']}: {b['message']}" for b in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise SourceError(
            f"{len(bad)} of {total} files could not be used, more than ingest.max_bad_fraction={allowed:g} allows: "
            f"{named}{more}"
        )


def _summarise(info: dict[str, Any], bad: list[dict[str, str]]) -> None:
    rows, hours = info["rows"], info["hours"]
    parts = [f"{rows[split]} rows ({hours[split]:.2f} h) {what}" for split, what in SPLITS.items()]
    console.print(f"ingest: {', '.join(parts)}, {info['silent_windows']} silent windows left out, {len(bad)} bad files")
    if not rows["held_out"]:
        console.print("[yellow]ingest: nothing is held out, so `presto evaluate` will refuse this data set")
