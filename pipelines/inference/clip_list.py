"""`clips.csv`: which clips of a batch are finished, a row each, appended as they are; what a later run goes on from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.inference.clip_files import write_whole
from pipelines.inference.prompt_file import COLUMNS, PromptRow
from presto_core.config.sampling import GenerateConfig

FILE = "clips.csv"
ADDED = ("guidance_interval", "guidance_rescale", "computing")
"""Columns that lists of earlier versions lack: empty there, as without the setting."""
REQUEST = (*COLUMNS, "schedule", "guidance_scale", *ADDED, "negative_prompt", "model")
HEADER = (*REQUEST, "file", "sha256", "ms")


@dataclass(frozen=True)
class ClipList:
    """The finished clips of a folder.

    Attributes:
        rows: request -> its row; a request is its cells of `REQUEST`.
    """

    folder: Path
    rows: dict[tuple[str, ...], dict[str, str]]

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def add(self, request: tuple[str, ...], *, file: str, sha256: str, took_ms: float) -> None:
        """Append a clip whose file is complete; it survives whatever happens to this process next."""
        row = dict(zip(HEADER, (*request, file, sha256, f"{took_ms:.0f}")))
        self.rows[request] = row
        with self.path.open("ab") as stream:
            stream.write(_format_rows([row]))  # one write of a short line: a kill leaves it whole or not there
            stream.flush()
            os.fsync(stream.fileno())

    def rewrite(self, first: Sequence[tuple[str, ...]]) -> None:
        """Write the list anew, whole or not at all: the given requests in their order, then clips of other files."""
        order = dict.fromkeys([*(request for request in first if request in self.rows), *self.rows])
        content = _format_rows([dict(zip(HEADER, HEADER)), *(self.rows[request] for request in order)])
        if not self.path.exists() or self.path.read_bytes() != content:
            write_whole(self.path, content)


def make_request_cells(row: PromptRow, settings: GenerateConfig, *, model: str) -> tuple[str, ...]:
    """Return the cells that decide a clip: equal cells, equal bits on one kind of device."""
    levels = "" if settings.schedule is None else json.dumps(settings.schedule.model_dump())
    own = ("" if value is None else str(value) for value in row.identity)
    interval = "" if settings.guidance_interval is None else json.dumps(settings.guidance_interval)
    rescale = str(settings.guidance_rescale or "")
    added = (interval, rescale, settings.computing)
    return (*own, levels, str(settings.guidance_scale), *added, settings.negative_prompt, model)


def read_clip_list(folder: Path) -> ClipList:
    """Return the finished clips of a folder: those listed whose file is there with the listed content.

    A line that a crash cut off counts as not there, and so does a list of something else.
    """
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    path = folder / FILE
    if path.exists():
        content = path.read_bytes()
        text = content[: content.rfind(b"\n") + 1].decode(errors="replace")
        for row in csv.DictReader(io.StringIO(text, newline="")):
            row = dict.fromkeys(ADDED, "") | row
            if _is_finished(folder, row):
                rows[tuple(row[name] for name in REQUEST)] = {name: row[name] for name in HEADER}
    return ClipList(folder, rows)


def _is_finished(folder: Path, row: Mapping[str | None, object]) -> bool:
    if not all(isinstance(row.get(name), str) for name in HEADER):
        return False
    file = folder / Path(str(row["file"])).name
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
    except OSError:
        return False


def _format_rows(rows: Iterable[Mapping[str, str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.DictWriter(stream, HEADER, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()
