"""A stage command, and the entrypoint and environment of the job that runs it."""

from __future__ import annotations

import secrets
import shlex
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass

from infra.jobs.package import LAUNCHER, SETTINGS
from pipelines.stages.table import STAGES
from presto_core.config.loader import to_yaml
from presto_core.config.stage import StageConfig


@dataclass(frozen=True)
class StageCommand:
    """A stage's command with its settings, ready to run here or elsewhere.

    Attributes:
        stage: name in the table of stages.
        config: its resolved settings.
        resume, fork: `--resume` and `--fork` of a stage that trains.
        execute: runs it in this process, if that is not the stage's own `run`.
        more_options: further options of the command line.
    """

    stage: str
    config: StageConfig
    resume: str = ""
    fork: bool = False
    execute: Callable[[], object] | None = None
    more_options: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        """The run that the command names; a fork has an id of its own, which follows from its checkpoint."""
        return "" if self.fork else self.resume

    def run(self) -> object:
        """Run the stage in this process."""
        if self.execute:
            return self.execute()
        if not STAGES[self.stage].trains:
            return STAGES[self.stage].run(self.config)
        from pipelines.train.resume import ResumeOptions

        return STAGES[self.stage].run(self.config, ResumeOptions(self.resume, self.fork))

    def argv(self, settings: str) -> list[str]:
        """Return the command line that runs the same command with a settings file."""
        path = STAGES[self.stage].command
        if self.stage == "generate":  # its first arguments are prompts
            return [*path, "--preset", settings]
        resume = ("--resume", self.resume) if self.resume else ()
        return [*path, *resume, *(("--fork",) if self.fork else ()), *self.more_options, settings]


IN_IMAGE = "PRESTO_SETTINGS"  # variable with the settings of a job in an image, YAML in base64; see in_job.py


def make_entrypoint(command: StageCommand, config: StageConfig) -> str:
    """Return the shell command that the job runs."""
    if config.submit.image:
        # no character that a shell expands: KubeRay passes it through one
        return f"python -m infra.cli.in_job {shlex.join(command.argv(IN_IMAGE))}"
    return f"exec sh {LAUNCHER} {shlex.join(command.argv(SETTINGS))}"


def make_environment(config: StageConfig, job_id: str) -> dict[str, str]:
    """Return the environment variables of a job; the dashboard shows them."""
    env = {
        **config.submit.env,
        "PRESTO_JOB": job_id,
        "RAY_JOB_STOP_WAIT_TIME_S": str(config.submit.stop_grace_seconds),
    }
    if config.submit.image:
        # Kubernetes expands $(NAME), and a shell $NAME; neither finds a $ in base64
        env[IN_IMAGE] = b64encode(to_yaml(config).encode()).decode()
    return env


def make_job_id(command: StageCommand) -> str:
    return f"presto-{command.stage}-{secrets.token_hex(4)}"
