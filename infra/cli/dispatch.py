"""The one place where a command with resolved settings becomes a run on this machine or a job elsewhere."""

from __future__ import annotations

from infra.jobs.command import StageCommand
from infra.jobs.targets import Kind, parse_target
from pipelines.stages.dry_run import print_config
from pipelines.stages.table import STAGES


def dispatch(command: StageCommand, *, on: str, dry_run: bool) -> None:
    """Run a command where `--on` says, or show what would run.

    Raises:
        UserError: the target is unknown, unreachable or not able to run it; or what the command itself raises.
        typer.Exit: with a job's exit status, if it is not 0.
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
        from pipelines.stages.preflight import check_inputs

        check_inputs(command.stage, command.config)
        if STAGES[command.stage].writes_run:
            from pipelines.tracking.client import check_tracking

            check_tracking(command.config.tracking)  # before audio is read or Ray is started
        command.run()
