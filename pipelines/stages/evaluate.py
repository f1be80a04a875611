"""Stage: teacher and its distilled models -> a report: distances to held-out music, latency, sounds and plots."""

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
from pipelines.evaluate.latency import measure_hidden_variance, measure_latency_and_blocks
from pipelines.evaluate.systems import (
    NOISE_FLOOR,
    REFERENCE,
    EvaluatedSystem,
    SystemSamples,
    list_compared_systems,
    make_method_labels,
    sample_systems,
)
from pipelines.inference.model import open_model
from pipelines.registry.compatibility import check_comparable, check_teacher_matches_dataset
from pipelines.registry.evaluation_tags import EMBEDDINGS, record_measurements
from pipelines.registry.names import REPORT
from pipelines.stages.runner import REPORTS, StageContext, run_stage
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.loader import settings_to_yaml
from presto_core.config.schema import EvaluateStage
from presto_core.extras import check_extra
from presto_core.metrics.embed import load_embedder
from presto_core.metrics.latency import describe_hardware
from presto_core.metrics.table import EmbeddingSets, list_validation_metrics, measure_quality


def run(config: EvaluateStage) -> Artifact:
    """Compare the teacher with its distilled models; an existing report is reused.

    Raises:
        UserError: an artifact is unknown or of other latents, nothing is held out, or the cluster is too small.
    """

    def execute(ctx: StageContext) -> None:
        check_extra("plots", "evaluate's report")
        teacher, models = ctx.parents["teacher"], _select_models(ctx)
        check_teacher_matches_dataset(teacher, ctx.parents["dataset"])
        check_comparable({role: a for role, a in models.items() if role != "teacher"}, teacher)
        uris = {"dataset": ctx.parents["dataset"].uri} | {role: artifact.uri for role, artifact in models.items()}
        systems = list_compared_systems(config.evaluate, models)
        samples = sample_systems(config, [REFERENCE, NOISE_FLOOR, *systems], uris, ctx.scratch)
        result = _compute_result(config, systems, samples, uris, ctx)
        _commit(config, result, samples, ctx)
        for row in result["systems"]:
            ctx.run.log(row["nfe"], {f"{row['label']}/{k}": row[k] for k in list_validation_metrics()})

    artifact = run_stage("evaluate", config, execute, register_as=REPORT)
    result = _unpack_report(artifact)
    record_measurements(open_tracker(config.tracking).client, artifact, result)
    return artifact


def _select_models(ctx: StageContext) -> dict[str, Artifact]:
    """The models to evaluate by role; one that is named twice is evaluated once."""
    first_role = {a.id: role for role, a in reversed(ctx.parents.items())}
    return {role: a for role, a in ctx.parents.items() if role != "dataset" and first_role[a.id] == role}


def _compute_result(
    config: EvaluateStage,
    systems: list[EvaluatedSystem],
    samples: dict[str, SystemSamples],
    uris: dict[str, str],
    ctx: StageContext,
) -> dict[str, Any]:
    """The whole result as plain data: what report.json holds."""
    reference, k = samples[REFERENCE.name].embeddings, config.evaluate.nearest_k
    teacher_embeddings = samples[systems[0].name].embeddings
    models = {role: open_model(uris[role], device=_select_device()) for role in _select_models(ctx)}
    labels = make_method_labels(_select_models(ctx))
    costs = measure_latency_and_blocks(config, systems, models, uris["dataset"])
    reference_costs = costs[systems[0].name]
    rows = [
        {
            **asdict(system),
            **measure_quality(EmbeddingSets(samples[system.name].embeddings, reference, teacher_embeddings, k)),
            **costs[system.name],
            "speed_up": reference_costs["latency_ms"] / costs[system.name]["latency_ms"],
            "speed_up_end_to_end": reference_costs["total_ms"] / costs[system.name]["total_ms"],
        }
        for system in systems
    ]
    embedder = load_embedder("musicnn")
    return {
        "systems": rows,
        "floor": measure_quality(EmbeddingSets(samples[NOISE_FLOOR.name].embeddings, reference, nearest_k=k)),
        "samples": config.evaluate.num_samples,
        "embeddings": {"generated": len(samples[NOISE_FLOOR.name].embeddings), "reference": len(reference)},
        "embedding": {"name": embedder.name, "digest": embedder.digest},
        "decoder_digest": models["teacher"].codec.decoder_digest,
        "hardware": describe_hardware(_select_device()),
        "seed": config.seed,
        "parents": ctx.parent_ids,
        "budgets": {label: models[role].card.layer_budget for role, label in labels.items()},
        "hidden_variance": measure_hidden_variance(models, labels, uris["dataset"]),
        "clip_seconds": reference_costs["clip_seconds"],
    }


def _select_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _commit(
    config: EvaluateStage, result: dict[str, Any], samples: dict[str, SystemSamples], ctx: StageContext
) -> None:
    rate_hz = ctx.parents["teacher"].manifest["model"]["codec"]["sample_rate_hz"]
    sounds = {
        f"audio/{_slugify(name)}-{i}.wav": _encode_wav(clip, rate_hz)
        for name, one in samples.items()
        if name != NOISE_FLOOR.name
        for i, clip in enumerate(one.audio)
    }
    # promotion computes its confidence interval from them
    embeddings = {name: np.ascontiguousarray(one.embeddings, dtype=np.float32) for name, one in samples.items()}
    embeddings["reference"] = embeddings.pop(REFERENCE.name)
    commit_artifact(
        ctx.artifact,
        kind="report",
        artifact_id=ctx.run_id,
        config_yaml=settings_to_yaml(config),
        parents=ctx.parent_ids,
        files={
            EMBEDDINGS: save(embeddings),
            report.REPORT_FILE: json.dumps(result, indent=2).encode(),
            "quality_vs_blocks.png": plots.plot_quality_vs_blocks(result),
            "hidden_variance.png": plots.plot_hidden_variance(result["hidden_variance"]),
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


def _unpack_report(artifact: Artifact) -> dict[str, Any]:
    """Copy the report to a local folder, and print its table; returns what report.json holds."""
    source, target = open_folder(artifact.uri), REPORTS / artifact.id
    for name in artifact.manifest["files"].keys() - {EMBEDDINGS}:
        path = target / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read_file(source, name, artifact.manifest))
    result = report.read_report(artifact)
    report.print_table(result)
    console.print(f"evaluate: page with plots and sounds: {target / 'index.html'}")
    return result


def _slugify(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def _encode_wav(samples: Array, rate_hz: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()
