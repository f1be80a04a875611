"""List the files of a source: what can be read, what cannot, and what is left out by its name."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from pyarrow import fs as pafs

from pipelines.storage.s3_uri import describe_unsafe_key
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.audio.chunks import AUDIO_SUFFIXES, OTHER_AUDIO_SUFFIXES

MACOS_PREFIX, MACOS_FOLDER = "._", "__MACOSX"  # resource forks, as macOS writes them to other disks and into archives


class FileStat(NamedTuple):
    """Size in bytes and time of the last change."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    Attributes:
        files: path below the source -> its size and time.
        problems: path of a file that cannot be opened -> the reason; names that are not UTF-8 are escaped.
    """

    files: dict[str, FileStat] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def audio(self) -> list[str]:
        """Return the names of audio files, with those that cannot be opened."""
        return [
            name for name in (*self.files, *self.problems) if _has_suffix(name, AUDIO_SUFFIXES) and not is_fork(name)
        ]

    @property
    def forks(self) -> list[str]:
        """Return the names of resource forks of macOS."""
        return [name for name in self.files if is_fork(name)]

    @property
    def other_audio(self) -> list[str]:
        """Return the names of files that are audio, or a video, of a type that is not searched for."""
        return [name for name in self.files if _has_suffix(name, OTHER_AUDIO_SUFFIXES) and not is_fork(name)]

    def describe_skipped(self) -> list[str]:
        """Return what is not taken although it looks like audio, with counts."""
        lines = []
        if self.forks:
            lines.append(f"skipped {len(self.forks)} files of macOS that are no audio (._* and __MACOSX)")
        if others := self.other_audio:
            counts = Counter(PurePosixPath(name).suffix.lower() for name in others)
            types = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
            lines.append(
                f"skipped {len(others)} files of types that are not searched for: {types}; convert them to wav or "
                "flac, or list them in a manifest"
            )
        return lines


def list_source(source: Folder) -> SourceFiles:
    """List a source's files with those of its subfolders; links are followed, but never in circles.

    Raises:
        StoreError: the source or a subfolder, which is named, cannot be listed.
    """
    listing = SourceFiles()
    if source.is_remote or not os.path.isdir(source.path):
        for info in source.list_files(recursive=True):  # names a folder that is missing or a file
            name = info.path.removeprefix(f"{source.path}/")
            if problem := describe_unsafe_key(name):
                listing.problems[name] = f"{problem}, so it may not be the file that is read; rename it"
            else:
                listing.files[name] = FileStat(info.size, info.mtime_ns)
        return listing
    for name, entry in _walk(source):
        escaped = _escape(name)
        if escaped != name:
            listing.problems[escaped] = "has a name that is not UTF-8; rename it"
            continue
        try:
            status = entry.stat()
        except OSError as error:
            listing.problems[name] = _explain(entry, error)
        else:
            listing.files[name] = FileStat(status.st_size, status.st_mtime_ns)
    return listing


def list_named(source: Folder, names: Sequence[str]) -> SourceFiles:
    """List those of some files that exist.

    Raises:
        StoreError: the source cannot be reached.
    """
    paths = [source.file_path(name) for name in names]
    infos = source.with_retries(lambda: source.filesystem.get_file_info(paths), f"look for {source.uri}/{names[0]}")
    found = ((name, info) for name, info in zip(names, infos, strict=True) if info.type == pafs.FileType.File)
    return SourceFiles({name: FileStat(info.size, info.mtime_ns) for name, info in found})


def _walk(source: Folder) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the path below the source and the entry of everything but folders."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        prefix, ancestors = pending.pop()
        path = source.file_path(prefix) if prefix else source.path
        try:
            status = os.stat(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            message = f"cannot list {_escape(path)}: {why}; make it readable, or move it out of the source"
            raise StoreError(message) from None
        if (status.st_dev, status.st_ino) in ancestors:
            continue
        known = ancestors | {(status.st_dev, status.st_ino)}
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if _is_folder(entry):
                pending.append((name, known))
            else:
                yield name, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _explain(entry: os.DirEntry[str], error: OSError) -> str:
    """Return why an entry cannot be opened."""
    if entry.is_symlink() and isinstance(error, FileNotFoundError):
        return f"is a link to {_escape(os.readlink(entry.path))}, which does not exist"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _escape(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


def is_fork(name: str) -> bool:
    """Return whether a path is that of a resource fork of macOS."""
    path = PurePosixPath(name)
    return path.name.startswith(MACOS_PREFIX) or MACOS_FOLDER in path.parts


def has_audio_suffix(name: str) -> bool:
    """Return whether a file has a suffix of audio, also of a kind that is not searched for."""
    return _has_suffix(name, (*AUDIO_SUFFIXES, *OTHER_AUDIO_SUFFIXES))


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes


def find_name(name: str, source: Folder, files: Collection[str]) -> str:
    """Return the file that a path of a manifest means: also if it is absolute, has `./` or `//`, or other accents.

    One accented letter has two spellings in Unicode, and macOS uses the other one in file names.
    """
    if name in files:
        return name
    for root in (source.uri, source.path):
        name = name.removeprefix(f"{root.rstrip('/')}/")
    if not name or name.startswith("/"):
        return name
    plain = str(PurePosixPath(name))
    candidates = (plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain))
    return next((candidate for candidate in candidates if candidate in files), name)
