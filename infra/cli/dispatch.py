"""The one place where a verb, its settings resolved, becomes a run on this machine or a job elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from infra.jobs.command import StageCommand
from infra.jobs.targets import Kind, parse_target
from pipelines.presets.resolve import print_config


def dispatch(command: StageCommand, *, on: str, dry_run: bool) -> None:
    """Run a verb where `--on` says, or show what would run.

    Raises:
        UserError: the target is none, cannot be reached, or cannot do it; or what the verb itself raises.
        typer.Exit: with a job's exit status, where it is not 0.
    """
    target = parse_target(on)
    if target.kind is Kind.HEAD:
        from infra.jobs.submit import submit

        submit(command, target, dry_run=dry_run)
    elif target.kind is Kind.KUBERAY:
        from infra.jobs.kuberay import render_or_apply

        render_or_apply(command, target, dry_run=dry_run)
    elif dry_run:
        print_config(command.stage, command.config)
    else:
        command.run(command.config)


def stage_entry(module: str) -> Callable[[Any], object]:
    """`run` of a stage's module, which is imported when it is called."""
    return lambda config: import_module(f"pipelines.stages.{module}").run(config)
