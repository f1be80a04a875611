"""`presto train-teacher|distill-layers|distill-steps`: the verbs that train, and go on with what was interrupted."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Annotated

import typer

from infra.cli.dispatch import dispatch
from infra.cli.options import DryRun, StageArgs
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL, On
from pipelines.presets.resolve import load_stage_config
from presto_core.config.schema import StageConfig
from presto_core.errors import UserError

ResumeRun = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="RUN_ID",
        help="Go on with this run; refused, with the difference, where its settings are others.",
        show_default=False,
    ),
]
Fork = Annotated[
    bool, typer.Option("--fork", help="With --resume and other settings: a new run from its newest checkpoint.")
]


def train_teacher(
    words: StageArgs = None, resume: ResumeRun = "", fork: Fork = False, on: On = LOCAL, dry_run: DryRun = False
) -> None:
    """Train the base model on latents."""
    _run("train-teacher", words, resume, fork=fork, on=on, dry_run=dry_run)


def distill_layers(
    words: StageArgs = None, resume: ResumeRun = "", fork: Fork = False, on: On = LOCAL, dry_run: DryRun = False
) -> None:
    """Teach the base model to run fewer blocks where noise is high (Presto-L; layers.mode=ase for the baseline)."""
    _run("distill-layers", words, resume, fork=fork, on=on, dry_run=dry_run)


def distill_steps(
    words: StageArgs = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="MODEL", help="Layer-distilled model to start from: presto-generator@candidate-l."
        ),
    ] = None,
    resume: ResumeRun = "",
    fork: Fork = False,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    """Distil the base model into a few-step generator (Presto-S; with --from, Presto-LS)."""
    if layers == "":
        raise UserError(
            "--from is empty; name a layer-distilled model, such as presto-generator@candidate-l, or leave it out"
        )
    start = [] if layers is None else [f"inputs.layers={json.dumps(layers)}"]
    _run("distill-steps", [*(words or []), *start], resume, fork=fork, on=on, dry_run=dry_run)


def _run(stage: str, args: list[str] | None, resume: str, *, fork: bool, on: str, dry_run: bool) -> None:
    def run(config: StageConfig) -> None:
        from pipelines.train.resume import ResumeOptions

        import_module(f"pipelines.stages.{stage.replace('-', '_')}").run(config, ResumeOptions(resume, fork))

    options = (*(("--resume", resume) if resume else ()), *(("--fork",) if fork else ()))
    config = load_stage_config(stage, args or [])
    # a fork has an id of its own, which follows from the checkpoint that it starts from
    command = StageCommand((stage,), stage, config, run, options, run_id="" if fork else resume)
    dispatch(command, on=on, dry_run=dry_run)
