"""Names and files of generated clips: one name per clip, written whole or not at all, and no clip replaces another."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile

from pipelines.console import make_printable
from pipelines.inference.generator import GeneratedClip
from presto_core.artifacts.durable import move_synced, sync_folder, write_synced

SLUG_LETTERS, SLUG_BYTES = 60, 120  # file systems allow names of 255 bytes
STEM_BYTES = 200
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # of file systems without hard links


def make_clip_name(clip: GeneratedClip) -> str:
    """Return a name that tells prompt, steps and seed; its digest differs for any other prompt, model or setting.

    Letters of all scripts stay: `ピアノ-4steps-seed0-1f0c9a3e`.
    """
    settings = json.dumps(clip.settings, sort_keys=True).encode()
    digest = hashlib.sha256(settings).hexdigest()[:8]
    return f"{_make_slug(clip.prompt)}-{clip.steps}steps-seed{clip.seed}-{digest}"


def write_clip(clip: GeneratedClip, folder: Path) -> Path:
    """Write a clip as WAV and return its path.

    The same audio is written over itself. Another clip of the same name, such as one of other software, stays: the new
    one gets a number.

    Raises:
        OSError: the folder cannot be written.
    """
    return write_wav(clip.to_wav(), make_clip_name(clip), folder)


def write_wav(wav: bytes, name: str, folder: Path) -> Path:
    """Write a clip's WAV under its name; see `write_clip`."""
    for path in _iter_names(folder, name):
        if _create_whole(path, wav):
            return path
        if _is_same_audio(path, wav):
            write_whole(path, wav)
            return path
    raise AssertionError("the names never end")


def write_clip_set(folder: Path, stem: str, wavs: Mapping[str, bytes], pictures: Mapping[str, bytes]) -> list[Path]:
    """Write files `<stem>-<name>.wav` and `.png` that belong together, and return their paths.

    None replaces a file of anybody else: if one of the names is taken, all get a number, `<stem>-2-<name>.wav`. The
    same audio is written over itself, its pictures too.

    Raises:
        OSError: the folder cannot be written.
    """
    for name in _iter_stems(stem):
        sounds = {folder / f"{name}-{ending}.wav": wav for ending, wav in wavs.items()}
        drawn = {folder / f"{name}-{ending}.png": picture for ending, picture in pictures.items()}
        is_ours = all(path.exists() and _is_same_audio(path, wav) for path, wav in sounds.items())
        if not is_ours and any(path.exists() for path in (*sounds, *drawn)):
            continue
        if not is_ours and not all(_create_whole(path, wav) for path, wav in sounds.items()):
            continue  # another process has just taken the name
        for path, picture in drawn.items():
            write_whole(path, picture)
        return [*sounds, *drawn]
    raise AssertionError("the names never end")


def make_file_stem(name: str) -> str:
    """A file's name without suffix, for the names of what is made of it: printable, and short enough for an ending."""
    stem = make_printable(Path(name).stem).replace("\\", "_")
    return stem.encode()[:STEM_BYTES].decode(errors="ignore").strip() or "clip"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and move it, so that no reader and no crash sees a part of it."""
    part = _write_part(path, content)
    try:
        move_synced(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _create_whole(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet; return False if it is, even if another process has just made it."""
    if path.exists():
        return False
    part = _write_part(path, content)
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _write_part(path: Path, content: bytes) -> Path:
    part = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        write_synced(part, content)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def _is_same_audio(path: Path, wav: bytes) -> bool:
    try:
        found, rate_hz = soundfile.read(path, dtype="int16", always_2d=True)
    except soundfile.LibsndfileError:
        return False
    samples, own_rate_hz = soundfile.read(io.BytesIO(wav), dtype="int16", always_2d=True)
    return rate_hz == own_rate_hz and np.array_equal(found, samples)


def _iter_names(folder: Path, name: str) -> Iterator[Path]:
    yield from (folder / f"{stem}.wav" for stem in _iter_stems(name))


def _iter_stems(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}-{number}" for number in itertools.count(2))


def _make_slug(prompt: str) -> str:
    text = unicodedata.normalize("NFC", prompt).lower()
    slug = re.sub(r"[\W_]+", "-", text).strip("-")
    return slug[:SLUG_LETTERS].encode()[:SLUG_BYTES].decode(errors="ignore").strip("-") or "clip"
