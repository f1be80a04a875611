"""Compare a candidate's clips with the champion's: how far its MMD exceeds a multiple of the champion's."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load

from pipelines.data.parquet_tensors import Array
from pipelines.registry.catalog import Version
from pipelines.registry.evaluation_tags import EMBEDDINGS, select_best_rows
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import read_file
from presto_core.errors import UserError
from presto_core.metrics.distances import mmd
from presto_core.metrics.intervals import assign_groups, jackknife_half_width

REFERENCE = "real music"  # name of the real music that systems are compared with, in a report


@dataclass(frozen=True)
class GroupedEmbeddings:
    """Embeddings [N, D] with the number of each one's track [N]."""

    values: Array
    groups: Array

    def without(self, dropped: Array) -> GroupedEmbeddings:
        """Leave out some tracks."""
        keep = ~np.isin(self.groups, dropped)
        return GroupedEmbeddings(self.values[keep], self.groups[keep])


@dataclass(frozen=True)
class Excess:
    """MMDs of candidate and champion, and the upper end of the interval of `mine - ratio * theirs`."""

    mine: float
    theirs: float
    high: float


def estimate_excess(
    mine: GroupedEmbeddings,
    theirs: GroupedEmbeddings,
    reference: GroupedEmbeddings,
    *,
    ratio: float,
    groups: int,
    confidence: float,
) -> Excess:
    """Estimate `MMD(mine) - ratio * MMD(theirs)` with a delete-a-group jackknife over tracks.

    A difference, since a ratio has no usable interval where the champion's MMD is near zero. Clips of both follow the
    same prompts, so tracks of prompts are left out of both at once; then tracks of the reference.

    Args:
        groups: groups of tracks that are left out in turn.
        confidence: probability mass of the two-sided interval.

    Raises:
        UserError: without a group, clips are of fewer than two tracks.
    """
    try:
        return _estimate(mine, theirs, reference, ratio=ratio, groups=groups, confidence=confidence)
    except ValueError as error:
        tracks = [len(np.unique(one.groups)) for one in (mine, theirs, reference)]
        raise UserError(
            f"clips of candidate and champion are of {tracks[0]} and {tracks[1]} tracks, real music of {tracks[2]}: "
            f"too few for an interval ({error}); evaluate with a larger evaluate.validation_samples, or on more tracks"
        ) from None


def _estimate(
    mine: GroupedEmbeddings,
    theirs: GroupedEmbeddings,
    reference: GroupedEmbeddings,
    *,
    ratio: float,
    groups: int,
    confidence: float,
) -> Excess:
    def excess(a: GroupedEmbeddings, b: GroupedEmbeddings, real: GroupedEmbeddings) -> float:
        return _mmd(a, real) - ratio * _mmd(b, real)

    prompt_parts = assign_groups(np.concatenate([mine.groups, theirs.groups]), groups)
    reference_parts = assign_groups(reference.groups, groups)
    over_prompts = [excess(mine.without(part), theirs.without(part), reference) for part in prompt_parts]
    over_reference = [excess(mine, theirs, reference.without(part)) for part in reference_parts]
    value = excess(mine, theirs, reference)
    return Excess(
        _mmd(mine, reference),
        _mmd(theirs, reference),
        value + jackknife_half_width(over_prompts, over_reference, confidence=confidence),
    )


def _mmd(generated: GroupedEmbeddings, reference: GroupedEmbeddings) -> float:
    return mmd(
        generated=generated.values,
        reference=reference.values,
        generated_groups=generated.groups,
        reference_groups=reference.groups,
    )


def load_chosen_samples(report: Artifact, version: Version) -> tuple[GroupedEmbeddings, GroupedEmbeddings]:
    """Return a version's clips by its chosen system, and the reference: on the validation split where it was sampled.

    Raises:
        UserError: the report holds none, or was made before reports had tracks.
    """
    folder, details = open_folder(report.uri), report.manifest["report"]
    if EMBEDDINGS not in report.manifest["files"] or "split" not in details:
        raise UserError(f"report {report.id} has no clips to compare by track; run presto evaluate again")
    arrays = load(read_file(folder, EMBEDDINGS, report.manifest))
    result = json.loads(read_file(folder, "report.json", report.manifest))
    row = select_best_rows(result, report.manifest["parents"])[version.artifact_id]
    split = (
        details["validation_split"] if f"{details['validation_split']}/{row['name']}" in arrays else details["split"]
    )
    return _get_grouped(arrays, f"{split}/{row['name']}"), _get_grouped(arrays, f"{split}/{REFERENCE}")


def _get_grouped(arrays: dict[str, Array], key: str) -> GroupedEmbeddings:
    """Return one system's embeddings, stored as [clips, patches, D], with the track of each patch."""
    values, tracks = arrays[key].astype(np.float64), arrays[f"{key}/tracks"]
    return GroupedEmbeddings(values.reshape(-1, values.shape[-1]), np.repeat(tracks, values.shape[1]))
