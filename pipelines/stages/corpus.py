"""Stage: the default corpus, rendered on this machine from packages alone."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.console import console, progress_bar
from pipelines.corpus.build import build_corpus
from presto_core.config.schema import CorpusStage
from presto_core.errors import UserError


def run(config: CorpusStage) -> Path:
    """Build the corpus, complete it, or reuse it.

    Raises:
        UserError: the folder holds something else, the disk is full, a package is missing.
    """
    settings = config.corpus
    total = int(config.derive_values()["clips"])
    with progress_bar("corpus build", total) as bar:
        try:
            summary = build_corpus(
                settings.folder,
                minutes=settings.minutes,
                seed=config.seed,
                held_out_fraction=settings.held_out_fraction,
                real_fraction=settings.real_fraction,
                clip_seconds=settings.clip_seconds,
                workers=config.cluster.cpus or os.cpu_count(),
                on_progress=lambda done, _: bar.update(done, "clips"),
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"corpus build: {error}") from error
    state = "exist already" if summary.is_cached else "made"
    console.print(
        f"corpus build: {summary.minutes:.1f} min ({summary.held_out_minutes:.1f} held out) in {summary.clips} clips "
        f"{state}: {summary.folder}"
    )
    return summary.folder
