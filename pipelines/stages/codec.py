"""`presto codec fit`: fit the embedded codec's weights to a folder of music."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.console import console, make_printable, progress_bar
from presto_core.audio.mel_codec.codec_folder import OUTPUT_FILES, PASSES, FitCorpus, check_output, fit_codec

MAX_SKIPS_SHOWN = 3


def fit(folder: Path, output: Path, *, dry_run: bool) -> None:
    """Fit to the music in `folder` and write the weights to `output`; `dry_run` only prints what it would do.

    Raises:
        UserError: no or too little audio, or `output` cannot be written or already holds a codec.
    """
    corpus = FitCorpus.open(folder)
    check_output(output)
    if dry_run:
        console.print(f"codec fit would read {len(corpus.files)} audio files of {folder}, twice", markup=False)
        console.print(f"and write {', '.join(OUTPUT_FILES)} to {output}", markup=False)
        return
    torch.set_num_threads(1)  # the order of sums, and with it every bit of the weights, follows from the thread count
    total = PASSES * len(corpus.files)
    try:
        with progress_bar("codec fit", total) as bar:
            codec_info = fit_codec(corpus, output, on_progress=bar.update)
    finally:
        _print_skipped(corpus.skipped, files=len(corpus.files))
    console.print(
        f"codec fit: latents digest {codec_info['encoder']['digest'][:12]}, "
        f"made from {codec_info['data']['clips']} files"
    )
    console.print(f"use it: presto ingest codec.path={output.resolve()}", markup=False)


def _print_skipped(skipped: dict[str, str], *, files: int) -> None:
    if skipped:
        lines = [f"{name} ({reason})" for name, reason in list(skipped.items())[:MAX_SKIPS_SHOWN]]
        more = f" and {len(skipped) - MAX_SKIPS_SHOWN} more" if len(skipped) > MAX_SKIPS_SHOWN else ""
        message = f"codec fit: skipped {len(skipped)} of {files} files: {', '.join(lines)}{more}"
        console.print(make_printable(message), markup=False)
