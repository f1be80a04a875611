"""Stage: teacher and its distilled models -> a report: quality on the test split, latency, sounds and plots."""

from __future__ import annotations

import json
from statistics import median
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from safetensors.numpy import save

from pipelines.cluster.actor_pool import runs_in_process
from pipelines.cluster.device import check_reserved
from pipelines.console import console
from pipelines.evaluate import plots, report
from pipelines.evaluate.comparison import Comparison, compare_systems
from pipelines.evaluate.folder_systems import fingerprint_folders
from pipelines.evaluate.kept_clips import encode_prompts, keep_clips
from pipelines.evaluate.latency import describe_parts, measure_hidden_variance, measure_latency_and_blocks
from pipelines.evaluate.page.fetch import fetch_report
from pipelines.evaluate.page.page import render_page
from pipelines.evaluate.systems import list_compared_systems, make_method_labels
from pipelines.inference.model import open_model
from pipelines.registry.catalog import Catalog
from pipelines.registry.compatibility import check_comparable, check_teacher_matches_dataset
from pipelines.registry.evaluation_tags import EMBEDDINGS, record_measurements
from pipelines.registry.names import REPORT
from pipelines.stages.runner import StageContext, run_stage
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.loader import settings_to_yaml
from presto_core.config.schema import EvaluateStage
from presto_core.device import resolve_device
from presto_core.extras import check_extra
from presto_core.metrics.embedders.table import load_embedder
from presto_core.metrics.latency import describe_hardware
from presto_core.metrics.table import list_validation_metrics
from presto_core.models.pretrained import find_pretrained
from presto_core.models.recorded_components import OwnFolders

FORMAT = 2


def run(config: EvaluateStage) -> Artifact:
    """Compare the teacher with its distilled models; an existing report is reused.

    Raises:
        UserError: an artifact is unknown or of other latents, a split is empty, or the cluster is too small.
    """

    def execute(ctx: StageContext) -> None:
        check_extra("plots", "evaluate's report")
        resolve_device(config.cluster.device, setting="cluster.device")  # before the first clip
        if not runs_in_process(config.cluster):
            check_reserved(config.cluster)
        teacher, models = ctx.parents["teacher"], _select_models(ctx)
        check_teacher_matches_dataset(teacher, ctx.parents["dataset"])
        check_comparable({role: a for role, a in models.items() if role != "teacher"}, teacher)
        uris = {"dataset": ctx.parents["dataset"].uri} | {role: artifact.uri for role, artifact in models.items()}
        systems = list_compared_systems(config.evaluate, models)
        comparison = compare_systems(config, systems, uris, ctx.scratch)
        console.print(f"evaluate: timing clips of {len(systems)} systems")
        result = comparison.result | _measure_models(config, comparison, uris, ctx)
        _add_costs(result)
        _commit(config, result, comparison, ctx)
        for row in result["systems"]:
            values = {f"{row['label']}/{k}": row[k] for k in list_validation_metrics() if k in row}
            ctx.run.log(row["nfe"], values)

    inputs = fingerprint_folders(config.evaluate) | fingerprint_embedders(config.evaluate)
    artifact = run_stage("evaluate", config, execute, register_as=REPORT, inputs=inputs)
    folder = fetch_report(artifact)
    result = report.read_report(artifact)
    report.print_table(result)
    console.print(f"evaluate: page to listen and compare: {render_page(folder)}", markup=False)
    record_measurements(open_tracker(config.tracking).client, artifact, result)
    return artifact


def fingerprint_embedders(config: EvaluateConfig) -> dict[str, str]:
    """Embedder -> digest of its weights, of those that are not in the package: other weights make another report.

    Raises:
        EmbedderError: weights are missing, or of another kind.
    """
    return {f"embedder {e.kind}={e.path}": load_embedder(e).digest for e in config.embedders if e.path}


def _select_models(ctx: StageContext) -> dict[str, Artifact]:
    """The models to evaluate by role; one that is named twice is evaluated once."""
    first_role = {a.id: role for role, a in reversed(ctx.parents.items())}
    return {role: a for role, a in ctx.parents.items() if role != "dataset" and first_role[a.id] == role}


def _measure_models(
    config: EvaluateStage, comparison: Comparison, uris: dict[str, str], ctx: StageContext
) -> dict[str, Any]:
    """What is measured on the models themselves, and where they come from."""
    models = _select_models(ctx)
    device = resolve_device(config.cluster.device, setting="cluster.device")
    own = OwnFolders.from_config(config.storage)
    opened = {role: open_model(uris[role], device=device, folders=own) for role in models}
    labels = make_method_labels(models)
    systems = [one.system for one in comparison.compared if one.system.role not in ("real", "folder")]
    teacher = opened["teacher"]
    return {
        "format": FORMAT,
        "costs": measure_latency_and_blocks(config, systems, opened, uris["dataset"]),
        "hidden_variance": measure_hidden_variance(opened, labels, uris["dataset"]),
        "hardware": describe_hardware(device) | {"requested": config.cluster.device, "parts": describe_parts(opened)},
        "decoder_digest": teacher.codec.decoder_digest,
        "sample_rate_hz": teacher.codec.sample_rate_hz,
        "clip_seconds": teacher.card.frames * teacher.codec.hop / teacher.codec.sample_rate_hz,
        "budgets": {label: opened[role].card.layer_budget for role, label in labels.items()},
        "models": _describe_models(config, models, labels),
        "parents": ctx.parent_ids,
        "seed": config.seed,
    }


