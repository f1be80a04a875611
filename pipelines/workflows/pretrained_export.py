"""What `presto pretrain` writes: four models in half the bytes, their noise levels, gate, provenance, test results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console import console
from pipelines.evaluate.report import read_report
from pipelines.evaluate.schedule_choice import choose_schedules, to_card_entry
from pipelines.registry.export import export_artifact
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.run import TrackedRun
from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.config.schema import CorpusStage, EvaluateStage
from presto_core.config.sections import TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.config.validation import ValidationConfig
from presto_core.models.pretrained import NAMES

EXPORTS = dict(zip(("teacher", "L", "S", "LS"), NAMES))
GENERATORS = ("S", "LS")
TEST_REPORT = "test_report.json"
LICENCE = (
    "the licence of Presto's code; trained on public-domain compositions and on music composed by program, rendered "
    "with the soundfont TimGM6mb (GPL-2), which the weights do not contain"
)
Schedules = dict[str, dict[str, float]]
"""Noise levels by number of steps, as a model card stores them."""


@dataclass(frozen=True)
class Export:
    """Writes the models to a folder.

    Attributes:
        artifacts: the trained models and the data set, by node.
        gate: verdict on the teacher, for its manifest.
        schedules: node -> noise levels of a generator.
    """

    configs: Mapping[str, StageConfig]
    artifacts: Mapping[str, Artifact]
    folder: Path
    gate: Mapping[str, Any]
    schedules: Mapping[str, Schedules]

    def write(self, *, report: Artifact | None = None) -> dict[str, Artifact]:
        """Write every model and read it back; return the exports by node.

        Args:
            report: an evaluation of these exports, whose results become a file of each.
        """
        return {node: self._write_one(node, name, report) for node, name in EXPORTS.items()}

    def _write_one(self, node: str, name: str, report: Artifact | None) -> Artifact:
        source = self.artifacts[node]
        files = {}
        if report:
            results = select_results(read_report(report), read_artifact(open_folder(str(self.folder / name))))
            files[TEST_REPORT] = json.dumps(results, indent=2).encode()
        return export_artifact(
            source.uri,
            self.folder,
            name=name,
            licence=LICENCE,
            training_data=describe_data(self.configs["corpus"], self.artifacts["ingest"]),
            provenance=describe_run(source, self.configs[node].tracking),
            details={"gate": dict(self.gate)} if node == "teacher" else {},
            card={"few_step_schedules": self.schedules[node]} if node in self.schedules else {},
            files=files,
        )


def choose_all_schedules(
    configs: Mapping[str, StageConfig], artifacts: Mapping[str, Artifact], folder: Path
) -> dict[str, Schedules]:
    """Choose each generator's noise levels on validation clips; those that its export in the folder has are kept."""
    evaluation = configs["evaluate"]
    assert isinstance(evaluation, EvaluateStage)
    validation = ValidationConfig(samples=evaluation.evaluate.validation_samples, reference_samples=512, batch_size=16)
    steps, chosen = evaluation.evaluate.student_steps, dict[str, Schedules]()
    for node in GENERATORS:
        stored = _read_schedules(folder / EXPORTS[node], artifacts[node])
        if stored.keys() == set(map(str, steps)):
            console.print(f"{node}: noise levels of its export in {folder} are kept", markup=False)
            chosen[node] = stored
        else:
            console.print(f"{node}: choosing noise levels on {validation.samples} validation clips", markup=False)
            uris = artifacts[node].uri, artifacts["ingest"].uri
            chosen[node] = to_card_entry(choose_schedules(*uris, steps=steps, validation=validation))
    return chosen


def _read_schedules(folder: Path, source: Artifact) -> Schedules:
    """The noise levels in an export of this artifact; none if the folder holds no such export."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = read_artifact(open_folder(str(folder))).manifest
    if manifest["export"]["source"] != source.id:
        return {}
    return manifest["model"].get("few_step_schedules") or {}


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


def print_sizes(exported: Iterable[Artifact], folder: Path) -> None:
    """Print the size of each export, and what to do with them."""
    for artifact in exported:
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        console.print(f"{artifact.manifest['export']['name']}: {artifact.id}, {size / 1e6:.1f} MB", markup=False)
    console.print(f"pretrained models are in {folder}; next: presto generate 'solo piano, slow, A minor'", markup=False)
