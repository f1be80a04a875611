"""A file of prompts, CSV or JSON lines: every row is checked, and named with line and column, before the first clip."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.console import console, shorten
from pipelines.inference.prompts import check_prompts, parse_prompt
from presto_core.config.overrides import ConfigError
from presto_core.config.sampling import GenerateConfig
from presto_core.errors import UserError

COLUMNS = ("prompt", "seed", "steps", "seconds", "tempo_bpm", "key")
JSON_SUFFIXES = (".jsonl", ".ndjson")
MOST_ERRORS, VALUE_WIDTH = 10, 60


@dataclass(frozen=True)
class PromptRow:
    """One row: what a clip is made from; None is what the model or the prompt itself says.

    Attributes:
        line: of the file, for messages; not part of what decides the clip.
    """

    prompt: str
    seed: int
    steps: int
    seconds: float | None = None
    tempo_bpm: float | None = None
    key: str | None = None
    line: int = 0

    @property
    def identity(self) -> tuple[object, ...]:
        """All that decides the clip, whichever line it is on."""
        return tuple(getattr(self, column) for column in COLUMNS)


def read_prompt_file(path: Path, defaults: GenerateConfig) -> list[PromptRow]:
    """Return the rows of a file in its order; one that is there twice is one clip, which is printed.

    Args:
        defaults: what a row without a value in a column gets.

    Raises:
        ConfigError: the file cannot be read, has no prompt, or some rows are wrong; each is named, up to ten of them.
    """
    errors: list[str] = []
    rows = [_check_row(line, cells, defaults, errors) for line, cells in _read_rows(path, errors)]
    if errors:
        more = f"; and {len(errors) - MOST_ERRORS} more" if len(errors) > MOST_ERRORS else ""
        raise ConfigError(f"{path}: {'; '.join(errors[:MOST_ERRORS])}{more}. Correct them; nothing was generated")
    unique: dict[tuple[object, ...], PromptRow] = {}
    for row in filter(None, rows):
        unique.setdefault(row.identity, row)
    if not unique:
        raise ConfigError(f"{path} has no prompts; write a line with the columns {', '.join(COLUMNS)}, then a row each")
    if repeated := len(rows) - len(unique):
        console.print(f"generate: {repeated} repeated rows of {path} left out: equal rows give one clip", markup=False)
    return list(unique.values())


def _read_rows(path: Path, errors: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"generate.prompts_file={path} cannot be read: {error.strerror}; name a file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from None
    yield from (_read_json_lines if path.suffix.lower() in JSON_SUFFIXES else _read_csv)(path, text, errors)


def _read_csv(path: Path, text: str, errors: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # a spreadsheet writes semicolons where numbers have commas
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        _check_columns(path, columns)
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) > len(columns):
                errors.append(f"line {line} has {len(cells)} cells for {len(columns)} columns; quote a prompt with a "
                              f"{delimiter!r}")  # fmt: skip
            elif any(cell.strip() for cell in cells):
                yield line, {name: cell for name, cell in zip(columns, cells) if cell.strip()}
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}: line {line} is not CSV: {error}; correct it") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    for number, name in enumerate(columns, 1):
        if name not in COLUMNS:
            similar = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"use {', '.join(COLUMNS)}"
            raise ConfigError(f"{path}: line 1, column {number}: {shorten(name, VALUE_WIDTH)!r} is not known; {hint}")
        if columns.index(name) != number - 1:
            raise ConfigError(f"{path}: line 1, column {number}: {name} is there twice; remove one")
    if "prompt" not in columns:
        raise ConfigError(
            f"{path}: line 1 has no column prompt; the first line names the columns: {', '.join(COLUMNS)}"
        )


def _read_json_lines(path: Path, text: str, errors: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            errors.append(f"line {line} is not JSON: {error}")
            continue
        if not isinstance(row, dict):
            errors.append(f'line {line} is no JSON object; write {{"prompt": "…"}}')
        elif unknown := [name for name in row if name not in COLUMNS]:
            known = ", ".join(COLUMNS)
            errors.append(f"line {line}, column {shorten(unknown[0], VALUE_WIDTH)!r} is not known; use {known}")
        else:
            yield line, {name: value for name, value in row.items() if value is not None}


def _check_row(line: int, cells: dict[str, Any], defaults: GenerateConfig, errors: list[str]) -> PromptRow | None:
    """Return a row as it is read, or add what is wrong with it to `errors`."""
    if "prompt" not in cells:
        errors.append(f"line {line}, column prompt is empty")
        return None
    given = {name: value for name, value in cells.items() if name != "prompt"}
    try:
        (prompt,) = check_prompts([cells["prompt"]])
        if not prompt.strip():
            raise UserError("is empty")
    except UserError as error:
        errors.append(f"line {line}, column prompt: {error}")
        return None
    try:
        settings = GenerateConfig.model_validate(defaults.model_dump() | given)
    except ValidationError as error:
        for problem in error.errors():
            column = problem["loc"][0] if problem["loc"] else ""
            value = shorten(repr(given.get(str(column), "")), VALUE_WIDTH)
            errors.append(f"line {line}, column {column}={value}: {problem['msg']}")
        return None
    try:
        parse_prompt(prompt, tempo_bpm=settings.tempo_bpm, key=settings.key)
    except UserError as error:
        column = "key" if "key" in given else "prompt"
        errors.append(f"line {line}, column {column}: {error}")
        return None
    row = PromptRow(prompt, settings.seed, settings.steps, settings.seconds, settings.tempo_bpm, settings.key)
    return replace(row, line=line)
