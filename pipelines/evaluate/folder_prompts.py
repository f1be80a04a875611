"""Prompts of audio files: captions from file names, and which of the evaluation's prompts a caption is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

GENERATED = re.compile(r"(?<=.)-\d+steps-seed\d+-[0-9a-f]{8}(-\d+)?$")  # what clip_files.make_clip_name adds
LEADING_NUMBER = re.compile(r"\d+[\s._-]+(?=.)")


def match_prompts(captions: Sequence[str], prompts: Sequence[str]) -> list[int | None]:
    """Return the number of each caption's prompt, or None; no prompt is used twice, and earlier ones first.

    Case, punctuation and white space do not count, because file names cannot hold all of them.
    """
    numbers: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(_normalize(prompt), []).append(number)
    unused = {prompt: iter(found) for prompt, found in numbers.items()}
    return [next(unused.get(_normalize(caption), iter(())), None) for caption in captions]


def captions_from_names(files: Sequence[str]) -> list[str]:
    """Return captions from file names: `02_solo-piano, slow.wav` -> `solo piano, slow`.

    A leading number is left out only if every file has one: one file named `808 drums` keeps it. The end of a name that
    `presto generate` gave is left out.
    """
    stems = [GENERATED.sub("", PurePosixPath(file).stem) for file in files]
    if all(LEADING_NUMBER.match(stem) for stem in stems):
        stems = [LEADING_NUMBER.sub("", stem, count=1) for stem in stems]
    return [" ".join(stem.replace("_", " ").replace("-", " ").split()) for stem in stems]


def _normalize(caption: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", caption.casefold()))
