"""Checks that a stage's input artifacts fit together, made before any work; and the name of a model's method."""

from __future__ import annotations

from typing import Any

from presto_core.artifacts.manifest import Artifact
from presto_core.errors import UserError
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


def check_teacher_matches_dataset(teacher: Artifact, dataset: Artifact) -> None:
    """Check that a teacher was trained on latents of the data set's codec, text encoder and statistics.

    Raises:
        UserError: it was not, or is not a teacher.
    """
    if teacher.kind != "teacher":
        raise UserError(
            f"inputs.teacher={teacher.uri} is a {teacher.kind}, not a teacher; name a model of presto train-teacher"
        )
    data = dataset.manifest.get("dataset", {})
    difference = _find_difference(teacher.manifest["model"], data | data.get("latents", {}))
    if difference:
        raise UserError(
            f"teacher {teacher.id} and data set {dataset.id} differ in their {difference}; use the data set "
            f"that the teacher was trained on: inputs.dataset={teacher.manifest['parents'].get('dataset')}"
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
    if teacher_id != teacher.id:
        raise UserError(
            f"layer-distilled model {layers.id} comes from teacher {teacher_id}, not from {teacher.id}; use a "
            f"layer-distilled model of that teacher, or set inputs.teacher={teacher_id}"
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
        difference = _find_difference(model.manifest["model"], teacher.manifest["model"])
        if difference:
            raise UserError(
                f"{model.kind} {model.id} and teacher {teacher.id} differ in their {difference}; evaluate it with "
                f"its own teacher: inputs.teacher={model.manifest['parents'].get('teacher')}"
            )


def _find_difference(model: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first property that two descriptions of latents must share and do not, or None."""
    for name, key in (("codec", "codec"), ("text encoder", "text")):
        if model[key]["digest"] != other.get(key, {}).get("digest"):
            return name
    same = all(model[key] == other.get(key) for key in ("mean", "std"))
    return None if same else "latent statistics"