def _describe_models(config: EvaluateStage, models: dict[str, Artifact], labels: dict[str, str]) -> dict[str, Any]:
    """Role -> label, artifact and registered version of a model, with links if MLflow is a server."""
    tracker = open_tracker(config.tracking)
    catalog = Catalog(tracker.client)
    base = _strip_credentials(tracker.uri) if tracker.uri.startswith("http") else ""
    described = {}
    for role, artifact in models.items():
        versions = catalog.list_artifact_versions(artifact.id)
        newest = max(versions, key=lambda version: version.number, default=None)
        version_url = f"{base}/#/models/{newest.name}/versions/{newest.number}" if newest and base else ""
        run_url = f"{base}/#/experiments/{tracker.experiment_id}/runs/{newest.mlflow_run}" if newest and base else ""
        described[role] = {
            "label": labels[role],
            "artifact": artifact.id,
            "version": newest.label if newest else find_pretrained(artifact.id) or "",
            "version_url": version_url,
            "run_url": run_url,
        }
    return described


def _strip_credentials(url: str) -> str:
    """The address without the user and password that it may contain: a report is passed on."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def _add_costs(result: dict[str, Any]) -> None:
    """Put each system's costs into its row, and how much faster it is than the first: end to end, and the network."""
    costs = result.pop("costs")
    # text encoder and decoder are the same for all systems: their medians over all calls leave the network's difference
    text_ms, decode_ms = (median(cost[part] for cost in costs.values()) for part in ("text_ms", "decode_ms"))
    for cost in costs.values():
        total_ms = text_ms + cost["latency_ms"] + decode_ms
        cost |= {"text_ms": text_ms, "decode_ms": decode_ms, "total_ms": total_ms}
        cost["real_time_factor"] = cost["clip_seconds"] * 1e3 / total_ms
    first = costs[result["systems"][0]["name"]]
    for row in result["systems"]:
        if row["name"] not in costs:  # folders of audio
            continue
        cost = costs[row["name"]]
        row |= cost | {
            "speed_up": first["latency_ms"] / cost["latency_ms"],
            "speed_up_end_to_end": first["total_ms"] / cost["total_ms"],
        }


def _commit(config: EvaluateStage, result: dict[str, Any], comparison: Comparison, ctx: StageContext) -> None:
    kept = keep_clips(
        comparison.on_test_prompts, count=config.evaluate.save_audio, rate_hz=result["sample_rate_hz"], seed=config.seed
    )
    result |= {"clips": kept.clips, "prompts": kept.prompts, "target_lufs": kept.target_lufs}
    commit_artifact(
        ctx.artifact,
        kind="report",
        artifact_id=ctx.run_id,
        config_yaml=settings_to_yaml(config),
        parents=ctx.parent_ids,
        files={
            EMBEDDINGS: save(_collect_arrays(comparison)),
            "prompts.jsonl": encode_prompts(comparison.test_prompts),
            report.REPORT_FILE: json.dumps(result, indent=2, allow_nan=False).encode(),
            "quality_vs_blocks.png": plots.plot_quality_vs_blocks(result),
            "hidden_variance.png": plots.plot_hidden_variance(result["hidden_variance"]),
            **_plot_costs(result),
            **kept.files,
        },
        details={"report": _summarize(result, comparison)},
    )


def _plot_costs(result: dict[str, Any]) -> dict[str, bytes]:
    return {"quality_vs_time.png": plots.plot_quality_vs_time(result)}


def _collect_arrays(comparison: Comparison) -> dict[str, Any]:
    """Embeddings and tracks on the validation split, from which promotion computes its interval; test ones beside."""
    arrays = {}
    for one in comparison.compared + comparison.validated:
        key = f"{one.system.split}/{one.system.name}"
        arrays[key] = np.ascontiguousarray(one.samples.embeddings(), dtype=np.float32)
        arrays[f"{key}/tracks"] = np.ascontiguousarray(one.prompts.groups, dtype=np.int64)
    return arrays


def _summarize(result: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seed": result["seed"],
        "split": result["split"],
        "validation_split": comparison.validation_split,
        "measure": f"{result['embedding']['digest'][:16]} of what {result['decoder_digest'][:16]} decodes",
    }
