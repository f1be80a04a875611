"""What the words after a verb mean: a preset, overrides, and the settings they resolve to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PRESET] [KEY=VALUE]...", help="A preset's name or file, then overrides.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
OnlySay = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]


def reads(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that changes nothing stored, with a --dry-run all the same, so that scripts may give it to any verb."""

    @wraps(verb)
    def read(*args: Any, dry_run: bool = False, **kwargs: Any) -> None:
        if dry_run:
            does = (inspect.getdoc(verb) or "").partition("\n")[0]
            typer.echo(f"would do this, which changes no artifact, record or job: {does}")
        else:
            verb(*args, **kwargs)

    signature = inspect.signature(verb, eval_str=True)
    option = inspect.Parameter("dry_run", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=OnlySay)
    read.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return read
