"""Checks that a stage's input artifacts fit together, made before any work; and the name of a model's method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from pipelines.console import console
from presto_core.artifacts.manifest import Artifact
from presto_core.errors import UserError
from presto_core.models.pretrained import find_export_of
from presto_core.networks.layer_budget import LayerBudget


def distillation_method(artifact: Artifact) -> str:
    """Return a model's method as in tables: base (teacher), L, ASE, S, LS, ASE-S, S-drop (teacher blocks dropped)."""
    budget = (artifact.manifest.get("model") or {}).get("layer_budget") or {}
    exits_early = budget.get("mode") == "ase"
    if artifact.kind == "layers":
        return "ASE" if exits_early else "L"
    if artifact.kind != "generator":
        return "base"
    if "layers" in artifact.manifest["parents"]:
        return "ASE-S" if exits_early else "LS"
    return "S-drop" if budget else "S"


MAX_MEAN_SHIFT = 2.0  # standard deviations, RMS over channels; beyond it the music is another kind of signal
MAX_STD_RATIO = 2.0  # either way


@dataclass(frozen=True)
class StatisticsDifference:
    """How far a data set's latents lie from those that a model is trained on.

    Attributes:
        mean_shift: RMS over channels of the difference of means, in the model's standard deviations.
        std_ratio: RMS over channels of the data set's standard deviations, divided by the model's.
    """

    mean_shift: float
    std_ratio: float

    @property
    def is_zero(self) -> bool:
        return self.mean_shift == 0 and self.std_ratio == 1

    @property
    def is_absurd(self) -> bool:
        ratio = max(self.std_ratio, 1 / self.std_ratio) if self.std_ratio > 0 else float("inf")
        return self.mean_shift > MAX_MEAN_SHIFT or ratio > MAX_STD_RATIO

    def __str__(self) -> str:
        return f"means differ by {self.mean_shift:.3f} standard deviations, and these by x{self.std_ratio:.3f}"


def compare_statistics(model: Mapping[str, Any], latents: Mapping[str, Any]) -> StatisticsDifference:
    """Compare the latent statistics (`mean`, `std`, [C] each) of a model card with those of a data set."""
    if list(model["mean"]) == list(latents["mean"]) and list(model["std"]) == list(latents["std"]):
        return StatisticsDifference(0.0, 1.0)
    shifts = [(theirs - own) / std for own, theirs, std in zip(model["mean"], latents["mean"], model["std"])]
    return StatisticsDifference(_rms(shifts), _rms(latents["std"]) / _rms(model["std"]))


def _rms(values: list[float]) -> float:
    return sqrt(sum(value * value for value in values) / len(values))


def check_teacher_matches_dataset(teacher: Artifact, dataset: Artifact) -> None:
    """Check that a teacher can be used with a data set: same codec, text encoder and clip length, similar statistics.

    The statistics of a data set are those of its training rows, so they are never equal for another data set. Models
    keep the teacher's, by which latents are normalized; one line shows the difference.

    Raises:
        UserError: they do not fit, or it is not a teacher.
    """
    if teacher.kind != "teacher":
        raise UserError(
            f"inputs.teacher={teacher.uri} is a {teacher.kind}, not a teacher; name a model of presto train-teacher"
        )
    data = dataset.manifest.get("dataset", {})
    model, latents = teacher.manifest["model"], data.get("latents", {})
    if difference := _find_difference(model, data):
        if model.get("precondition"):
            raise UserError(
                f"teacher {teacher.id} is imported, and data set {dataset.id} was made with another {difference}; "
                f"ingest with codec.kind=diffusers text.kind=diffusers codec.path and text.path="
                f"{model['codec']['path']} text.max_tokens={model['text']['max_tokens']}"
            )
        raise UserError(
            f"teacher {teacher.id} and data set {dataset.id} differ in their {difference}; use the data set "
            f"that the teacher was trained on: inputs.dataset={teacher.manifest['parents'].get('dataset')}"
        )
    for name in ("channels", "frames"):
        if model.get(name) != latents.get(name):
            raise UserError(
                f"teacher {teacher.id} makes latents of {model.get(name)} {name}, and those of data set {dataset.id} "
                f"have {latents.get(name)}; ingest again with the codec of the teacher and ingest.chunk_frames="
                f"{model.get('frames')}"
            )
    _check_statistics(teacher, dataset, compare_statistics(model, latents))


