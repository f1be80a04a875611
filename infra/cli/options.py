"""Arguments and options that several commands share, and `--dry-run` for commands that change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from pipelines.console import print_text

StageArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PRESET] [KEY=VALUE]...",
        help="Name or file of a preset, then overrides. If a setting is text, VALUE is used as it is; lists and "
        "mappings are YAML, such as key='\\[a, b]'. For the shell, quote values that contain spaces or #.",
        show_default=False,
    ),
]
RegistryArgs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="storage.root=..., tracking.uri=...", show_default=False),
]
VersionName = Annotated[
    str, typer.Argument(metavar="VERSION", help="presto-generator@champion, @v3, a content hash, an id, ...")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="TARGET",
        help="Where to run: local; http(s)://HEAD:8265 or ray://HEAD:10001, as a Ray job; kuberay, to print a RayJob; "
        "or kuberay://CONTEXT, to apply it with kubectl.",
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Wait until another process that works on the same run ends, and until the head of the Ray cluster "
        "answers, instead of being refused.",
    ),
]
WAIT_SETTING = "cluster.wait_for_run=true"
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
Preview = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and stop.")]


def add_dry_run(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--dry-run` to a command that changes nothing, so that scripts can pass it to every command."""

    @wraps(command)
    def wrapper(*args: Any, dry_run: bool = False, **kwargs: Any) -> None:
        if dry_run:
            summary = (inspect.getdoc(command) or "").partition("\n")[0]
            print_text(f"would do this, which changes no artifact, record or job: {summary}")
        else:
            command(*args, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("dry_run", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Preview)
    wrapper.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return wrapper
