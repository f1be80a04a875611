"""One command per row of the table of stages: `presto <stage> [preset] [key=value ...]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from infra.cli.dispatch import dispatch
from infra.cli.edit import edit
from infra.cli.generate import generate
from infra.cli.options import WAIT_SETTING, DryRun, On, StageArgs, Wait
from infra.cli.stage_help import make_command_class
from infra.cli.teacher import import_teacher
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL
from pipelines.console import print_text, print_warning
from pipelines.presets.resolve import load_stage_config
from pipelines.stages.table import STAGES, Stage
from presto_core.config.schema import IngestStage
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError

GROUPS = {
    "corpus": "The default corpus: music made from packages alone.",
    "teacher": "Teachers that were trained elsewhere.",
}
ResumeRun = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="RUN_ID",
        help="Resume this run; refused, with the differences, if its settings differ.",
        show_default=False,
    ),
]
Fork = Annotated[
    bool,
    typer.Option("--fork", help="With --resume and different settings: start a new run from its newest checkpoint."),
]


def add_stage_commands(app: typer.Typer) -> None:
    """Add a command for every row that has a summary; rows with arguments of their own are in SPECIAL_COMMANDS."""
    groups: dict[str, typer.Typer] = {}
    for stage in STAGES.values():
        if not stage.summary:
            continue
        parent = app
        if len(stage.command) == 2:
            name = stage.command[0]
            if name not in groups:
                groups[name] = typer.Typer(no_args_is_help=True, help=GROUPS.get(name, ""))
                app.add_typer(groups[name], name=name)
            parent = groups[name]
        function = SPECIAL_COMMANDS.get(stage.name) or _make_command(stage)
        parent.command(stage.command[-1], help=stage.summary, cls=make_command_class(stage))(function)


def _make_command(stage: Stage) -> Callable[..., None]:
    def run(args: StageArgs = None, on: On = LOCAL, dry_run: DryRun = False) -> None:
        dispatch_stage(stage.name, args or [], on=on, dry_run=dry_run)

    def write(args: StageArgs = None, wait: Wait = False, on: On = LOCAL, dry_run: DryRun = False) -> None:
        dispatch_stage(stage.name, args or [], wait=wait, on=on, dry_run=dry_run)

    def train(
        args: StageArgs = None,
        resume: ResumeRun = "",
        fork: Fork = False,
        wait: Wait = False,
        on: On = LOCAL,
        dry_run: DryRun = False,
    ) -> None:
        dispatch_stage(stage.name, args or [], resume=resume, fork=fork, wait=wait, on=on, dry_run=dry_run)

    return train if stage.trains else write if stage.writes_run else run


def dispatch_stage(
    name: str,
    args: list[str],
    *,
    resume: str = "",
    fork: bool = False,
    wait: bool = False,
    on: str,
    dry_run: bool,
) -> None:
    """Run a stage with a preset and overrides, or show what would run."""
    settings = [*args, *([WAIT_SETTING] if wait else [])]
    command = StageCommand(name, load_stage_config(name, settings), resume=resume, fork=fork)
    dispatch(command, on=on, dry_run=dry_run)


def ingest(
    args: StageArgs = None,
    max_bad_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of files that can be unusable, 0 to 1; above it the run fails (ingest.max_bad_fraction)."
        ),
    ] = None,
    wait: Wait = False,
    on: On = LOCAL,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved settings and the files that would be used, with their captions, tempi, keys and "
            "licences, and stop; needs no Ray and writes nothing.",
        ),
    ] = False,
) -> None:
    allowed = [] if max_bad_fraction is None else [f"ingest.max_bad_fraction={max_bad_fraction}"]
    settings = [*(args or []), *allowed]
    dispatch_stage("ingest", settings, wait=wait, on=on, dry_run=dry_run)
    if dry_run and on == LOCAL:
        _print_ingest_preview(load_stage_config("ingest", settings))


def _print_ingest_preview(config: StageConfig) -> None:
    """Print what would be taken as comments below the settings; a source that is missing is only mentioned."""
    from pipelines.ingest.preview import format_preview, preview_source

    assert isinstance(config, IngestStage)
    try:
        preview = preview_source(config.ingest)
    except UserError as error:
        print_warning(f"ingest: no preview: {error}")
        return
    for line in format_preview(preview, config.ingest):
        print_text(f"# {line}")


def distill_steps(
    args: StageArgs = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="MODEL", help="Layer-distilled model to start from: presto-generator@candidate-l."
        ),
    ] = None,
    resume: ResumeRun = "",
    fork: Fork = False,
    wait: Wait = False,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    if layers == "":
        raise UserError(
            "--from is empty; name a layer-distilled model, such as presto-generator@candidate-l, or leave it out"
        )
    start = [] if layers is None else [f"inputs.layers={layers}"]
    settings = [*(args or []), *start]
    dispatch_stage("distill-steps", settings, resume=resume, fork=fork, wait=wait, on=on, dry_run=dry_run)


SPECIAL_COMMANDS: dict[str, Callable[..., None]] = {
    "ingest": ingest,
    "distill-steps": distill_steps,
    "generate": generate,
    "edit": edit,
    "import-teacher": import_teacher,
}
