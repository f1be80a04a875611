"""Stage: a diffusers folder or a repository of the hub -> a teacher that was trained elsewhere."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.console import console, print_warning
from pipelines.registry.names import NAME_OF_KIND
from pipelines.stages.runner import StageContext, run_stage
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.config.loader import settings_to_yaml
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import ImportTeacherStage
from presto_core.errors import UserError
from presto_core.models.hub import Source, fetch_settings, fetch_weights, is_repository
from presto_core.models.lcm_grid import STEPS
from presto_core.models.model_card import ModelCard, serialize_network
from presto_core.models.teacher_folder import TeacherFolder, read_teacher_folder


def run(config: ImportTeacherStage) -> Artifact:
    """Import a teacher, or reuse it.

    Raises:
        UserError: the source is empty or cannot be fetched, or is no teacher that can be used; before anything is
            loaded. Weights are damaged, or the self-test fails.
    """
    settings = config.model
    if not settings.source:
        raise UserError("nothing to import: name a folder or a repository, as in presto teacher import ORG/NAME")
    torch.set_num_threads(config.cluster.torch_threads)
    source = find_source(settings.source, settings.revision, licence=settings.licence, seconds=settings.seconds)
    folder = read_teacher_folder(source.path, licence=settings.licence, seconds=settings.seconds)

    def execute(ctx: StageContext) -> None:
        _commit(config, source, folder, ctx)

    inputs = {"source": folder.digest}
    artifact = run_stage("import-teacher", config, execute, register_as=choose_name(config, folder), inputs=inputs)
    _print_source(artifact)
    if folder.grid:
        own = shlex.quote(str(folder.path.absolute()))
        words = f"--model {artifact.id} storage.codec_folder={own} storage.text_folder={own}"
        console.print(f'next: presto generate "PROMPT" {words}', markup=False, soft_wrap=True)
    else:
        _print_next(artifact, folder)
    return artifact


def choose_name(config: ImportTeacherStage, folder: TeacherFolder) -> str:
    """Return the registry name: a few-step model is a generator, whose name is another unless one is set."""
    return NAME_OF_KIND["generator"] if folder.grid and config.name == NAME_OF_KIND["teacher"] else config.name


def find_source(source: str, revision: str, *, licence: str = "", seconds: float | None = None) -> Source:
    """Return the local folder of a source; of a repository, settings are checked before weights are fetched."""
    if not is_repository(source):
        if revision:
            raise UserError(f"model.revision={revision} needs a repository, and {source} is a folder; leave it out")
        return Source(Path(source).expanduser())
    found = fetch_settings(source, revision)
    read_teacher_folder(found.path, licence=licence, with_weights=False, seconds=seconds)
    fetch_weights(found)
    return found


def _commit(config: ImportTeacherStage, source: Source, folder: TeacherFolder, ctx: StageContext) -> None:
    """Load the network, test it, and commit it as an artifact of kind teacher."""
    from presto_core.models.teacher_import import load_network, run_self_test

    network = load_network(folder)
    test = run_self_test(folder, network)
    card = make_card(folder, network.config.model_dump(mode="json"))
    details = {
        "model": card.to_dict(),
        "source": {
            **source.to_dict(),
            "digest": folder.digest,
            "licence": folder.licence,
            "scheduler": folder.components["scheduler"].settings,
            "components": folder.describe(),
            "frozen_weights": len(network.config.frozen),
        },
        "self_test": {"levels": test.errors, "largest_relative_error": test.worst},
    }
    commit_artifact(
        ctx.artifact,
        kind="generator" if folder.grid else "teacher",
        artifact_id=ctx.run_id,
        config_yaml=settings_to_yaml(config),
        parents={},
        files=serialize_network(network),
        details=details,
    )


def make_card(folder: TeacherFolder, network: dict[str, Any]) -> ModelCard:
    """Describe the model: latents as the codec makes them, and the folder's own codec and text encoder."""
    from presto_core.audio.load_codec import load_codec
    from presto_core.models.teacher_import import make_precondition
    from presto_core.text.encoder import load_text_encoder

    path = str(folder.path.absolute())
    codec = load_codec("diffusers", path=path)
    text = load_text_encoder("diffusers", path=path, max_tokens=folder.text_tokens, frames=folder.frames)
    card = ModelCard(
        network=network,
        channels=folder.channels,
        frames=folder.frames,
        sigma_data=1.0,
        mean=[0.0] * folder.channels,
        std=[1.0] * folder.channels,
        codec={
            "kind": "diffusers",
            "path": path,
            "digest": codec.digest,
            "sample_rate_hz": codec.sample_rate_hz,
            "hop": codec.hop,
        },
        text={
            "kind": "diffusers",
            "path": path,
            "max_tokens": folder.text_tokens,
            "name": text.name,
            "digest": text.digest,
            "dim": text.dim,
        },
    )
    schedules = None
    if grid := folder.grid:
        schedules = {str(steps): ScheduleConfig(sigmas=grid.list_sigmas(steps)).model_dump() for steps in STEPS}
    return replace(
        card,
        precondition=make_precondition(folder),
        sigma_range=folder.sigma_range,
        few_step_schedules=schedules,
    )


