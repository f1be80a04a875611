"""The one place where a command with resolved settings becomes a run on this machine or a job elsewhere."""

from __future__ import annotations

from dataclasses import replace

from infra.jobs.command import StageCommand
from infra.jobs.targets import Kind, parse_target
from pipelines.stages.dry_run import print_config
from pipelines.stages.table import STAGES
from presto_core.config.sections import ClusterConfig


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
        _run_in_process(command)


def _run_in_process(command: StageCommand) -> None:
    """Run a command in this process; with `--wait`, again when the head of its Ray cluster is back."""
    from pipelines.cluster.head_wait import run_while_head_returns

    def work(cluster: ClusterConfig) -> object:
        return replace(command, config=command.config.model_copy(update={"cluster": cluster})).run()

    run_while_head_returns(work, command.config.cluster)
