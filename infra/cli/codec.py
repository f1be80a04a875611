"""`presto codec`: the codec between audio and latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from presto_core.errors import UserError

app = typer.Typer(no_args_is_help=True, help="The codec between audio and latents.")


@app.callback()
def _open_group() -> None:
    """Keep `fit` a command of its own although it is the only one."""


@app.command()
def fit(
    folder: Annotated[Path, typer.Argument(help="Folder of music, or a built corpus, whose train split is used.")],
    output: Annotated[Path, typer.Option(help="Folder for the weights, created if it is missing.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be read and written, and stop.")] = False,
) -> None:
    """Fit the embedded codec to your music; then encode with it: [bold]presto ingest codec.path=<output>[/bold]."""
    if not folder.expanduser().exists():
        raise UserError(
            f"{folder} does not exist; name a folder of music, or make the default corpus: presto corpus build"
        )
    from pipelines.stages import codec

    codec.fit(folder, output, dry_run=dry_run)
