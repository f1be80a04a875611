"""`presto study teacher | seeds | paper`: measurements of several runs together, behind the claims of the docs."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.groups import StudyGroup
from infra.cli.options import DryRun, StageArgs
from pipelines.console import print_text
from pipelines.presets.resolve import split_preset
from pipelines.stages.dry_run import print_config

app = typer.Typer(
    cls=StudyGroup,
    rich_markup_mode="rich",
    help=(
        "Measure what the methods achieve.\n\n"
        "[bold]teacher[/bold]: is a teacher good enough to be distilled? [bold]seeds[/bold]: quality with error "
        "bars over training seeds. [bold]paper[/bold]: the paper's ablations. Re-run a command to resume it. "
        "Without a command, seeds runs."
    ),
)


@app.command()
def teacher(
    args: StageArgs = None,
    report: Annotated[
        str, typer.Option(metavar="REPORT", help="A report that evaluated the teacher: registry name, id or URI.")
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Check a teacher's gate: the requirements it must pass before distillation. Exit status 1 if one fails.

    Evaluates inputs.teacher alone at 4, 8 and 40 steps, with each sampler and guidance scale of evaluate.base, unless
    --report names a finished evaluation. evaluate.validation_samples sets the number of clips per sampler.
    """
    preset, overrides = split_preset(args or [])
    from pipelines.workflows import teacher_study

    if dry_run:
        print_config("evaluate", teacher_study.load_gate_config(preset, overrides))
    elif teacher_study.run(preset, overrides, report=report).has_failed:
        raise typer.Exit(1)


@app.command()
def seeds(
    args: StageArgs = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds to distill and evaluate with.", min=1)] = 3,
    local: Annotated[bool, typer.Option("--local", help="Keep everything in a folder instead of S3.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Measure quality with error bars: one teacher, several of each distilled model; about 70 minutes on two cores."""
    preset, overrides = split_preset(args or [])
    from pipelines.workflows import demo as flow
    from pipelines.workflows import seed_study

    if dry_run:
        configs = seed_study.load_configs(preset or "science", overrides)
        for name in seed_study.STEPS:
            print_text(flow.describe_node(name, seed_study.STEPS))
            print_config(flow.DEMO_FLOW[name].stage, configs[name])
    else:
        seed_study.run(preset or "science", overrides, seeds=seeds, local=local)


@app.command()
def paper(
    args: StageArgs = None,
    only: Annotated[
        str,
        typer.Option(
            metavar="GROUP,...",
            help="Groups of ablations to run: noise, gan, inputs, rho, guidance, layers, ls. Empty: all.",
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds to distill with, for each setting.", min=1)] = 3,
    teachers: Annotated[
        list[str] | None,
        typer.Option("--teacher", help="A teacher; repeat the option for several. Default: inputs.teacher."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Repeat the paper's ablations on your teachers, with a verdict on each claim. Takes hours; re-run it to resume."""
    preset, overrides = split_preset(args or [])
    from pipelines.workflows import paper_study

    groups = [name for name in only.replace(" ", "").split(",") if name]
    paper_study.run(preset, overrides, only=groups, seeds=seeds, teachers=teachers or [], dry_run=dry_run)