def _print_source(artifact: Artifact) -> None:
    """Print what was read, the licence, and the self-test."""
    source, test = artifact.manifest["source"], artifact.manifest["self_test"]
    for row in source["components"]:  # lines, which no width of a terminal cuts
        weights = f"{row['bytes'] / 1e6:9.1f} MB" if row["files"] else f"{'-':>12}"
        line = f"{row['component']:<17} {row['class']:<45} {weights}  sha256 {row['digest'][:12]}"
        console.print(f"import: {line}  {', '.join(row['files'])}".rstrip(), markup=False)
    where = f"{source['repository']}@{source['revision']}" if "repository" in source else source["folder"]
    console.print(f"import: {where}, licence: {source['licence'] or 'unknown'}", markup=False)
    if not source["licence"]:
        print_warning("import: the folder names no licence; find it out, and set model.licence to it")
    card = artifact.manifest["model"]
    low, high = card["sigma_range"]
    console.print(
        f"import: prediction {card['precondition']['kind']}, sigma {low:g} to {high:g}; "
        f"{source['frozen_weights']} weights stay as they are",
        markup=False,
    )
    console.print(
        f"import: self-test against the folder's scheduler at {len(test['levels'])} levels: x0 differs by at most "
        f"{test['largest_relative_error']:.1e} of its largest value",
        markup=False,
    )


def _print_next(artifact: Artifact, folder: TeacherFolder) -> None:
    """Print the commands that distil this teacher, with the settings that follow from it."""
    path, (low, high) = shlex.quote(str(folder.path.absolute())), folder.sigma_range
    p_gen = f"steps.p_gen.sigma_min={low:g} steps.p_gen.sigma_max={high:g}"
    if folder.precondition["kind"] in ("flow", "flow_reversed"):
        # its stock sampler starts at t = 1, which no range of sigma reaches
        grid = folder.kind.make_grid(precondition=folder.precondition, sigma_max=high)
        levels = ", ".join(f"{sigma:.4g}" for sigma in grid.list_sigmas(4))
        p_gen = shlex.quote(f'steps.p_gen={{"kind": "levels", "sigmas": [{levels}]}}')
    ingest = (
        f"presto ingest codec.kind=diffusers codec.path={path} text.kind=diffusers text.path={path} "
        f"text.max_tokens={folder.text_tokens} ingest.chunk_frames={folder.frames} ingest.tail=pad "
        f"{'ingest.channels=stereo ' if folder.audio_channels == 2 else ''}ingest.source=MUSIC"
    )
    for line in (
        ingest,
        f"presto distill-layers inputs.teacher={artifact.id}",
        f"presto distill-steps inputs.teacher={artifact.id} {p_gen} steps.guidance_scale=7",
        'presto generate "PROMPT"',
    ):
        console.print(f"next: {line}", markup=False, soft_wrap=True)
