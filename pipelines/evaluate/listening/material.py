"""What a listening test takes from a report's folder: systems, prompts and the audio file of each clip, all checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presto_core.errors import UserError

REPORT_FILE = "report.json"
REFERENCES = ("real music", "original")
"""Real music in a report: after the codec's round trip, which is what systems can reach, and as recorded."""
CAPTION_LENGTH = 2000


@dataclass(frozen=True)
class Material:
    """The clips that a test may play.

    Attributes:
        digest: of report.json; raters do not know it, so that opaque ids derived from it cannot be guessed.
        captions: one per prompt; clips name a prompt by its index.
        clips: (system, prompt) -> audio file, loudness-matched by the evaluation.
        limited: (system, prompt) of clips that could not be matched without clipping, and were limited.
        chosen: systems that a test compares if the user names none.
    """

    name: str
    digest: bytes
    captions: tuple[str, ...]
    clips: dict[tuple[str, int], Path]
    limited: frozenset[tuple[str, int]]
    chosen: tuple[str, ...]

    @property
    def systems(self) -> list[str]:
        """Names of all systems with clips, in the report's order."""
        return list(dict.fromkeys(system for system, _ in self.clips))


def read_material(folder: Path) -> Material:
    """Read a local report folder.

    Raises:
        UserError: no report, one made before reports kept prompts, a clip that is missing or outside the folder.
    """
    content = _read_bytes(folder / REPORT_FILE)
    report = _parse(content, folder)
    captions = tuple(_read_caption(prompt, folder) for prompt in _read_list(report, "prompts", folder))
    clips: dict[tuple[str, int], Path] = {}
    limited = set()
    for clip in _read_list(report, "clips", folder):
        key = _read_clip_key(clip, len(captions), folder)
        clips[key] = _find_audio(folder, clip.get("audio"))
        if clip.get("limited"):
            limited.add(key)
    if not clips:
        raise UserError(f"report {folder} holds no audio; evaluate again with evaluate.save_audio=8")
    chosen = _choose_systems(report, {system for system, _ in clips})
    return Material(folder.name, hashlib.blake2b(content).digest(), captions, clips, frozenset(limited), chosen)


def select_systems(material: Material, names: Sequence[str] = ()) -> list[str]:
    """Return the systems to compare: those named, or each model's chosen one and all folders.

    Args:
        names: of systems; "LS 4, teacher dpmpp_2m 40" names two.

    Raises:
        UserError: a system is unknown or named twice, or fewer than two are left.
    """
    systems = [name for text in names for name in _split_names(text, material.systems)] or list(material.chosen)
    if unknown := [name for name in systems if name not in material.systems]:
        raise UserError(
            f"report {material.name} has no clips of system {unknown[0]!r}; choose from {', '.join(material.systems)}"
        )
    if len(set(systems)) < len(systems):
        twice = next(name for name in systems if systems.count(name) > 1)
        raise UserError(f"--systems names {twice!r} twice; name each system once")
    if len(systems) < 2:
        names_text = ", ".join(material.systems)
        raise UserError(f"a test compares at least 2 systems, not {systems}; name more with --systems: {names_text}")
    return systems


def select_prompts(material: Material, systems: Sequence[str], most: int) -> list[int]:
    """Return the first prompts that all these systems have clips of.

    Raises:
        UserError: there is none.
    """
    common = [p for p in range(len(material.captions)) if all((s, p) in material.clips for s in systems)]
    if not common:
        raise UserError(f"report {material.name} has no prompt with clips of all of: {', '.join(systems)}")
    return common[:most]


def select_reference(material: Material, name: str = "") -> str:
    """Return the system that is the reference: the one named, or the report's real music.

    Raises:
        UserError: the report has no such clips.
    """
    wanted = (name,) if name else REFERENCES
    found = [system for system in wanted if system in material.systems]
    if not found:
        raise UserError(
            f"report {material.name} has no clips of {' or '.join(wanted)}, the reference; "
            f"choose one with --reference: {', '.join(material.systems)}"
        )
    return found[0]


def _split_names(text: str, known: Sequence[str]) -> list[str]:
    return [text] if text in known else [name for part in text.split(",") if (name := part.strip())]


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path.parent} is no report: it has no {path.name}; name a folder that presto report made")
    return path.read_bytes()


def _parse(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        report = json.loads(content)
    except ValueError as error:
        raise UserError(f"{folder / REPORT_FILE} is not JSON: {error}; fetch the report again") from error
    if not isinstance(report, dict) or report.get("format") != 2:
        found = report.get("format", 1) if isinstance(report, dict) else "none"
        raise UserError(
            f"report {folder} is of format {found}, which keeps no prompts; evaluate again to make one of format 2"
        )
    return report


def _read_list(report: dict[str, Any], key: str, folder: Path) -> list[dict[str, Any]]:
    rows = report.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{folder / REPORT_FILE} has no list {key!r}; evaluate again")
    return rows


def _read_caption(prompt: dict[str, Any], folder: Path) -> str:
    caption = prompt.get("caption")
    if not isinstance(caption, str) or len(caption) > CAPTION_LENGTH:
        raise UserError(f"{folder / REPORT_FILE}: prompts have a caption of at most {CAPTION_LENGTH} characters each")
    return caption


def _read_clip_key(clip: dict[str, Any], prompts: int, folder: Path) -> tuple[str, int]:
    system, prompt = clip.get("system"), clip.get("prompt")
    if not isinstance(system, str) or type(prompt) is not int or not 0 <= prompt < prompts:
        raise UserError(
            f"{folder / REPORT_FILE}: clip of system {system!r} has prompt {prompt!r}, not 0..{prompts - 1}"
        )
    return system, prompt


def _find_audio(folder: Path, name: object) -> Path:
    parts = Path(str(name)).parts
    path = folder / str(name)
    if ".." in parts or Path(str(name)).is_absolute() or not path.is_file():
        raise UserError(f"report {folder} has no audio file {name!r}; fetch the report again")
    return path


def _choose_systems(report: dict[str, Any], with_clips: set[str]) -> tuple[str, ...]:
    rows = [row for row in report.get("systems") or [] if row.get("name") in with_clips]
    chosen = [row["name"] for row in rows if row.get("chosen") or row.get("role") == "folder"]
    return tuple(chosen if len(chosen) > 1 else [row["name"] for row in rows])
