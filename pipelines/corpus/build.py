"""Build the default corpus: plan → clips on all cores → manifest.jsonl; cached, resumable, deterministic.

A folder holds audio/*.flac, rows/*.json (one per finished clip), manifest.jsonl (written last) and corpus.json
(settings, versions, totals, licences). The next stage reads the manifest only.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.corpus.clips import Outcome, Row, make_clip, read_finished_row
from pipelines.corpus.folder import (
    claim_folder,
    count_splits,
    finish_folder,
    make_identity,
    read_complete_rows,
    total_minutes,
)
from pipelines.corpus.plan import CorpusSettings, PieceSpec, plan_clips
from presto_core.extras import check_extra

__all__ = ["BuildSummary", "build_corpus"]

FLAC_BYTES_PER_SECOND = 60_000
DISK_MARGIN_BYTES = 20_000_000
MAX_SKIPPED_FRACTION = 0.05

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """The result of a build; minutes are those of the audio in the manifest.

    `splits` holds the clips, minutes and compositions of each split.
    """

    folder: Path
    clips: int
    minutes: float
    splits: dict[str, dict[str, Any]]
    made: int
    reused: int
    skipped: int
    is_cached: bool


def _check_disk(folder: Path, specs: Sequence[PieceSpec]) -> None:
    needed = int(sum(spec.clip_seconds for spec in specs) * FLAC_BYTES_PER_SECOND) + DISK_MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the corpus needs about {needed / 1e6:.0f} MB in {folder}, which has {free / 1e6:.0f} MB free; "
            "free some space, or lower minutes or test_tracks",
        )


def _make_clips(folder: Path, specs: Sequence[PieceSpec], workers: int) -> Iterator[Outcome]:
    """Yield clips as they finish: made in this process for one worker, otherwise in a pool of spawned processes."""
    if workers == 1 or len(specs) < 2:
        yield from (make_clip(folder, spec) for spec in specs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(workers, len(specs)), mp_context=context) as pool:
        # Ctrl-C is for this process alone: workers finish their clip, without a traceback each
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(make_clip, folder, spec) for spec in specs]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a corpus worker died (out of memory, or a script that calls build_corpus outside "
                "`if __name__ == '__main__':`); fix the cause and re-run the same command to resume"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _make_missing(
    folder: Path, specs: Sequence[PieceSpec], rows: dict[str, Row], workers: int, on_progress: OnProgress
) -> int:
    """Fill `rows` with the missing clips; return the number of real pieces that were skipped."""
    missing = [spec for spec in specs if spec.piece_id not in rows]
    _check_disk(folder, missing)
    on_progress(len(specs) - len(missing), len(specs))
    skipped: list[str] = []
    for done, outcome in enumerate(_make_clips(folder, missing, workers), start=len(specs) - len(missing) + 1):
        if outcome.row is None:
            skipped.append(outcome.reason)
        else:
            rows[outcome.piece_id] = outcome.row
        on_progress(done, len(specs))
    if len(skipped) > MAX_SKIPPED_FRACTION * len(specs):
        raise RuntimeError(
            f"{len(skipped)} of {len(specs)} clips cannot be made ({skipped[0]}, ...); check the installed packages"
        )
    return len(skipped)


def build_corpus(
    folder: str | Path,
    *,
    minutes: float = 60.0,
    seed: int = 0,
    validation_tracks: int = 60,
    test_tracks: int = 300,
    real_fraction: float = 0.5,
    clip_seconds: float = 30.0,
    test_seconds: float = 12.5,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> BuildSummary:
    """Build the corpus in `folder`, resume an interrupted build, or reuse a complete one.

    Args:
        minutes: music of the train split, in clips of `clip_seconds`.
        validation_tracks, test_tracks: clips of these splits, of `test_seconds` each.
        workers: number of processes, by default one per core.

    Raises:
        ValueError: a setting is out of range, or the folder holds something else.
        MissingPackageError: a package is not installed.
        OSError: the disk is full.
        RuntimeError: a worker died, or too many pieces failed.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    settings = CorpusSettings(
        minutes=minutes,
        seed=seed,
        validation_tracks=validation_tracks,
        test_tracks=test_tracks,
        real_fraction=real_fraction,
        clip_seconds=clip_seconds,
        test_seconds=test_seconds,
    )
    check_extra("corpus", "corpus build")
    folder, identity = Path(folder), make_identity(settings)
    record = claim_folder(folder, identity)
    complete = read_complete_rows(folder, record)
    if complete is not None:
        return _summarize(folder, complete, made=0, skipped=record["totals"]["skipped"], is_cached=True)
    specs = plan_clips(settings)
    rows = {spec.piece_id: row for spec in specs if (row := read_finished_row(folder, spec)) is not None}
    reused = len(rows)
    skipped = _make_missing(folder, specs, rows, workers, on_progress or (lambda done, total: None))
    ordered = [rows[spec.piece_id] for spec in specs if spec.piece_id in rows]
    finish_folder(folder, identity, ordered, skipped=skipped)
    return _summarize(folder, ordered, made=len(ordered) - reused, skipped=skipped, is_cached=False)


def _summarize(folder: Path, rows: Sequence[Row], *, made: int, skipped: int, is_cached: bool) -> BuildSummary:
    return BuildSummary(
        folder=folder,
        clips=len(rows),
        minutes=total_minutes(rows),
        splits=count_splits(rows),
        made=made,
        reused=len(rows) - made,
        skipped=skipped,
        is_cached=is_cached,
    )
