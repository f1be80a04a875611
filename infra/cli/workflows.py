"""`presto demo` and `presto study`: several stages in a row."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.options import DryRun, StageArgs
from pipelines.presets.resolve import split_preset
from pipelines.stages.dry_run import print_config

Local = Annotated[bool, typer.Option("--local", help="Keep everything in a folder instead of S3.")]


def demo(args: StageArgs = None, local: Local = False, dry_run: DryRun = False) -> None:
    """Run the whole flow at small size on this machine: about 15 minutes on two cores."""
    preset, overrides = split_preset(args or [])
    preset = preset or "demo"
    from pipelines.workflows import demo as flow

    if dry_run:
        for name, config in flow.load_flow_configs(preset, overrides).items():
            typer.echo(flow.describe_node(name))
            print_config(flow.DEMO_FLOW[name].stage, config)
    else:
        flow.run(preset, overrides, local=local)


def study(
    args: StageArgs = None,
    seeds: Annotated[int, typer.Option(help="Times to distill and evaluate.", min=1)] = 3,
    local: Local = False,
    dry_run: DryRun = False,
) -> None:
    """Measure quality with error bars: one teacher, several of each distilled model; about 70 minutes on two cores."""
    preset, overrides = split_preset(args or [])
    from pipelines.workflows import demo as flow
    from pipelines.workflows import seed_study

    if dry_run:
        configs = flow.load_flow_configs(preset or "science", overrides)
        for name in seed_study.STEPS:
            typer.echo(flow.describe_node(name, seed_study.STEPS))
            print_config(flow.DEMO_FLOW[name].stage, configs[name])
    else:
        seed_study.run(preset or "science", overrides, seeds=seeds, local=local)
