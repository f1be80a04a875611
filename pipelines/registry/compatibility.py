"""What must hold between the artifacts a stage starts from, checked before any work; and what a model is called."""

from __future__ import annotations

from typing import Any

from presto_core.artifacts.manifest import Artifact
from presto_core.errors import UserError
from presto_core.networks.layer_budget import LayerBudget


def distillation_method(artifact: Artifact) -> str:
    """How a model was made, as tables name it: base, L, ASE, S, LS, ASE-S, or S-drop (blocks of the base dropped)."""
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
    """The base must be one, trained on latents of the same codec, text encoder and statistics.

    Raises:
        UserError: it is not.
    """
    if teacher.kind != "teacher":
        raise UserError(f"inputs.teacher={teacher.uri} is a {teacher.kind}, not a teacher")
    data = dataset.manifest.get("dataset", {})
    difference = _find_difference(teacher.manifest["model"], data | data.get("latents", {}))
    if difference:
        raise UserError(
            f"teacher {teacher.id} and data set {dataset.id} differ in their {difference}; use the data set "
            f"that the teacher was trained on: inputs.dataset={teacher.manifest['parents'].get('dataset')}"
        )


def check_layers_match_teacher(layers: Artifact, teacher: Artifact) -> None:
    """A layer-distilled model must be one, with its table, and come from this base.

    Raises:
        UserError: it is not.
    """
    if layers.kind != "layers":
        raise UserError(
            f"inputs.layers={layers.uri} is a {layers.kind}; give a model that presto distill-layers made, such as "
            "presto-generator@candidate-l"
        )
    try:
        LayerBudget.from_dict(layers.manifest["model"]["layer_budget"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"layer-distilled model {layers.id} has no table of blocks by noise level, so what it runs is unknown; "
            "make it again with presto distill-layers"
        ) from None
    teacher_id = layers.manifest["parents"].get("teacher")
    if teacher_id != teacher.id:
        raise UserError(
            f"layer-distilled model {layers.id} comes from teacher {teacher_id}, not from {teacher.id}; use a "
            f"layer-distilled model of that teacher, or set inputs.teacher={teacher_id}"
        )


def check_comparable(models: dict[str, Artifact], teacher: Artifact) -> None:
    """Models judged beside a base must be distilled ones, of the same codec, text encoder and statistics.

    Raises:
        UserError: one is not.
    """
    for model in models.values():
        if model.kind not in ("layers", "generator"):
            raise UserError(
                f"{model.uri} is a {model.kind}; beside the base, evaluate compares layer-distilled models and "
                "generators: mend inputs.compared and inputs.generator"
            )
        difference = _find_difference(model.manifest["model"], teacher.manifest["model"])
        if difference:
            raise UserError(
                f"{model.kind} {model.id} and teacher {teacher.id} differ in their {difference}; judge it beside its "
                f"own base: inputs.teacher={model.manifest['parents'].get('teacher')}"
            )


def _find_difference(model: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first of what two descriptions of latents must share and do not."""
    for name, key in (("codec", "codec"), ("text encoder", "text")):
        if model[key]["digest"] != other.get(key, {}).get("digest"):
            return name
    same = all(model[key] == other.get(key) for key in ("mean", "std"))
    return None if same else "latent statistics"
