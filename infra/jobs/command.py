"""A stage command, and the shell command and environment of the job that runs it."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.jobs.package import (
    LAUNCHER,
    SETTINGS,
)
from presto_core.config.loader import to_yaml
from presto_core.config.schema import StageConfig


@dataclass(frozen=True)
class StageCommand:
    """A verb that is ready to run, here or anywhere.

    Attributes:
        verb: its words on the command line: ("corpus", "build").
        stage: key of `STAGES`.
        run: does it in this process.
        options: words of the verb that are no settings: ("--resume", "<run_id>").
        run_id: where the verb itself names one.
    """

    command_path: tuple[str, ...]
    stage: str
    config: StageConfig
    run: Callable[[Any], object]
    options: tuple[str, ...] = ()
    run_id: str = ""

    def argv(self, settings: str) -> list[str]:
        """The command line that does the same with a file of settings."""
        if self.stage == "generate":  # its first words are prompts; there must be one word at least
            return [*self.command_path, "--preset", settings, f"seed={self.config.seed}"]
        return [*self.command_path, *self.options, settings]


IN_IMAGE = "PRESTO_SETTINGS"  # where a job in an image has its settings; see in_job.py


def make_entrypoint(command: StageCommand, config: StageConfig) -> str:
    """The shell command that is the job."""
    if config.submit.image:
        # no word that a shell would change: KubeRay lets one look at it on the way
        return f"python -m infra.cli.in_job {shlex.join(command.argv(IN_IMAGE))}"
    return f"exec sh {LAUNCHER} {shlex.join(command.argv(SETTINGS))}"


def make_environment(config: StageConfig, job_id: str) -> dict[str, str]:
    """What a job is told by its environment; the dashboard shows it."""
    env = {
        **config.submit.env,
        "PRESTO_JOB": job_id,
        "RAY_JOB_STOP_WAIT_TIME_S": str(config.submit.stop_grace_seconds),
    }
    if config.submit.image:
        env[IN_IMAGE] = to_yaml(config)
    return env


def make_job_id(command: StageCommand) -> str:
    return f"presto-{command.stage}-{secrets.token_hex(4)}"