def _check_statistics(teacher: Artifact, dataset: Artifact, difference: StatisticsDifference) -> None:
    # an imported teacher takes the codec's latents as they are, so that no statistics were those of its training
    if difference.is_zero or teacher.manifest["model"].get("precondition"):
        return
    what = f"latents of data set {dataset.id} and of teacher {teacher.id}: {difference}"
    if difference.is_absurd:
        raise UserError(
            f"{what}; this is more than {MAX_MEAN_SHIFT:g} standard deviations or a factor of {MAX_STD_RATIO:g}, so "
            "the teacher does not know such music; train one on it, or check the ingest's loudness and codec"
        )
    console.print(f"{what}; the teacher's are used", markup=False)


def check_whole_rows(teacher: Artifact, crop_frames: int) -> None:
    """Refuse crops for a teacher that always makes clips of one length; raises UserError."""
    if crop_frames and teacher.manifest["model"]["network"].get("clip_seconds"):
        raise UserError(
            f"data.crop_frames={crop_frames} does not fit teacher {teacher.id}, which always makes "
            f"{teacher.manifest['model']['frames']} frames; set it to 0"
        )


def check_layers_match_teacher(layers: Artifact, teacher: Artifact) -> None:
    """Check that a layer-distilled model has a layer budget and was distilled from this teacher.

    Raises:
        UserError: it has none, has another teacher, or is not a layer-distilled model.
    """
    if layers.kind != "layers":
        raise UserError(
            f"inputs.layers={layers.uri} is a {layers.kind}; name a model of presto distill-layers, such as "
            "presto-generator@candidate-l"
        )
    try:
        LayerBudget.from_dict(layers.manifest["model"]["layer_budget"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"layer-distilled model {layers.id} has no layer budget, so the blocks it runs are unknown; "
            "make it again with presto distill-layers"
        ) from None
    teacher_id = layers.manifest["parents"].get("teacher")
    if teacher_id not in (teacher.id, read_export_source(teacher)):
        raise UserError(
            f"layer-distilled model {layers.id} comes from teacher {teacher_id}, not from {teacher.id}; use a "
            f"layer-distilled model of that teacher, or set inputs.teacher={_name_parent(layers, 'teacher')}"
        )


def check_comparable(models: dict[str, Artifact], teacher: Artifact) -> None:
    """Check that models are distilled and share the teacher's codec, text encoder and latent statistics.

    Raises:
        UserError: one of them does not.
    """
    for model in models.values():
        if model.kind not in ("layers", "generator"):
            raise UserError(
                f"{model.uri} is a {model.kind}, but evaluate compares a teacher with layer-distilled models and "
                "generators; correct inputs.compared and inputs.generator"
            )
        card, teacher_card = model.manifest["model"], teacher.manifest["model"]
        difference = _find_difference(card, teacher_card)
        if not difference and any(card[key] != teacher_card[key] for key in ("mean", "std")):
            difference = "latent statistics"
        if difference:
            raise UserError(
                f"{model.kind} {model.id} and teacher {teacher.id} differ in their {difference}; evaluate it with "
                f"its own teacher: inputs.teacher={_name_parent(model, 'teacher')}"
            )


def read_export_source(artifact: Artifact) -> str:
    """Return the id of the artifact that a pretrained one is an export of; empty for any other."""
    return str((artifact.manifest.get("export") or {}).get("source", ""))


def _name_parent(artifact: Artifact, role: str) -> str:
    """A reference to a parent: the package's model that is an export of it, or its id."""
    parent = str(artifact.manifest["parents"].get(role))
    return find_export_of(parent) or parent


def _find_difference(model: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return which encoder of latents and captions two descriptions do not share, or None."""
    for name, key in (("codec", "codec"), ("text encoder", "text")):
        if model[key]["digest"] != other.get(key, {}).get("digest"):
            return name
    return None
