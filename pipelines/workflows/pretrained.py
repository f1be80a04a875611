"""`presto pretrain`: the models in the package, remade from nothing: corpus, teacher, its gate, L, S, LS, evaluation.

Training runs in this process on latents alone. Re-running the command resumes at the last checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import console
from pipelines.workflows.demo import (
    TEACHER_INPUTS,
    FlowNode,
    load_flow_configs,
    open_training_session,
    resolve_inputs,
    run_node,
)
from presto_core.config.schema import CorpusStage, EvaluateStage
from presto_core.config.sections import TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import check_extra
from presto_core.models.pretrained import NAMES, get_pretrained_folder

if TYPE_CHECKING:  # --dry-run starts without numpy
    from presto_core.artifacts.manifest import Artifact

BEFORE_GATE, AFTER_GATE = ("corpus", "ingest", "teacher"), ("L", "S", "LS", "evaluate")
NODES = BEFORE_GATE + AFTER_GATE
EXPORTS = dict(zip(("teacher", "L", "S", "LS"), NAMES))
TEST_REPORT = "test_report.json"
ONE_THREAD = ("ingest", "evaluate")  # nodes that run several workers
LICENCE = (
    "the licence of Presto's code; trained on public-domain compositions and on music composed by program, rendered "
    "with the soundfont TimGM6mb (GPL-2), which the weights do not contain"
)


def run(preset: str, overrides: list[str], *, folder: Path | None, anyway: bool) -> list[Artifact]:
    """Train, evaluate and export the models; what is finished is reused.

    Args:
        folder: receives one folder per model; None means the package's own.
        anyway: distill a teacher that fails its gate.

    Returns:
        The exported artifacts.

    Raises:
        UserError: the folder cannot be written, the teacher fails its gate, or a stage failed.
    """
    from pipelines.storage.filesystem import absolute_uri

    configs = load_configs(preset, overrides)
    target = (folder or get_pretrained_folder()).absolute()
    check_writable(target)
    for extra in ("corpus", "plots"):
        check_extra(extra, "presto pretrain")
    root = absolute_uri(configs["ingest"].storage.root)
    artifacts: dict[str, Any] = {}
    with open_training_session(configs["teacher"].cluster):
        _run_nodes(BEFORE_GATE, configs, root, artifacts)
        gate = check_gate(configs, root, artifacts, anyway=anyway)
        _run_nodes(AFTER_GATE, configs, root, artifacts)
    exported = export_models(configs, artifacts, target, gate=gate)
    _print_sizes(exported, target)
    return exported


def load_configs(preset: str, overrides: list[str]) -> dict[str, StageConfig]:
    """Return the settings of each node; those that run several workers get one thread per worker."""
    configs = load_flow_configs(preset, overrides)
    return {name: _set_threads(configs[name], 1) if name in ONE_THREAD else configs[name] for name in NODES}


def _set_threads(config: StageConfig, threads: int) -> StageConfig:
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"torch_threads": threads})})


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot receive the models, before hours of work; raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; give another folder with --output") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written; give another folder with --output")


def _run_nodes(names: tuple[str, ...], configs: dict[str, StageConfig], root: str, artifacts: dict[str, Any]) -> None:
    for name in names:
        started = time.monotonic()
        artifacts[name] = run_node(name, configs[name], root, artifacts)
        console.print(f"[dim]{name} took {(time.monotonic() - started) / 60:.1f} min")


def check_gate(
    configs: dict[str, StageConfig], root: str, artifacts: dict[str, Any], *, anyway: bool
) -> dict[str, Any]:
    """Return the gate of the teacher, for its manifest; raises UserError if it fails, unless `anyway`."""
    from pipelines.workflows.teacher_study import check_teacher

    config = resolve_inputs(FlowNode("evaluate", TEACHER_INPUTS), configs["evaluate"], root, artifacts)
    assert isinstance(config, EvaluateStage)
    gate = check_teacher(config)
    if gate.has_failed and not anyway:
        raise UserError(
            f"teacher {gate.teacher} does not pass its gate ({gate.verdict}), so that nothing is distilled from it; "
            "train a better one (teacher.steps, network.dim, corpus.minutes), or continue with --anyway"
        )
    return gate.to_dict()


def export_models(
    configs: dict[str, StageConfig], artifacts: dict[str, Any], folder: Path, *, gate: Mapping[str, Any]
) -> list[Artifact]:
    """Write the four models to a folder with their test results, gate and provenance, and read each of them back."""
    from pipelines.evaluate.report import read_report
    from pipelines.registry.export import export_artifact

    report = read_report(artifacts["evaluate"])
    return [
        export_artifact(
            artifacts[node].uri,
            folder,
            name=name,
            licence=LICENCE,
            training_data=describe_data(configs["corpus"], artifacts["ingest"]),
            provenance=describe_run(artifacts[node], configs[node].tracking),
            details={"gate": dict(gate)} if node == "teacher" else {},
            files={TEST_REPORT: json.dumps(select_results(report, artifacts[node]), indent=2).encode()},
        )
        for node, name in EXPORTS.items()
    ]


def describe_data(corpus: StageConfig, dataset: Artifact) -> str:
    """One line about the music that the models are trained on."""
    assert isinstance(corpus, CorpusStage)
    info = dataset.manifest["dataset"]
    return (
        f"data set {dataset.id}: {corpus.corpus.minutes / 60:g} h of the default corpus (presto corpus build, seed "
        f"{corpus.seed}), {info['rows']['train']} rows"
    )


def describe_run(artifact: Artifact, tracking: TrackingConfig) -> dict[str, Any]:
    """The command that remakes a model, and the hours that its updates took, all attempts together."""
    seconds = measure_training(artifact, tracking)
    hours = {} if seconds is None else {"training_hours": round(seconds / 3600, 6)}
    return {"command": "make pretrained", **hours}


def measure_training(artifact: Artifact, tracking: TrackingConfig) -> float | None:
    """Seconds that a run's updates took, from its rows in MLflow; None if MLflow does not know the run."""
    from pipelines.tracking.client import open_tracker
    from pipelines.tracking.run import TrackedRun

    tracker = open_tracker(tracking)
    mlflow_id = tracker.find_run(artifact.id)
    if mlflow_id is None:
        return None
    return sum_seconds(TrackedRun(tracker.client, mlflow_id).read_history("step_seconds"))


def sum_seconds(rows: list[tuple[int, float]]) -> float:
    """Sum (step, mean seconds per step since the row before) over the steps between rows."""
    steps = [0, *(step for step, _ in rows)]
    return sum(seconds * (step - before) for before, (step, seconds) in zip(steps, rows))


def select_results(report: Mapping[str, Any], artifact: Artifact) -> dict[str, Any]:
    """The part of a report that is about one model: its systems, the floor, and what they were measured with."""
    label = next(model["label"] for model in report["models"].values() if model["artifact"] == artifact.id)
    shared = ("split", "samples", "tracks", "confidence", "embedding", "floor", "hardware", "notes", "seed")
    return {
        "systems": [row for row in report["systems"] if row["label"].split()[0] == label],
        **{key: report[key] for key in shared if key in report},
    }


def _print_sizes(exported: list[Artifact], folder: Path) -> None:
    for artifact in exported:
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        console.print(f"{artifact.manifest['export']['name']}: {artifact.id}, {size / 1e6:.1f} MB", markup=False)
    console.print(f"pretrained models are in {folder}; next: presto generate 'solo piano, slow, A minor'", markup=False)
