"""`presto <verb> [preset] [key=value ...]`: one verb a stage; nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from infra.cli import (
    dataset as dataset_verbs,
)
from infra.cli import (
    jobs as jobs_verbs,
)
from infra.cli import (
    machine as machine_verbs,
)
from infra.cli import plan as planning
from infra.cli import (
    registry as registry_verbs,
)
from infra.cli import (
    sweep as sweep_verbs,
)
from infra.cli import (
    training as training_verbs,
)
from infra.cli.dispatch import dispatch, stage_entry
from infra.cli.options import (
    DryRun,
    StageArgs,
    add_dry_run,
)
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL, On
from pipelines.console import console
from pipelines.presets.resolve import (
    PRESETS,
    is_override,
    load_stage_config,
    print_config,
    split_preset,
)
from pipelines.redaction import redact
from presto_core.config.loader import (
    ConfigError,
    list_presets,
    load_config,
)
from presto_core.config.schema import STAGES
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
        "Distil a music diffusion model into a few-step generator (Presto!).\n\n"
        "The flow, one verb a stage; each reads what the one before it registered, and running it again resumes or "
        "reuses:\n\n"
        "[bold]corpus build → ingest → train-teacher → distill-layers, distill-steps → evaluate → registry promote → "
        "generate[/bold]\n\n"
        "Every stage takes a preset (demo, laptop, paper, or a YAML file) and overrides such as "
        "[bold]steps.p_dmd.kind=karras[/bold]; [bold]--dry-run[/bold] shows what would run. "
        "[bold]--on http://head:8265[/bold] sends it to a Ray cluster. [bold]presto demo[/bold] runs all of it; "
        "[bold]presto doctor[/bold] says what is missing for it; [bold]presto sweep[/bold] tries settings; "
        "[bold]presto plan[/bold] says what GPUs would take."
    ),
)
corpus_app = typer.Typer(no_args_is_help=True, help="The default corpus: music made from packages alone.")
codec_app = typer.Typer(no_args_is_help=True, help="The codec between audio and latents.")
app.add_typer(corpus_app, name="corpus")
app.add_typer(codec_app, name="codec")
app.add_typer(dataset_verbs.app, name="dataset")
app.add_typer(registry_verbs.app, name="registry")
app.add_typer(jobs_verbs.app, name="jobs")
app.add_typer(sweep_verbs.app, name="sweep")
for verb in (machine_verbs.up, machine_verbs.down, machine_verbs.doctor, planning.plan):
    app.command()(verb)

Local = Annotated[bool, typer.Option("--local", help="Keep everything in a folder instead of S3.")]


@corpus_app.command("build")
def corpus_build(words: StageArgs = None, on: On = LOCAL, dry_run: DryRun = False) -> None:
    """Make the default corpus: public-domain pieces and composed ones, with captions, rendered by a soundfont."""
    _dispatch_stage(("corpus", "build"), "corpus", words, on, dry_run)


@codec_app.command("fit")
def codec_fit(
    folder: Annotated[
        Path, typer.Argument(help="Folder of music, or a built corpus, of which the train split counts.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the weights, made when missing.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be read and written, and stop.")] = False,
) -> None:
    """Fit the embedded codec to your music; then encode with it: [bold]presto ingest codec.path=<output>[/bold]."""
    from pipelines.stages import codec

    codec.fit(folder, output, dry_run=dry_run)


@app.command()
def ingest(
    words: StageArgs = None,
    max_bad_fraction: Annotated[
        float | None,
        typer.Option(help="Share of files that may be bad; above it the run fails (ingest.max_bad_fraction)."),
    ] = None,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    """Encode audio (ingest.source=folder, s3://prefix or a list) into latents; what is encoded already is used."""
    allowed = [] if max_bad_fraction is None else [f"ingest.max_bad_fraction={max_bad_fraction}"]
    _dispatch_stage(("ingest",), "ingest", [*(words or []), *allowed], on, dry_run)


for stage in (training_verbs.train_teacher, training_verbs.distill_layers, training_verbs.distill_steps):
    app.command()(stage)


@app.command()
def evaluate(words: StageArgs = None, on: On = LOCAL, dry_run: DryRun = False) -> None:
    """Compare base, generator and inputs.compared=[...] on held-out music: distances, latency, sounds, plots."""
    _dispatch_stage(("evaluate",), "evaluate", words, on, dry_run)


@app.command()
def generate(
    words: Annotated[list[str], typer.Argument(metavar='"PROMPT" [KEY=VALUE]...', help="Prompts, then overrides.")],
    preset: Annotated[str | None, typer.Option(help="Preset to start from.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="champion, candidate-ls, presto-generator@v3, models:/…, an id or a URI (inputs.generator)."),
    ] = None,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    """Make music from a prompt: a WAV and a spectrogram in generate.output."""
    prompts = [w for w in words if not is_override(w)]
    overrides = [w for w in words if is_override(w)]
    if prompts:
        overrides.append(f"generate.prompts={json.dumps(prompts)}")
    if model is not None:
        overrides.append(f"inputs.generator={json.dumps(model)}")
    config = load_config(STAGES["generate"], preset, overrides, preset_folder=PRESETS)
    dispatch(StageCommand(("generate",), "generate", config, stage_entry("generate")), on=on, dry_run=dry_run)


@app.command()
def demo(words: StageArgs = None, local: Local = False, dry_run: DryRun = False) -> None:
    """Run the whole flow at small size on this machine: about eleven minutes on two cores."""
    preset, overrides = split_preset(words or [])
    preset = preset or "demo"
    from pipelines.workflows import demo as flow

    if dry_run:
        for name, config in flow.load_flow_configs(preset, overrides).items():
            typer.echo(flow.describe_node(name))
            print_config(flow.DEMO_FLOW[name].stage, config)
    else:
        flow.run(preset, overrides, local=local)


@app.command()
def science(
    words: StageArgs = None,
    seeds: Annotated[int, typer.Option(help="Times to distil and judge.", min=1)] = 3,
    local: Local = False,
    dry_run: DryRun = False,
) -> None:
    """Measure quality with error bars: one base, several of each distilled model; about 70 minutes on two cores."""
    preset, overrides = split_preset(words or [])
    from pipelines.workflows import demo as flow
    from pipelines.workflows import seed_study as study

    if dry_run:
        configs = flow.load_flow_configs(preset or "science", overrides)
        for name in study.STEPS:
            typer.echo(flow.describe_node(name, study.STEPS))
            print_config(flow.DEMO_FLOW[name].stage, configs[name])
    else:
        study.run(preset or "science", overrides, seeds=seeds, local=local)


@app.command()
@add_dry_run
def presets() -> None:
    """List the presets that come with the package."""
    for name in list_presets(PRESETS):
        typer.echo(name)


def _dispatch_stage(command_path: tuple[str, ...], module: str, args: list[str] | None, on: str, dry_run: bool) -> None:
    config = load_stage_config(command_path[0], args or [])
    dispatch(StageCommand(command_path, command_path[0], config, stage_entry(module)), on=on, dry_run=dry_run)


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and a non-zero exit, never in a traceback."""
    # torch, ray and mlflow bring half a million objects that stay: looking at all of them again and again takes a
    # second of a command's start, and another one of its end
    gc.set_threshold(GARBAGE_AFTER)
    atexit.register(gc.freeze)
    try:
        app()
    except ConfigError as error:
        _fail(str(error), 2)
    except UserError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on where it stopped", 130)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}; free the resource and run again", 1)
    except Exception as error:
        if _is_mlflow_unreachable(error):
            why = redact(" ".join(str(error).split())[:300])
            _fail(f"MLflow stopped answering: {why}. See that it runs, and run the same command again", 1)
        CRASH_LOG.parent.mkdir(exist_ok=True)
        CRASH_LOG.write_text(traceback.format_exc())
        if JOB in os.environ:  # of a node's disk, who follows the job sees nothing
            traceback.print_exc()
        last = (str(error).strip().splitlines() or [""])[-1]
        _fail(f"unexpected {type(error).__name__}: {last[:300]}. This is a bug; its traceback is in {CRASH_LOG}", 70)


def _is_mlflow_unreachable(error: Exception) -> bool:
    """Whether its server went away; what it refuses to do is a bug of ours, like any other."""
    if type(error).__module__ != MLFLOW_ERRORS:
        return False
    from pipelines.tracking.run import TRANSIENT_CODES

    return getattr(error, "error_code", "") in TRANSIENT_CODES


def _fail(message: str, code: int) -> None:
    console.print(f"presto: {message}", style="red", markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
