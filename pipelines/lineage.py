"""What must hold between the artifacts a stage starts from, checked before any work; and what a model is called."""

from __future__ import annotations

from typing import Any

from presto_core.config.errors import UserError
from presto_core.registry.manifest import Artifact


def method_of(artifact: Artifact) -> str:
    """How a model was made, as tables name it: base, L, ASE, S, LS, ASE-S."""
    budget = (artifact.manifest.get("model") or {}).get("layer_budget")
    layers = "" if budget is None else "ASE" if budget.get("mode") == "ase" else "L"
    if artifact.kind == "generator":
        return {"": "S", "L": "LS", "ASE": "ASE-S"}[layers]
    return layers or "base"


def require_teacher_of(teacher: Artifact, dataset: Artifact) -> None:
    """The base must be one, trained on latents of the same codec, text encoder and statistics.

    Raises:
        UserError: it is not.
    """
    if teacher.kind != "teacher":
        raise UserError(f"inputs.teacher={teacher.uri} is a {teacher.kind}, not a teacher")
    data = dataset.manifest.get("dataset", {})
    different = _difference(teacher.manifest["model"], data | data.get("latents", {}))
    if different:
        raise UserError(
            f"teacher {teacher.id} and data set {dataset.id} differ in their {different}; distil on the data set "
            f"that the teacher was trained on: inputs.dataset={teacher.manifest['parents'].get('dataset')}"
        )


def require_layers_of(layers: Artifact, teacher: Artifact) -> None:
    """A layer-distilled model must be one, with its table, and come from this base.

    Raises:
        UserError: it is not.
    """
    if layers.kind != "layers":
        raise UserError(
            f"inputs.layers={layers.uri} is a {layers.kind}; give a model that presto distill-layers made, such as "
            "presto-layers@candidate"
        )
    table = layers.manifest["model"].get("layer_budget") or {}
    if not table.get("kept"):
        raise UserError(
            f"layer-distilled model {layers.id} has no table of blocks by noise level, so what it runs is unknown; "
            "make it again with presto distill-layers"
        )
    base = layers.manifest["parents"].get("teacher")
    if base != teacher.id:
        raise UserError(
            f"layer-distilled model {layers.id} comes from base {base}, not from {teacher.id}; start from one of the "
            f"same base, or set inputs.teacher={base}"
        )


def require_comparable(model: Artifact, teacher: Artifact) -> None:
    """Models judged beside each other must make latents of the same codec from captions of the same text encoder.

    Raises:
        UserError: they do not, or it is no model.
    """
    if "model" not in model.manifest:
        raise UserError(f"{model.uri} is a {model.kind}, not a model that can be judged")
    different = _difference(model.manifest["model"], teacher.manifest["model"])
    if different:
        raise UserError(
            f"{model.kind} {model.id} and teacher {teacher.id} differ in their {different}; judge it beside its own "
            f"base, {model.manifest['parents'].get('teacher')}"
        )


def _difference(model: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first of what two descriptions of latents must share and do not."""
    for name, key in (("codec", "codec"), ("text encoder", "text")):
        if model[key]["digest"] != other.get(key, {}).get("digest"):
            return name
    same = all(model[key] == other.get(key) for key in ("mean", "std"))
    return None if same else "latent statistics"
