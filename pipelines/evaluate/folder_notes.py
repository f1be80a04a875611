"""What a report says about a folder of audio that is a system: skipped, cut or converted files, with numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.ingest.sources import Track

NAMED_IN_NOTES = 3  # skipped files that a note names; it counts the others


@dataclass(frozen=True)
class ClipFormat:
    """What all clips of a report have in common: samples per clip, sample rate and channels."""

    length: int
    rate_hz: int
    channels: int


@dataclass(frozen=True)
class ScannedClip:
    """A usable file: its prompt, the hash of its bytes, and its stored format."""

    track: Track
    caption: str
    digest: str
    rate_hz: int
    channels: int


def describe_files(used: int, skipped: dict[str, str], *, files: int, count: int | None) -> list[str]:
    """Which files of the folder count: skipped, left out, or too few."""
    notes = []
    if skipped:
        notes.append(f"{len(skipped)} of {used + len(skipped)} files are skipped: {list_some(skipped)}")
    if (left_out := files - used - len(skipped)) > 0:
        notes.append(f"{used} files are used as in other systems, {left_out} more are left out")
    if count is not None and used < count:
        notes.append(f"has {used} clips where other systems have {count}, so its metrics are less certain")
    return notes


def describe_conversions(clips: list[ScannedClip], clip_format: ClipFormat) -> list[str]:
    """Describe stored formats that lose or lack something in the report's, and files of equal content."""
    notes = []
    low_rates = sorted({clip.rate_hz for clip in clips if clip.rate_hz < clip_format.rate_hz})
    if low_rates:
        num_low = sum(clip.rate_hz < clip_format.rate_hz for clip in clips)
        rates = ", ".join(map(str, low_rates))
        notes.append(f"{num_low} of {len(clips)} files have {rates} Hz, below the report's {clip_format.rate_hz} Hz")
    if num_mixed := sum(clip.channels > clip_format.channels for clip in clips):
        notes.append(f"{num_mixed} of {len(clips)} files are mixed to {clip_format.channels} channel(s)")
    if num_mono := sum(clip.channels < clip_format.channels for clip in clips):
        notes.append(f"{num_mono} of {len(clips)} files are mono, copied to both channels")
    if num_copies := sum(Counter(clip.digest for clip in clips).values()) - len({clip.digest for clip in clips}):
        notes.append(f"{num_copies} of {len(clips)} files have the same content as another one; all are used")
    return notes


def describe_prompts(matches: list[int | None], prompts: Sequence[str]) -> list[str]:
    """How many clips follow prompts that nothing else does."""
    num_other = matches.count(None)
    if not prompts or not num_other:
        return []
    other = f"{num_other} of {len(matches)} clips have a prompt that the evaluation does not have"
    return [f"{other}; the page has no sound of these"]


def list_some(skipped: dict[str, str]) -> str:
    """The first few skipped files with their reasons, and how many more there are."""
    named = [f"{file} ({reason})" for file, reason in list(skipped.items())[:NAMED_IN_NOTES]]
    more = len(skipped) - len(named)
    return ", ".join(named) + (f", and {more} more" if more else "")
