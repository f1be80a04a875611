"""The one place where a verb, its settings resolved, becomes a run on this machine or a job elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from infra.targets import Kind, target_of
from pipelines.words import show
from presto_core.config.schema import StageConfig


@dataclass(frozen=True)
class Work:
    """A verb that is ready to run, here or anywhere.

    Attributes:
        verb: its words on the command line: ("corpus", "build").
        stage: key of `STAGES`.
        run: does it in this process.
        options: words of the verb that are no settings: ("--resume", "<run_id>").
        run_id: where the verb itself names one.
    """

    verb: tuple[str, ...]
    stage: str
    config: StageConfig
    run: Callable[[Any], object]
    options: tuple[str, ...] = ()
    run_id: str = ""

    def words(self, settings: str) -> list[str]:
        """The command line that does the same with a file of settings."""
        if self.stage == "generate":  # its first words are prompts; there must be one word at least
            return [*self.verb, "--preset", settings, f"seed={self.config.seed}"]
        return [*self.verb, *self.options, settings]


def carry_out(work: Work, *, on: str, dry_run: bool) -> None:
    """Run a verb where `--on` says, or show what would run.

    Raises:
        UserError: the target is none, cannot be reached, or cannot do it; or what the verb itself raises.
        typer.Exit: with a job's exit status, where it is not 0.
    """
    target = target_of(on)
    if target.kind is Kind.HEAD:
        from infra.submit import submit

        submit(work, target, dry_run=dry_run)
    elif target.kind is Kind.KUBERAY:
        from infra.rayjob import render_or_apply

        render_or_apply(work, target, dry_run=dry_run)
    elif dry_run:
        show(work.stage, work.config)
    else:
        work.run(work.config)


def runner(module: str) -> Callable[[Any], object]:
    """`run` of a stage's module, which is imported when it is called."""
    return lambda config: import_module(f"pipelines.{module}").run(config)
