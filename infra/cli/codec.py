"""`presto codec fit|roundtrip`: fit the codec between audio and latents to your music, and hear what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import AsJson, Preview
from presto_core.config.data import CodecConfig
from presto_core.errors import UserError

app = typer.Typer(no_args_is_help=True, help="The codec between audio and latents.")


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


@app.command()
def roundtrip(
    args: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... [KEY=VALUE]...",
            help="Audio files, or folders of them; then codec.kind=... or codec.path=... to use a codec other than "
            "the shipped one.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results; no file in it is overwritten.")] = Path(
        ".presto/roundtrip"
    ),
    start: Annotated[float, typer.Option(min=0, help="Seconds to skip at the beginning of each file.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Most seconds of each file to convert.")] = 30.0,
    as_json: AsJson = False,
    dry_run: Preview = False,
) -> None:
    """Encode and decode audio: write both sides at equal loudness, with a spectrogram, and print what is lost."""
    from pipelines.console import console, print_text
    from pipelines.stages import codec_roundtrip

    paths, settings = _split_args(args)
    options = codec_roundtrip.RoundTripOptions(output, start, seconds)
    if dry_run:
        count = len(codec_roundtrip.list_files(paths))
        console.print(f"codec roundtrip would convert {count} audio files and write to {output}", markup=False)
        return
    results = codec_roundtrip.run(paths, settings, options)
    if as_json:
        print_text(json.dumps([result.to_dict() for result in results], indent=2))
    else:
        codec_roundtrip.print_results(results)


def _split_args(args: list[str]) -> tuple[list[Path], CodecConfig]:
    """Files, and the codec of the settings among the arguments; what exists is a file whatever it looks like.

    Raises:
        ConfigError: a setting of something else, or a value that does not fit.
        UserError: there are settings only.
    """
    from pipelines.presets.resolve import is_override, load_stage_config
    from presto_core.config.loader import ConfigError
    from presto_core.config.schema import IngestStage

    overrides = [arg for arg in args if is_override(arg) and not Path(arg).exists()]
    for override in overrides:
        if not override.startswith("codec."):
            raise ConfigError(f"{override!r} is neither an existing file nor a setting codec.kind=… or codec.path=…")
    paths = [Path(arg) for arg in args if arg not in overrides]
    if not paths:
        raise UserError("name an audio file or a folder, as in presto codec roundtrip song.flac")
    config = load_stage_config("ingest", overrides)
    assert isinstance(config, IngestStage)
    return paths, config.codec
