"""`presto serve`: a model as a service with a page, an HTTP API and figures, on Ray Serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from infra.cli.options import DryRun
from pipelines.console import print_text
from pipelines.presets.resolve import load_stage_config
from presto_core.config.loader import ConfigError
from presto_core.config.schema import GenerateStage

LOG_FILE = Path(".presto/serve.jsonl")
SECTIONS = ("storage", "tracking", "cluster", "limits")  # of settings that the service reads


def serve(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="storage.root=..., tracking.uri=..., cluster.device=cuda, cluster.address=..., and limits of "
            "requests, such as limits.max_seconds=30.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Default model: champion, presto-generator@v3, a model of the package, an id or a URI. Default: the "
            "registry's champion if there is one, else the package's. An alias is followed: a promotion replaces the "
            "model without a lost request.",
            show_default=False,
        ),
    ] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --token-file.")] = "127.0.0.1",
    replicas: Annotated[int, typer.Option(min=1, help="Number of copies of the model.")] = 1,
    max_replicas: Annotated[
        int, typer.Option(min=0, help="Serve adds copies up to this number as requests queue up; 0 adds none.")
    ] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Most clips made in one pass.")] = 8,
    autocast: Annotated[
        Literal["none", "bf16"],
        typer.Option(help="Precision inside networks: bf16 halves their memory; for GPUs, no faster on a CPU."),
    ] = "none",
    compiles: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile models before they serve: faster clips of the model's own length, after minutes per batch "
            "size; seconds from the next start on.",
        ),
    ] = False,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="Longest time in ms that the first clip of a batch waits for others.")
    ] = 30.0,
    max_queued: Annotated[
        int,
        typer.Option(
            min=0, help="Most clips that can wait; further ones get status 429. 0 means four batches per copy."
        ),
    ] = 0,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs reserved for each copy, which are also its threads.")] = 1.0,
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs reserved for each copy; 0.5 shares one between two, 0 reserves none.")
    ] = 0.0,
    token_file: Annotated[
        str, typer.Option(help="File with the bearer token that clients must send.", show_default=False)
    ] = "",
    log_file: Annotated[Path, typer.Option(help="Log file: one line of JSON per request.")] = LOG_FILE,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log too.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Serve a model: a page at /, POST /v1/generate and /v1/edit, GET /v1/models, /healthz, /readyz, /metrics."""
    overrides = args or []
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in SECTIONS:
            raise ConfigError(
                f"{override!r} has no effect on serve, whose requests say what to make; give settings of "
                f"{', '.join(SECTIONS)}, and the model with --model"
            )
    config = load_stage_config("generate", [word for word in overrides if not _is_limit(word)], takes_preset=False)
    assert isinstance(config, GenerateStage)
    from pydantic import ValidationError

    from pipelines.serve.settings import ServeSettings, check_access

    options: dict[str, Any] = {
        "model": model, "host": host, "port": port, "replicas": replicas, "max_replicas": max_replicas,
        "autocast": autocast, "compile": compiles, "max_batch": max_batch, "max_wait_ms": max_wait_ms,
        "max_queued": max_queued,
        "cpus_per_replica": cpus, "gpus_per_replica": gpus, "device": config.cluster.device,
        "token_file": _make_absolute(token_file), "log_file": _make_absolute(str(log_file)),
        "log_prompts": log_prompts, "storage": config.storage, "tracking": config.tracking,
        "limits": dict(word.removeprefix("limits.").split("=", 1) for word in overrides if _is_limit(word)),
    }  # fmt: skip
    try:
        settings = ServeSettings(**options)
    except ValidationError as error:
        raise ConfigError(_explain(error.errors(include_url=False)[0])) from None
    check_access(settings)
    if dry_run:
        print_text(settings.model_dump_json(indent=2))
        return
    from pipelines.serve.run import run

    run(settings, config.cluster)


def _explain(error: Any) -> str:
    """Return the message for one error of pydantic."""
    from difflib import get_close_matches

    from pipelines.serve.settings import Limits

    where = ".".join(str(part) for part in error["loc"])
    if not where:  # of several settings together: its input is all of them
        return f"{error['msg'].removeprefix('Value error, ')}; correct it"
    if error["type"] == "extra_forbidden":
        similar = get_close_matches(str(error["loc"][-1]), Limits.model_fields, n=1)
        names = similar or list(Limits.model_fields)
        return f"unknown setting {where!r}; use {' or '.join(f'limits.{name}' for name in names)}"
    return f"{where}={error['input']!r}: {error['msg']}; correct it"


def _is_limit(word: str) -> bool:
    return word.startswith("limits.") and "=" in word


def _make_absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""
