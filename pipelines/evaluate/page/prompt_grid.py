"""One picture of a report's clips: a row of spectrograms per model, a column per prompt."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from pipelines.evaluate.page.fetch import read_local_report
from pipelines.evaluate.page.fields import ReportError
from pipelines.evaluate.page.listening import Clip, ListeningTable, Prompt, make_listening_table
from pipelines.evaluate.plots import make_figure, to_png
from presto_core.extras import import_extra

CELL_INCHES = (1.9, 1.15)
TITLE_CHARACTERS, TITLE_LINES = 30, 3
LABEL_CHARACTERS = 14  # of a line beside a row


def draw_prompt_grid(report_folder: Path) -> bytes:
    """Draw the clips of a fetched report as PNG: of each model the system that validation chose, and real music.

    Raises:
        ReportError: the report cannot be read, or has no clips with spectrograms.
        MissingPackageError: matplotlib or Pillow is not installed.
    """
    table = make_listening_table(read_local_report(report_folder), report_folder)
    rows = [column.default for column in table.columns]
    prompts = [prompt for prompt in table.prompts if any(clip.spectrogram for clip in _list_clips(prompt))]
    if not prompts:
        raise ReportError(f"{report_folder} has no clips with spectrograms; evaluate with evaluate.save_audio=8")
    width, height = CELL_INCHES
    figure = make_figure(width * len(prompts) + 0.8, height * len(rows) + 0.8)
    panels = figure.subplots(len(rows), len(prompts), squeeze=False)
    for i, system in enumerate(rows):
        panels[i, 0].set_ylabel(_describe_row(table, i), fontsize=8)
        for j, prompt in enumerate(prompts):
            _draw_cell(panels[i, j], _find_clip(prompt, system), report_folder)
    for j, prompt in enumerate(prompts):
        panels[0, j].set_title(_shorten(prompt.caption), fontsize=7)
    return to_png(figure)


def _list_clips(prompt: Prompt) -> list[Clip]:
    return [clip for cell in prompt.cells for clip in cell]


def _find_clip(prompt: Prompt, system: str) -> Clip | None:
    return next((clip for clip in _list_clips(prompt) if clip.system == system and clip.spectrogram), None)


def _draw_cell(axes: object, clip: Clip | None, folder: Path) -> None:
    """Show one clip's picture; an empty frame where a system has no clip of the prompt."""
    axes.set(xticks=[], yticks=[])  # type: ignore[attr-defined]
    if clip is not None:
        content = (folder / clip.spectrogram).read_bytes()
        picture = import_extra("PIL.Image", "drawing spectrograms").open(io.BytesIO(content)).convert("RGB")
        axes.imshow(picture, aspect="auto")  # type: ignore[attr-defined]


def _describe_row(table: ListeningTable, number: int) -> str:
    """The system of a row, below the title of its column unless it begins with it (`S 4` is a system of S)."""
    column = table.columns[number]
    lines = textwrap.wrap(column.default, LABEL_CHARACTERS)
    return "\n".join(lines if column.default.startswith(column.title) else [column.title, *lines])


def _shorten(caption: str) -> str:
    lines = textwrap.wrap(caption, TITLE_CHARACTERS)
    return "\n".join(lines[:TITLE_LINES]) + (" …" if len(lines) > TITLE_LINES else "")
