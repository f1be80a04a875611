"""`presto export MODEL FOLDER --format presto|diffusers|torch-export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from infra.cli.options import Preview, RegistryArgs
from pipelines.console import console
from pipelines.presets.resolve import load_stage_config
from presto_core.config.loader import ConfigError

FORMATS = ("presto", "diffusers", "torch-export")
DTYPES = ("fp32", "bf16", "fp16")


def export(
    model: Annotated[
        str,
        typer.Argument(help="A model in the package, champion, candidate-ls, presto-generator@v3, an id or a URI."),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    settings: RegistryArgs = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="`presto`: an artifact, for presto generate --model FOLDER; `diffusers`: a pipeline for "
            "DiffusionPipeline.from_pretrained, if the generator's teacher was imported (set "
            "storage.codec_folder and storage.text_folder to your copy of the teacher); `torch-export`: programs "
            "that need only PyTorch.",
        ),
    ] = "presto",
    budget: Annotated[
        int | None,
        typer.Option(help="Number of transformer blocks at every noise level; default: the model's own.", min=1),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the weights with --format presto: fp32, bf16 or fp16.")
    ] = "fp32",
    dry_run: Preview = False,
) -> None:
    """Write a model for use elsewhere, in a new folder: an artifact, a diffusers pipeline, or torch.export programs."""
    for option, value, known in (("--format", format_, FORMATS), ("--dtype", dtype, DTYPES)):
        if value not in known:
            raise ConfigError(f"{option} {value} is unknown; use {', '.join(known)}")
    config = load_stage_config("registry", settings or [], takes_preset=False)
    from pipelines.registry.presence import check_references

    check_references(config.tracking, {"generator": model})
    from pipelines.inference.export_formats import ExportRequest, check_export, export_model
    from pipelines.registry.resolve import resolve, resolve_pretrained
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.sqlite_registry import open_for_reading
    from presto_core.models.recorded_components import OwnFolders

    artifact = resolve_pretrained(model)
    if artifact is None:
        artifact = resolve(open_for_reading(config.tracking), model, absolute_uri(config.storage.root))
    request = ExportRequest(folder.expanduser(), cast(Any, format_), budget, cast(Any, dtype))
    if dry_run:
        check_export(artifact, request)
        console.print(f"export: would write {artifact.id} to {folder} as {format_}", markup=False)
        return
    exported = export_model(artifact, request, OwnFolders.from_config(config.storage))
    for line in exported.lines:
        console.print(f"export: {line}", markup=False, soft_wrap=True)
    console.print(f"export: {artifact.id} is in {exported.path} as {format_}", markup=False, soft_wrap=True)
