"""Export a model for use elsewhere: as an artifact's folder, a diffusers pipeline, or torch.export programs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from pipelines.inference.model import Model, open_model
from pipelines.inference.prompts import make_conditions, parse_prompt
from pipelines.registry.export import WeightDtype, write_export
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.errors import UserError
from presto_core.models.model_card import ModelCard
from presto_core.models.program_folder import write_program_folder
from presto_core.models.recorded_components import OwnFolders
from presto_core.models.student_folder import ExportError, check_can_write, choose_budget, write_student_folder
from presto_core.models.teacher_licence import check_licence, find_licence
from presto_core.networks.layer_budget import check_budgets

Format = Literal["presto", "diffusers", "torch-export"]
FORMATS: tuple[Format, ...] = get_args(Format)
SHOWN_STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class ExportRequest:
    """What to write.

    Attributes:
        budget: number of blocks at every noise level; None keeps the model's own.
        dtype: of the weights in an artifact's folder.
    """

    target: Path
    format: Format
    budget: int | None = None
    dtype: WeightDtype = "fp32"


@dataclass(frozen=True)
class Exported:
    """What was written, in lines for the user."""

    path: Path
    lines: list[str] = field(default_factory=list)


def check_export(artifact: Artifact, request: ExportRequest) -> None:
    """Refuse what cannot be written, from the model's card alone.

    Raises:
        UserError: the folder exists, the artifact is no model of a kind that the format holds, or has no such budget.
    """
    target, kind = request.target, artifact.kind
    if target.exists():
        raise UserError(f"{target} exists; name a new folder, or remove it")
    if "model" not in artifact.manifest:
        raise UserError(f"{artifact.uri} is a {kind}, not a model; name a trained model")
    if kind != "generator" and request.format != "presto":
        raise ExportError(
            f"{artifact.id} is of kind {kind}, which needs its own sampler; --format {request.format} holds few-step "
            "generators, so distil it first (presto distill-steps), or use --format presto"
        )
    if request.dtype != "fp32" and request.format != "presto":
        raise ExportError(f"--dtype {request.dtype} is for --format presto; {request.format} has fp32 weights")
    card = ModelCard(**artifact.manifest["model"])
    if request.format == "diffusers":
        check_can_write(card)
        choose_budget(card, request.budget)
    if request.budget is not None:
        check_budgets([request.budget], card.depth)


def export_model(artifact: Artifact, request: ExportRequest, folders: OwnFolders = OwnFolders()) -> Exported:
    """Write a model to a new folder, whole or not at all.

    Raises:
        UserError: see `check_export`; a folder of the teacher's components is missing, or another's; its licence
            forbids models made from it; or the written model does not compute what this one does.
    """
    check_export(artifact, request)
    if request.format == "presto":
        return _write_artifact(artifact, request)
    model = open_model(artifact.uri, folders=folders, content=content_hash(artifact.manifest))
    make_folders(request.target.parent)
    if request.format == "diffusers":
        return _write_pipeline(model, request)
    return _write_programs(model, request)


def _write_artifact(artifact: Artifact, request: ExportRequest) -> Exported:
    written = write_export(artifact.uri, request.target, dtype=request.dtype, budget=request.budget)
    card = ModelCard(**written.manifest["model"])
    counts = [card.depth] if card.budget is None else sorted(set(card.budget.kept))
    blocks = f"{', '.join(map(str, counts))} blocks"
    return Exported(
        request.target,
        [
            f"artifact {written.id} of kind {written.kind}, {blocks}, {request.dtype} weights",
            f'next: presto generate "PROMPT" --model {_spell_path(request.target)}',
        ],
    )


def _spell_path(path: Path) -> str:
    """Return a path that a command takes for a folder, and not for the name of a model."""
    return str(path) if "/" in str(path) else f"./{path}"


def _write_pipeline(model: Model, request: ExportRequest) -> Exported:
    own = model.folders.codec
    if not own:
        recorded = str(model.card.codec.get("path"))[:80]
        raise ExportError(
            f"a pipeline has the teacher's codec and text encoder (then in {recorded!r}); name your copy of the "
            "teacher's folder: storage.codec_folder=… storage.text_folder=…"
        )
    teacher = Path(own)
    assert model.codec  # the one that the model was made with, and so the text encoder
    assert model.text_encoder
    if Path(model.folders.text).resolve() != teacher.resolve():
        raise ExportError("storage.codec_folder and storage.text_folder differ; name one folder of the whole teacher")
    licence = find_model_licence(model.artifact)
    if licence is None:
        licence = find_licence(teacher)
        check_licence(licence, teacher)
    budget = choose_budget(model.card, request.budget)
    written = write_student_folder(
        model.network,
        model.card,
        teacher=teacher,
        target=request.target,
        budget=budget,
        licence=licence,
        model_id=model.artifact.id,
    )
    found = f"x0 of the folder's own scheduler differs by at most {written.error:.1e} of the largest value"
    lines = [f"{budget} of {model.card.depth} blocks, licence: {licence or 'unknown'}; {found}"]
    for steps in SHOWN_STEPS:
        levels = ",".join(f"{sigma:.4g}" for sigma in written.sigmas[steps])
        lines.append(f"{steps} steps visit sigma {levels}")
    lines.append(f"next: {written.load}(PROMPT, num_inference_steps=4, {written.call})")
    return Exported(request.target, lines)


def find_model_licence(artifact: Artifact) -> str | None:
    """Return the licence that the import of a model's teacher recorded; None if that is not beside it."""
    source = artifact.manifest.get("source")
    teacher_id = artifact.manifest["parents"].get("teacher")
    if source is None and teacher_id:
        beside = open_folder(artifact.uri.rstrip("/").rpartition("/")[0]).child(str(teacher_id))
        source = read_artifact(beside).manifest.get("source") if beside.exists(MANIFEST) else None
    return None if source is None else str(source.get("licence") or "")


def _write_programs(model: Model, request: ExportRequest) -> Exported:
    written = write_program_folder(
        model.network,
        model.card,
        cond=_make_example_conditions(model),
        target=request.target,
        budget=request.budget,
        model_id=model.artifact.id,
    )
    files = ", ".join(written.files.values())
    found = f"latents of the example differ by at most {written.error:.1e} of the largest value"
    return Exported(
        request.target,
        [
            f"{files}: torch.export programs; {found}",
            "next: sampler.json has inputs, noise levels and rule; torch.export.load reads a program",
        ],
    )


def _make_example_conditions(model: Model) -> Conditioning:
    """Return the conditions of a prompt; those of no prompt, in the same shape, if its text encoder is not here."""
    if not model.card.text.get("path") or model.folders.text:
        prompt = "solo piano, slow, A minor"
        return make_conditions(model, [prompt], [parse_prompt(prompt)])
    tokens, width = int(model.card.text["max_tokens"]), int(model.card.text["dim"])
    seconds = model.card.clip_seconds
    return Conditioning(
        pooled=torch.zeros(1, width),
        tokens=torch.zeros(1, tokens, width),
        mask=torch.zeros(1, tokens, dtype=torch.bool),
        tempo_bpm=torch.full((1,), math.nan),
        key=torch.full((1,), UNKNOWN_KEY),
        keep=torch.zeros(1, dtype=torch.bool),
        timing=None if seconds is None else torch.tensor([[0.0, seconds]]),
    )
