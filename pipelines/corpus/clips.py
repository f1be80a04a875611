"""One clip on disk: spec → FLAC and its manifest row, written whole or not at all; `build` runs many of these."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.corpus.captions import make_caption
from pipelines.corpus.plan import PieceSpec, make_piece
from pipelines.corpus.render import (
    SAMPLE_RATE_HZ,
    SOUNDFONT_LICENCE,
    render,
)
from pipelines.corpus.score import Piece

AUDIO_FOLDER = "audio"
ROWS_FOLDER = "rows"
BLOCK_FRAMES = 65_536

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a spec: its manifest row, or why its piece was skipped."""

    piece_id: str
    row: Row | None
    reason: str = ""


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or the old one: written beside its place, then renamed into it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_flac(path: Path, audio: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """audio: [frames] float in [-1, 1] → 16-bit mono FLAC. OSError when the disk does not take it.

    Blocks, because libsndfile is known to crash on some formats when a long signal is written in one call.
    """
    import soundfile

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with soundfile.SoundFile(
            partial, "w", samplerate=sample_rate_hz, channels=1, format="FLAC", subtype="PCM_16"
        ) as file:
            for start in range(0, len(audio), BLOCK_FRAMES):
                file.write(audio[start : start + BLOCK_FRAMES])
        if soundfile.info(partial).frames != len(audio):
            raise OSError(errno.EIO, f"{path.name} was cut short while it was written; is the disk full?")
        os.replace(partial, path)
    except soundfile.LibsndfileError as error:
        raise OSError(errno.EIO, f"cannot write {path}: {error.error_string} Is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_row(spec: PieceSpec, piece: Piece, *, sha256: str) -> Row:
    """One line of the manifest: where the audio is, what one hears, and where it comes from."""
    return {
        "id": spec.piece_id,
        "file": f"{AUDIO_FOLDER}/{spec.piece_id}.flac",
        "caption": make_caption(piece, seed=spec.seed),
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


def make_clip(folder: Path, spec: PieceSpec) -> Outcome:
    """Write a clip's FLAC, then its row. A real piece that cannot be read or arranged is skipped with a reason."""
    try:
        piece = make_piece(spec)
    except MemoryError:
        raise
    except Exception as error:
        if spec.collection == "composed":
            raise
        return Outcome(spec.piece_id, None, f"{spec.collection}/{spec.work}: {type(error).__name__}: {error}")
    path = folder / AUDIO_FOLDER / f"{spec.piece_id}.flac"
    write_flac(path, render(piece, seconds=spec.clip_seconds))
    row = make_row(spec, piece, sha256=file_sha256(path))
    write_atomically(folder / ROWS_FOLDER / f"{spec.piece_id}.json", json.dumps(row).encode())
    return Outcome(spec.piece_id, row)


def read_finished_row(folder: Path, spec: PieceSpec) -> Row | None:
    """The row of a clip that an earlier build finished; None unless its audio is there, bit for bit."""
    try:
        row: Row = json.loads((folder / ROWS_FOLDER / f"{spec.piece_id}.json").read_bytes())
        is_same = row["id"] == spec.piece_id and row["composition_id"] == spec.composition_id
        return row if is_same and file_sha256(folder / row["file"]) == row["sha256"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None
