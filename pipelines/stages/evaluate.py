"""Stage: base and its distilled models -> a report: distances to held-out music, latency, sounds and plots."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.numpy import save

from pipelines.console import console
from pipelines.data.parquet_tensors import Array
from pipelines.evaluate import plots, report
from pipelines.evaluate.latency import hidden_variances, measured_costs
from pipelines.evaluate.systems import (
    FLOOR,
    REFERENCE,
    Sampled,
    System,
    compared_systems,
    labels_of,
    sample_systems,
)
from pipelines.inference.model import open_model
from pipelines.registry.compatibility import require_comparable, require_teacher_of
from pipelines.registry.evaluation_tags import EMBEDDINGS, record_measurements
from pipelines.registry.names import REPORT
from pipelines.stages.runner import (
    REPORTS,
    Workplace,
    run_stage,
)
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.loader import settings_yaml
from presto_core.config.schema import EvaluateStage
from presto_core.metrics.distances import frechet_distance, mmd
from presto_core.metrics.embed import load_embedder
from presto_core.metrics.latency import hardware
from presto_core.metrics.prdc import prdc


def run(config: EvaluateStage) -> Artifact:
    """Compare the base with its distilled models; a report that exists is used again.

    Raises:
        UserError: an artifact is unknown or of other latents, the data set holds nothing out, the cluster is too small.
    """

    def make(place: Workplace) -> None:
        teacher, models = place.parents["teacher"], _models(place)
        require_teacher_of(teacher, place.parents["dataset"])
        require_comparable({role: a for role, a in models.items() if role != "teacher"}, teacher)
        uris = {"dataset": place.parents["dataset"].uri} | {role: artifact.uri for role, artifact in models.items()}
        systems = compared_systems(config.evaluate, models)
        sampled = sample_systems(config, [REFERENCE, FLOOR, *systems], uris, place.scratch)
        result = _measured(config, systems, sampled, uris, place)
        _commit(config, result, sampled, place)
        for row in result["systems"]:
            place.run.log(row["nfe"], {f"{row['label']}/{k}": row[k] for k in ("fd", "mmd", "sampling_ms")})

    artifact = run_stage("evaluate", config, make, register_as=REPORT)
    result = _unpack(artifact)
    record_measurements(open_tracker(config.tracking).client, artifact, result)
    return artifact


def _models(place: Workplace) -> dict[str, Artifact]:
    """The models to judge by role; one that is named twice is judged once."""
    first = {a.id: role for role, a in reversed(place.parents.items())}
    return {role: a for role, a in place.parents.items() if role != "dataset" and first[a.id] == role}


def _measured(
    config: EvaluateStage, systems: list[System], sampled: dict[str, Sampled], uris: dict[str, str], place: Workplace
) -> dict[str, Any]:
    """The whole result as plain data: what report.json holds."""
    reference, k = sampled[REFERENCE.name].embeddings, config.evaluate.nearest_k
    base = sampled[systems[0].name].embeddings
    models = {role: open_model(uris[role], device=_best_device()) for role in _models(place)}
    labels = labels_of(_models(place))
    costs = measured_costs(config, systems, models, uris["dataset"])
    fastest_base = costs[systems[0].name]
    rows = [
        {
            **asdict(system),
            **_quality(sampled[system.name].embeddings, reference, k),
            "fd_to_base": frechet_distance(generated=sampled[system.name].embeddings, reference=base),
            **costs[system.name],
            "speed_up": fastest_base["sampling_ms"] / costs[system.name]["sampling_ms"],
            "speed_up_end_to_end": fastest_base["total_ms"] / costs[system.name]["total_ms"],
        }
        for system in systems
    ]
    embedder = load_embedder("musicnn")
    return {
        "systems": rows,
        "floor": _quality(sampled[FLOOR.name].embeddings, reference, k),
        "samples": config.evaluate.num_samples,
        "embeddings": {"generated": len(sampled[FLOOR.name].embeddings), "reference": len(reference)},
        "embedding": {"name": embedder.name, "digest": embedder.digest},
        "decoder_digest": models["teacher"].codec.decoder_digest,
        "hardware": hardware(_best_device()),
        "seed": config.seed,
        "parents": place.parent_ids,
        "budgets": {label: models[role].card.layer_budget for role, label in labels.items()},
        "hidden_variance": hidden_variances(models, labels, uris["dataset"]),
        "clip_seconds": fastest_base["clip_seconds"],
    }


def _quality(generated: Array, reference: Array, k: int) -> dict[str, float]:
    return {
        "fd": frechet_distance(generated=generated, reference=reference),
        "mmd": mmd(generated=generated, reference=reference),
        **prdc(generated=generated, reference=reference, k=k),
    }


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _commit(config: EvaluateStage, result: dict[str, Any], sampled: dict[str, Sampled], place: Workplace) -> None:
    rate_hz = place.parents["teacher"].manifest["model"]["codec"]["sample_rate_hz"]
    sounds = {
        f"audio/{_slug(name)}-{i}.wav": _wav(clip, rate_hz)
        for name, one in sampled.items()
        if name != FLOOR.name
        for i, clip in enumerate(one.audio)
    }
    # what promotion draws its confidence interval from
    embeddings = {name: np.ascontiguousarray(one.embeddings, dtype=np.float32) for name, one in sampled.items()}
    embeddings["reference"] = embeddings.pop(REFERENCE.name)
    commit_artifact(
        place.artifact,
        kind="report",
        artifact_id=place.run_id,
        config_yaml=settings_yaml(config),
        parents=place.parent_ids,
        files={
            EMBEDDINGS: save(embeddings),
            "report.json": json.dumps(result, indent=2).encode(),
            "quality_vs_blocks.png": plots.quality_vs_blocks(result),
            "hidden_variance.png": plots.hidden_variance(result["hidden_variance"]),
            "index.html": report.to_html(result, sorted(sounds)).encode(),
            **sounds,
        },
        details={
            "report": {
                "floor_fd": result["floor"]["fd"],
                "seed": result["seed"],
                "measure": f"{result['embedding']['digest'][:16]} of what {result['decoder_digest'][:16]} decodes",
            }
        },
    )


def _unpack(artifact: Artifact) -> dict[str, Any]:
    """Put the report where it can be opened, and print its table; returns what report.json holds."""
    source, target = open_folder(artifact.uri), REPORTS / artifact.id
    for name in artifact.manifest["files"].keys() - {EMBEDDINGS}:
        path = target / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read_file(source, name, artifact.manifest))
    result: dict[str, Any] = json.loads((target / "report.json").read_text())
    report.print_table(result)
    console.print(f"evaluate: page with plots and sounds: {target / 'index.html'}")
    return result


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def _wav(samples: Array, rate_hz: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()
