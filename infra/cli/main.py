"""The `presto` command: its groups and commands, and how errors end. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from infra.cli import (
    benchmark,
    codec,
    dataset,
    explain,
    export,
    jobs,
    listening,
    machine,
    plan,
    registry,
    report,
    runs,
    serve,
    study,
    sweep,
    workflows,
)
from infra.cli.interruption import describe_interrupt, find_interrupt, handle_sigterm
from infra.cli.options import add_dry_run
from infra.cli.stages import add_stage_commands
from infra.cli.version import describe_version
from pipelines.cluster.shutdown import StoppedError
from pipelines.console import console, make_printable, print_text
from pipelines.presets.resolve import PRESETS
from pipelines.redaction import redact
from presto_core.artifacts.durable import make_folders
from presto_core.config.loader import ConfigError, list_presets
from presto_core.errors import UserError

GARBAGE_AFTER = 50_000  # new objects; Python's own 700 is meant for small programs
CRASH_LOG = Path(".presto/crash.log")
JOB = "PRESTO_JOB"  # set in a job: its id
MLFLOW_ERRORS = "mlflow.exceptions"  # by name: importing MLflow takes seconds

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help=(
        "Distill a music diffusion model into a few-step generator (Presto!).\n\n"
        "One command per stage; each reads what the stage before it registered, and re-running it resumes or reuses:"
        "\n\n"
        "[bold]corpus build → ingest → train-teacher → distill-layers, distill-steps → evaluate → report → "
        "registry promote → generate[/bold]\n\n"
        "[bold]presto report[/bold] renders an evaluation's page, to listen and compare; [bold]presto "
        "listening-test[/bold] makes a blind test of its clips, and scores the answers.\n\n"
        "Every stage takes a preset (demo, from_scratch, laptop, paper, or a YAML file) and overrides such as "
        "[bold]steps.p_dmd.kind=karras[/bold]; [bold]--dry-run[/bold] shows what would run. "
        "[bold]--on http://head:8265[/bold] submits it to a Ray cluster. [bold]presto demo[/bold] distills the "
        "teacher in the package, from music to sounds ([bold]--from-scratch[/bold] trains one); "
        "[bold]presto doctor[/bold] checks the prerequisites; [bold]presto runs[/bold] lists unfinished runs; "
        "[bold]presto sweep[/bold] searches settings; [bold]presto plan[/bold] estimates time, memory and cost."
    ),
)
add_stage_commands(app)
for name, group in {
    "dataset": dataset.app,
    "codec": codec.app,
    "registry": registry.app,
    "listening-test": listening.app,
    "runs": runs.app,
    "sweep": sweep.app,
    "study": study.app,
    "jobs": jobs.app,
    "s3": machine.s3_app,
}.items():
    app.add_typer(group, name=name)
for command in (workflows.demo, workflows.pretrain, plan.plan, benchmark.benchmark, machine.doctor, report.report):
    app.command()(command)
app.command()(explain.explain)
app.command()(serve.serve)
app.command()(export.export)
app.command("config")(explain.show_config)
# former names of commands
app.command("science", hidden=True)(study.seeds)
app.command("up", hidden=True)(machine.start_s3)
app.command("down", hidden=True)(machine.stop_s3)


def print_version(wanted: bool) -> None:
    """Print the package's version, and the commit where it runs from a checkout; nothing else is imported for it."""
    if wanted:
        print_text(describe_version())
        raise typer.Exit


@app.callback()
def set_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    pass


@app.command()
@add_dry_run
def presets() -> None:
    """List the presets that come with the package."""
    for name in list_presets(PRESETS):
        print_text(name)


def main() -> None:
    """Entry point: every error is one message and a non-zero exit; only a bug leaves a traceback, in a file."""
    # torch, ray and mlflow create half a million permanent objects: scanning them again and again takes a second at a
    # command's start, and another at its end
    gc.set_threshold(GARBAGE_AFTER)
    atexit.register(gc.freeze)
    handle_sigterm()
    logging.lastResort = LogHandler(logging.WARNING)
    try:
        app()
    except ConfigError as error:
        _fail(str(error), 2)
    except StoppedError as error:
        _fail(str(error), error.exit_code)
    except UserError as error:
        _fail(str(error), 1)
    except SystemExit as stop:
        if interrupt := find_interrupt(stop):
            _fail(*describe_interrupt(interrupt, sys.argv[1:]))
        raise
    except KeyboardInterrupt as interrupt:
        _fail(*describe_interrupt(interrupt, sys.argv[1:]))
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}; free the resource and run again", 1)
    except Exception as error:
        if _is_mlflow_unreachable(error):
            why = redact(" ".join(str(error).split()))[:300]
            _fail(f"MLflow stopped answering: {why}; check that it runs, then re-run the same command", 1)
        report = make_printable(redact(traceback.format_exc()), keep="\n\t")
        _write_crash_log(report)
        if JOB in os.environ:  # whoever follows the job cannot see the file on the node
            console.print(report)
        last = redact((str(error).strip().splitlines() or [""])[-1])[:300]
        _fail(f"unexpected {type(error).__name__}: {last}. This is a bug; its traceback is in {CRASH_LOG}", 70)


def _write_crash_log(report: str) -> None:
    """Keep a traceback for its owner; without secrets, since it is meant to be sent."""
    try:
        make_folders(CRASH_LOG.parent)
        CRASH_LOG.unlink(missing_ok=True)
        with os.fdopen(os.open(CRASH_LOG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(report)
    except OSError:  # a full disk or a read-only folder must not hide the error itself
        console.print(report)


def _is_mlflow_unreachable(error: Exception) -> bool:
    """Whether its server went away; a request that it refuses is a bug of ours, like any other."""
    if type(error).__module__ != MLFLOW_ERRORS:
        return False
    from pipelines.tracking.run import TRANSIENT_CODES

    return getattr(error, "error_code", "") in TRANSIENT_CODES


class LogHandler(logging.Handler):
    """Prints what libraries log like any other text: with nothing that a terminal obeys, and without secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(redact(self.format(record)))


def _fail(message: str, code: int) -> None:
    console.print(f"presto: {redact(message)}", style="red")
    sys.exit(code)


if __name__ == "__main__":
    main()
