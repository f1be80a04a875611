"""Write one clip to disk: spec → FLAC and manifest row, each written atomically."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpus.captions import make_caption, make_wordings
from pipelines.corpus.plan import PieceSpec, make_piece
from pipelines.corpus.render import SAMPLE_RATE_HZ, SOUNDFONT_LICENCE, render
from pipelines.corpus.score import Piece
from presto_core.artifacts.durable import move_synced, name_partial, sync_file, write_synced

AUDIO_FOLDER = "audio"
ROWS_FOLDER = "rows"
BLOCK_FRAMES = 65_536
WORDINGS = 8  # further captions of a training clip; its windows take turns

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one spec: its manifest row, or the reason why its piece was skipped."""

    piece_id: str
    row: Row | None
    reason: str = ""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file in the same folder, then rename it, so that no partial file appears at `path`."""
    partial = name_partial(path)
    try:
        write_synced(partial, data)
        move_synced(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_flac(path: Path, audio: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write audio [frames], float in [-1, 1], as 16-bit mono FLAC; OSError if it cannot be written.

    It is written in blocks because libsndfile crashes on some formats if a long signal is written in one call.
    """
    import soundfile

    partial = name_partial(path)
    try:
        with soundfile.SoundFile(
            partial, "w", samplerate=sample_rate_hz, channels=1, format="FLAC", subtype="PCM_16"
        ) as file:
            for start in range(0, len(audio), BLOCK_FRAMES):
                file.write(audio[start : start + BLOCK_FRAMES])
        if soundfile.info(partial).frames != len(audio):
            raise OSError(errno.EIO, f"{path.name} is truncated after writing; check whether the disk is full")
        sync_file(partial)
        move_synced(partial, path)
    except soundfile.LibsndfileError as error:
        raise OSError(
            errno.EIO, f"cannot write {path} ({error.error_string}); check whether the disk is full"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_row(spec: PieceSpec, piece: Piece, *, sha256: str) -> Row:
    """Return one row of the manifest: file, caption, metadata, source and licence."""
    return {
        "id": spec.piece_id,
        "file": f"{AUDIO_FOLDER}/{spec.piece_id}.flac",
        "caption": make_caption(piece, seed=spec.seed),
        "captions": make_wordings(piece, seed=spec.seed, count=WORDINGS),
        "tempo_bpm": piece.tempo_bpm,
        "key": piece.key,
        "genre": piece.genre,
        "ensemble": piece.ensemble,
        "collection": spec.collection,
        "composition_id": piece.composition_id,
        "title": piece.title,
        "composer": piece.composer,
        "source": piece.source,
        "licence": f"{piece.licence}; rendered with {SOUNDFONT_LICENCE}",
        "split": spec.split,
        "duration_seconds": spec.clip_seconds,
        "sha256": sha256,
    }


def cut_clip(audio: np.ndarray, spec: PieceSpec) -> np.ndarray:
    """Cut the clip's [clip frames] from the audio of its piece, [piece frames] at SAMPLE_RATE_HZ."""
    start = round(spec.start_seconds * SAMPLE_RATE_HZ)
    return audio[start : start + round(spec.clip_seconds * SAMPLE_RATE_HZ)]


def make_clip(folder: Path, spec: PieceSpec) -> Outcome:
    """Write a clip's FLAC, then its row; a real piece that cannot be read or arranged is skipped with a reason."""
    try:
        piece = make_piece(spec)
    except MemoryError:
        raise
    except Exception as error:
        if spec.collection == "composed":
            raise
        return Outcome(spec.piece_id, None, f"{spec.collection}/{spec.work}: {type(error).__name__}: {error}")
    path = folder / AUDIO_FOLDER / f"{spec.piece_id}.flac"
    write_flac(path, cut_clip(render(piece, seconds=spec.piece_seconds), spec))
    row = make_row(spec, piece, sha256=file_sha256(path))
    write_atomically(folder / ROWS_FOLDER / f"{spec.piece_id}.json", json.dumps(row).encode())
    return Outcome(spec.piece_id, row)


def read_finished_row(folder: Path, spec: PieceSpec) -> Row | None:
    """Return the row of a clip from an earlier build; None unless its audio exists with the recorded hash."""
    try:
        row: Row = json.loads((folder / ROWS_FOLDER / f"{spec.piece_id}.json").read_bytes())
        is_same = row["id"] == spec.piece_id and row["composition_id"] == spec.composition_id
        return row if is_same and file_sha256(folder / row["file"]) == row["sha256"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None
