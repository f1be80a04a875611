"""What promotion reads of a report: clips of its models' chosen settings and of real music, on the validation split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load

from pipelines.data.parquet_tensors import Array
from pipelines.registry.evaluation_tags import EMBEDDINGS, select_best_rows
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import read_file
from presto_core.errors import UserError
from presto_core.metrics.mmd_ratio import GroupedEmbeddings
from presto_core.metrics.table import headline_metric
from presto_core.models.pretrained import find_export_of

REFERENCE = "real music"  # names of real music in a report: what systems are compared with, the floor, and a control
FLOOR = "train/real music, train"
NOISE = "train/real music, train, noise"


@dataclass(frozen=True)
class ChosenSamples:
    """Clips of one model by the setting that the validation split chose.

    Attributes:
        system: name of the setting, as in tables.
        clips: number of clips; each has one embedding or more.
    """

    system: str
    clips: int
    embeddings: GroupedEmbeddings


@dataclass(frozen=True)
class ReportSamples:
    """A report's content and its embeddings.

    Attributes:
        result: content of report.json.
        arrays: name -> embeddings [clips, patches, D], and tracks [clips].
        split: the split that models are compared on: the validation split, or that of data sets made before it.
    """

    report: Artifact
    result: dict[str, Any]
    arrays: dict[str, Array]
    split: str

    @property
    def dataset_id(self) -> str:
        return str(self.report.manifest["parents"]["dataset"])

    @property
    def comparison_key(self) -> tuple[str, str]:
        """What distances depend on: data set, and the measure (embedding and decoder)."""
        return self.dataset_id, str(self.report.manifest["report"].get("measure"))

    @property
    def reference(self) -> ChosenSamples:
        return self._get(REFERENCE, f"{self.split}/{REFERENCE}")

    def get_control(self, key: str) -> GroupedEmbeddings:
        """Return the clips of `FLOOR` or `NOISE`; raises UserError if the report holds none."""
        if key not in self.arrays:
            raise UserError(f"report {self.report.id} has no clips of {key.partition('/')[2]}")
        return self._get(key, key).embeddings

    def find_model(self, artifact_id: str) -> str | None:
        """Return the id by which the report holds a model, or the model of the package that is an export of it."""
        ids = [value for role, value in self.report.manifest["parents"].items() if role != "dataset"]
        return next((found for found in ids if is_same_model(found, artifact_id)), None)

    def select(self, artifact_id: str) -> ChosenSamples:
        """Return a model's clips by its chosen setting.

        Raises:
            UserError: the report has no row of this model.
        """
        row = select_best_rows(self.result, self.report.manifest["parents"]).get(artifact_id)
        if row is None or f"{self.split}/{row['name']}" not in self.arrays:
            raise UserError(f"report {self.report.id} has no clips of {artifact_id} on the {self.split} split")
        return self._get(str(row["name"]), f"{self.split}/{row['name']}")

    @property
    def fitness(self) -> dict[str, Any]:
        """Whether the metric that ranks is fit for this music: `state` and `reason`; empty if it was not tested."""
        verdicts = self.result.get("fitness", {}).get(self.result["embedding"]["name"]) or {}
        return dict(verdicts.get(headline_metric().name, {}))

    def _get(self, system: str, key: str) -> ChosenSamples:
        """Embeddings are stored as [clips, patches, D]: repeat the track of a clip for each patch."""
        values, tracks = self.arrays[key].astype(np.float64), self.arrays[f"{key}/tracks"]
        grouped = GroupedEmbeddings(values.reshape(-1, values.shape[-1]), np.repeat(tracks, values.shape[1]))
        return ChosenSamples(system, len(values), grouped)


def read_samples(report: Artifact) -> ReportSamples:
    """Read a report.

    Raises:
        UserError: it was made before reports had clips by track, or without clips of the validation split.
    """
    folder, details = open_folder(report.uri), report.manifest["report"]
    if EMBEDDINGS not in report.manifest["files"] or "split" not in details:
        raise UserError(f"report {report.id} was made before there was a validation split: no clips by track")
    arrays = load(read_file(folder, EMBEDDINGS, report.manifest))
    split = str(details["validation_split"])
    if f"{split}/{REFERENCE}" not in arrays:
        raise UserError(f"report {report.id} has no clips of the validation split, which promotion compares")
    return ReportSamples(report, json.loads(read_file(folder, "report.json", report.manifest)), arrays, split)


def is_same_model(one: str, other: str) -> bool:
    """Whether two artifacts are one model: the same, or one that the package holds an export of."""
    return one == other or (find_export_of(one) or one) == (find_export_of(other) or other)
