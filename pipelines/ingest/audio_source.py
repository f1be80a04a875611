"""Open what `ingest.source` names: a folder of audio or one file, local or in a bucket."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

from pipelines.console import console
from pipelines.ingest.listing import has_audio_suffix
from pipelines.ingest.manifests import FORMATS, SourceError
from pipelines.storage.filesystem import open_source, reads_anonymously
from presto_core.artifacts.folder import Folder


class AudioSource(NamedTuple):
    """A folder of audio, or one file in it."""

    folder: Folder
    file: str

    @property
    def uri(self) -> str:
        return f"{self.folder.uri.rstrip('/')}/{self.file}" if self.file else self.folder.uri


def open_audio_source(uri: str) -> AudioSource:
    """Open one of `ingest.source`; without credentials, a bucket is read anonymously, which is printed.

    Raises:
        StoreError: the bucket cannot be reached.
        SourceError: it is one file that is no audio.
    """
    if reads_anonymously(uri):
        console.print(f"ingest: no S3 credentials are set, so {uri} is read anonymously")
    source = open_source(uri, setting="ingest.source")
    file = _find_file(source)
    if not file:
        return AudioSource(source, "")
    if not has_audio_suffix(file):
        manifest = ", or set ingest.manifest to it" if PurePosixPath(file).suffix in FORMATS else ""
        raise SourceError(f"ingest.source {source.uri} is a file, but no audio; name its folder{manifest}")
    return AudioSource(_open_parent(source), file)


def _find_file(source: Folder) -> str:
    """Return the file name of a source that is one file; empty if it is a folder, or does not exist."""
    name = PurePosixPath(source.path).name
    if not source.is_remote:
        return name if os.path.isfile(source.path) else ""
    may_be_file = "/" in source.path and PurePosixPath(name).suffix  # a bucket may have a dot in its name
    return name if may_be_file and _open_parent(source).exists(name) else ""


def _open_parent(source: Folder) -> Folder:
    """Return the folder that a file or a folder is in."""
    path, uri = source.path.rpartition("/")[0], source.uri.rpartition("/")[0]
    return replace(source, path=path or "/", uri=uri or "/")
