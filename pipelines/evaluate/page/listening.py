"""The clips of the page: one row per prompt, one column per model, with what is known and estimated of each clip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.evaluate.page.fields import find_file, read_mapping, read_number, read_rows, read_text
from presto_core.metrics.adherence.score import OCTAVE_FACTORS, TEMPO_TOLERANCE

REAL, ORIGINAL = "real music", "original"
TITLES = {ORIGINAL: "real (recording)", REAL: "real (codec)"}
ROLE_ORDER = ("teacher", "layers", "generator", "folder")


@dataclass(frozen=True)
class Clip:
    """A clip of one system; `audio` and `spectrogram` are addresses relative to the page.

    Attributes:
        is_hit: what was estimated -> whether it is what the prompt wants; None where the prompt does not tell.
    """

    system: str
    audio: str
    spectrogram: str = ""
    loudness: str = ""
    estimates: list[tuple[str, bool | None]] = field(default_factory=list)


@dataclass(frozen=True)
class ListeningColumn:
    """The systems of one model that have clips; `default` is the one shown at first."""

    title: str
    systems: list[str]
    default: str


@dataclass(frozen=True)
class Prompt:
    """One row: a prompt, and the clips of each column by system."""

    number: int
    caption: str
    facts: list[str]
    cells: list[list[Clip]]


@dataclass(frozen=True)
class ListeningTable:
    columns: list[ListeningColumn]
    prompts: list[Prompt]
    missing: int = 0
    """Clips of the report whose sound is not in the folder."""


def make_listening_table(result: dict[str, Any], folder: Path) -> ListeningTable:
    """Return the clips of a report, arranged.

    Raises:
        ReportError: a part of the report has the wrong type.
    """
    entries = read_rows(result, "clips") or list(_list_former_clips(result, folder))
    prompts = read_rows(result, "prompts")
    clips: dict[tuple[int, str], Clip] = {}
    for entry in entries:
        number = int(read_number(entry, "prompt") or 0)
        clip = _make_clip(entry, prompts[number] if 0 <= number < len(prompts) else {}, folder)
        if clip.audio:
            clips[number, clip.system] = clip
    columns = _make_columns(result, list(dict.fromkeys(system for _, system in clips)))
    numbers = sorted({number for number, _ in clips})
    rows = [_make_prompt(number, prompts, columns, clips) for number in numbers]
    return ListeningTable(columns, rows, len(entries) - len(clips))


def _list_former_clips(result: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Clips of reports before format 2, which tell system and number by the file's name alone."""
    names = [read_text(row, "name") for row in read_rows(result, "systems")]
    system_of = {_slugify(name): name for name in (*names, REAL)} | {"held-out": REAL, "reference": REAL}
    for path in sorted((folder / "audio").glob("*.wav")):
        slug, _, number = path.stem.rpartition("-")
        if number.isascii() and number.isdigit():
            yield {"system": system_of.get(slug, slug), "prompt": int(number), "audio": f"audio/{path.name}"}


def _slugify(name: str) -> str:
    return re.sub(r"[\W_]", "-", name).strip("-")


def _make_clip(entry: dict[str, Any], prompt: dict[str, Any], folder: Path) -> Clip:
    return Clip(
        read_text(entry, "system"),
        find_file(folder, entry.get("audio"), ".wav"),
        find_file(folder, entry.get("spectrogram"), ".png"),
        _describe_loudness(entry),
        [*_estimate_tempo(entry, prompt), *_estimate_key(entry, prompt)],
    )


def _describe_loudness(entry: dict[str, Any]) -> str:
    level, gain = read_number(entry, "loudness_lufs"), read_number(entry, "gain_db")
    parts = [] if gain is None else [f"played with {gain:+.1f} dB"]
    parts += [] if level is None else [f"the clip itself has {level:.1f} LUFS"]
    parts += ["its peaks are limited"] if entry.get("limited") is True else []
    return "; ".join(parts)


def _estimate_tempo(entry: dict[str, Any], prompt: dict[str, Any]) -> list[tuple[str, bool | None]]:
    found, wanted = read_number(entry, "tempo_bpm"), read_number(prompt, "tempo_bpm")
    if not found:
        return []
    if not wanted:
        return [(f"{found:.0f} bpm", None)]
    is_octave = any(abs(found / wanted / factor - 1) <= TEMPO_TOLERANCE for factor in OCTAVE_FACTORS)
    is_hit = abs(found / wanted - 1) <= TEMPO_TOLERANCE
    return [(f"{found:.0f} bpm (octave)" if is_octave else f"{found:.0f} bpm", is_hit)]


def _estimate_key(entry: dict[str, Any], prompt: dict[str, Any]) -> list[tuple[str, bool | None]]:
    found, wanted = read_text(entry, "key"), read_text(prompt, "key")
    return [(found, found == wanted if wanted else None)] if found else []


def _make_columns(result: dict[str, Any], with_clips: list[str]) -> list[ListeningColumn]:
    """Real music, then one column per model in the order of the table, then what the table does not have."""
    rows = {read_text(row, "name"): row for row in read_rows(result, "systems")}
    order = {name: position for position, name in enumerate(rows)}
    groups: dict[str, list[str]] = {}
    for name in sorted(with_clips, key=lambda name: (order.get(name, len(order)), name)):
        row = rows.get(name, {})
        groups.setdefault(read_text(row, "model") or read_text(row, "label") or name, []).append(name)
    labels = {role: read_text(entry, "label") for role, entry in list_models(result)}
    columns = [
        ListeningColumn(_make_title(labels.get(model, ""), names[0], rows), names, _select_default(names, rows))
        for model, names in groups.items()
    ]
    return sorted(columns, key=lambda column: _rank(column.systems[0], rows))  # stable within a role


def _make_title(model_label: str, name: str, rows: dict[str, dict[str, Any]]) -> str:
    row = rows.get(name, {})
    teacher = "teacher" if read_text(row, "role") == "teacher" else ""
    return TITLES.get(name) or model_label or teacher or read_text(row, "label") or name


def _rank(name: str, rows: dict[str, dict[str, Any]]) -> int:
    """Position of a system's column: recordings, real music through the codec, models by role, the rest."""
    role = read_text(rows.get(name, {}), "role")
    rank = ROLE_ORDER.index(role) if role in ROLE_ORDER else len(ROLE_ORDER)
    return {ORIGINAL: -2, REAL: -1}.get(name, rank)


def _select_default(names: list[str], rows: dict[str, dict[str, Any]]) -> str:
    chosen = [name for name in names if rows.get(name, {}).get("chosen") is True]
    return (chosen or names)[0]


def _make_prompt(
    number: int,
    prompts: list[dict[str, Any]],
    columns: list[ListeningColumn],
    clips: dict[tuple[int, str], Clip],
) -> Prompt:
    prompt = prompts[number] if 0 <= number < len(prompts) else {}
    tempo = read_number(prompt, "tempo_bpm")
    facts = [] if tempo is None else [f"{tempo:.0f} bpm"]
    facts += [text for text in (read_text(prompt, "key"),) if text]
    facts += [f"seed {read_text(prompt, 'seed')}"] if "seed" in prompt else []
    facts += [f"track {read_text(prompt, 'track')}"] if prompt.get("track") else []
    cells = [[clips[number, s] for s in column.systems if (number, s) in clips] for column in columns]
    return Prompt(number, read_text(prompt, "caption"), facts, cells)


def list_models(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Input role and entry of each evaluated model."""
    models = read_mapping(result, "models")
    return [(role, read_mapping(models, role)) for role in models]
