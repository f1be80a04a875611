"""The page of a data set: rows as trained on, to hear and to see, with their captions; it needs no server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console import print_warning, progress_bar
from pipelines.data.dataset import LatentDataset
from pipelines.data.inspection import describe
from pipelines.data.parquet_tensors import Array
from pipelines.evaluate.dataset_clips import DatasetRow, decode_row, draw_rows
from pipelines.evaluate.kept_clips import encode_wav
from pipelines.evaluate.page.page import PAGE_FILE, read_source, render_template, write_page
from pipelines.evaluate.spectrograms import check_spectrograms, plot_spectrogram
from pipelines.tracking.client import HOME
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.store import StoreError
from presto_core.errors import UserError
from presto_core.models.recorded_components import OwnFolders, load_recorded_codec

PAGES = HOME / "listen"
ROWS_FILE = "rows.json"  # what the page shows; marks a folder as one that a page may be written to again


@dataclass(frozen=True)
class DatasetClip:
    """A row and its files, as addresses relative to the page.

    Attributes:
        peak: largest absolute sample; above 1, the file is clipped.
        problem: why there is no audio.
    """

    row: DatasetRow
    audio: str = ""
    spectrogram: str = ""
    peak: float = 0.0
    problem: str = ""

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the page shows below the caption; what is not known is left out, but for tempo, key and licence."""
        info = self.row.to_dict()
        start = f"{self.row.start_seconds:.1f} s"
        facts = [
            ("tempo", "unknown" if self.row.tempo_bpm is None else f"{self.row.tempo_bpm:g} bpm"),
            ("key", self.row.key or "unknown"),
            ("split", f"{self.row.split}, row {self.row.number}"),
            ("track", f"{self.row.track}, from {start}"),
            ("composition", self.row.composition),
            *((name, info[name]) for name in ("title", "composer", "source")),
            ("licence", info["licence"] or "not stated"),
            ("caption from", info["caption_source"]),
            ("level", f"clipped in this file: the peak is {self.peak:.2f}" if self.peak > 1 else ""),
        ]
        return [(name, value) for name, value in facts if value]


def choose_folder(dataset: LatentDataset, split: str, *, seed: int, output: str) -> Path:
    """The folder that a page goes to: `output`, or one of the data set's own.

    Raises:
        UserError: it is no folder of this machine, or holds something else than such a page.
    """
    name = str(dataset.manifest.get("id") or "dataset")
    folder = Path(output) if output else PAGES / f"{name}-{split}-seed{seed}"
    if "://" in output:
        raise UserError(f"--output {output} must be a folder of this machine")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder")
    if (
        folder.exists()
        and any(folder.iterdir())
        and ((folder / MANIFEST).exists() or not (folder / ROWS_FILE).exists())
    ):
        raise UserError(f"--output {folder} holds other files; name a new folder, or one of an earlier page")
    return folder


def make_page(
    dataset: LatentDataset, folder: Path, split: str, *, count: int, seed: int, own: OwnFolders = OwnFolders()
) -> list[DatasetClip]:
    """Draw rows of a split, decode them, and write audio, spectrograms and index.html into `folder`.

    Raises:
        StoreError: the split is empty, a shard is damaged, or the codec is another one.
        UserError: the folder cannot be written.
    """
    codec = load_recorded_codec(dataset.info.get("codec"), own)
    rows = draw_rows(dataset, split, count=count, seed=seed)
    can_plot = check_spectrograms("dataset listen", len(rows))
    clips = []
    try:
        for name in ("audio", "spectrograms"):
            make_folders(folder / name)
        with progress_bar("dataset listen", len(rows), waits_for="decoding") as bar:
            for number, row in enumerate(rows, 1):
                clips.append(_write_clip(row, codec, folder, can_plot=can_plot))
                bar.update(number, row.track)
        shown = [clip.row.to_dict() | {"audio": clip.audio, "problem": clip.problem} for clip in clips]
        (folder / ROWS_FILE).write_text(json.dumps(shown, indent=2), encoding="utf-8")
        write_page(folder / PAGE_FILE, make_html(dataset, clips, split=split, seed=seed))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another --output") from None
    return clips


def _write_clip(row: DatasetRow, codec: Any, folder: Path, *, can_plot: bool) -> DatasetClip:
    """Write a row's audio and spectrogram; a row that cannot be decoded is shown with the reason."""
    try:
        audio = decode_row(codec, row)
    except StoreError as error:
        print_warning(f"dataset listen: {error}")
        return DatasetClip(row, problem=str(error))
    stem = f"{row.split}-{row.number:06d}"
    clip = DatasetClip(
        row,
        f"audio/{stem}.wav",
        f"spectrograms/{stem}.png" if can_plot else "",
        float(np.abs(audio).max()),
    )
    limited: Array = np.clip(audio, -1, 1)
    (folder / clip.audio).write_bytes(encode_wav(limited, codec.sample_rate_hz))
    if can_plot:
        (folder / clip.spectrogram).write_bytes(plot_spectrogram(limited.mean(axis=0), codec.sample_rate_hz))
    return clip


def make_html(dataset: LatentDataset, clips: list[DatasetClip], *, split: str, seed: int) -> str:
    """The page's text; all that comes from the data set is escaped."""
    facts = describe(dataset)
    return render_template(
        "dataset.html.jinja",
        style=read_source("page.css") + read_source("dataset.css"),
        name=facts["id"],
        summary=describe_draw(dataset, clips, split=split, seed=seed),
        notes=[facts["note"]] if "note" in facts else [],
        clips=clips,
        facts=[(name, value) for name, value in facts.items() if name != "note"],
    )


def describe_draw(dataset: LatentDataset, clips: list[DatasetClip], *, split: str, seed: int) -> str:
    """One line: which rows of how many."""
    total = sum(shard.rows for shard in dataset.shards(split))
    tracks = len({clip.row.track for clip in clips})
    return f"{len(clips)} of {total} {split} rows, of {tracks} tracks, drawn with seed {seed}"
