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
    clips = int(config.derive_values()["clips"])
    with progress_bar("corpus build", clips) as bar:
        try:
            summary = build_corpus(
                settings.folder,
                minutes=settings.minutes,
                seed=config.seed,
                validation_tracks=settings.validation_tracks,
                test_tracks=settings.test_tracks,
                real_fraction=settings.real_fraction,
                clip_seconds=settings.clip_seconds,
                test_seconds=settings.test_seconds,
                workers=config.cluster.cpus or os.cpu_count(),
                on_progress=lambda done, _: bar.update(done, "clips"),
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"corpus build: {error}") from error
    state = "exist already" if summary.is_cached else "made"
    splits = "; ".join(
        f"{split} {counts['minutes']:.1f} min, {counts['clips']} clips of {counts['compositions']} compositions"
        for split, counts in summary.splits.items()
    )
    left_out = f", {summary.skipped} pieces could not be made" if summary.skipped else ""
    total = f"{summary.minutes:.1f} min in {summary.clips} clips {state}"
    console.print(f"corpus build: {total} ({splits}{left_out}): {summary.folder}")
    return summary.folder
