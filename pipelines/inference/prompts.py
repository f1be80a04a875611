"""What a prompt tells a model: the text that its encoder reads, and the tempo and key named in its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.console import console, shorten
from pipelines.inference.model import Described, Model
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning, key_index, key_name
from presto_core.diffusion.musical_words import check_tempo, find_key, find_tempo
from presto_core.errors import UserError

CUT_WIDTH = 200  # columns of cut text to print


@dataclass(frozen=True)
class PromptWords:
    """Tempo and key that a clip gets.

    Attributes:
        tempo_bpm: beats per minute; None if unknown.
        key: index of the key (`key_index`); `UNKNOWN_KEY` if unknown.
    """

    tempo_bpm: float | None = None
    key: int = UNKNOWN_KEY

    @property
    def key_name(self) -> str | None:
        return None if self.key == UNKNOWN_KEY else key_name(self.key)


def parse_prompt(prompt: str, *, tempo_bpm: float | None = None, key: str | None = None) -> PromptWords:
    """Return tempo and key of a clip: those given, else those that the prompt names ("90 bpm", "in D minor").

    Raises:
        UserError: the key is unknown, or the tempo is out of range.
    """
    try:
        index = key_index(key) if key else find_key(prompt)
    except ValueError as error:
        raise UserError(str(error)) from None
    try:
        tempo = find_tempo(prompt) if tempo_bpm is None else check_tempo(tempo_bpm)
    except ValueError as error:
        where = f"prompt {shorten(prompt, 60)!r}" if tempo_bpm is None else "tempo_bpm"
        raise UserError(f"{where}: {error}") from None
    return PromptWords(tempo, UNKNOWN_KEY if index is None else index)


def check_words(model: Described, *, tempo_bpm: float | None, key: str | None) -> None:
    """Refuse a tempo or key beside the prompt for a model that reads text alone; raises UserError."""
    for name, value in (("tempo_bpm", tempo_bpm), ("key", key)):
        if value and model.card.is_imported:
            text = f"{value:g} bpm" if name == "tempo_bpm" else value
            raise UserError(
                f"{name}={value} has no effect on {model.artifact.id}: imported teachers, and models distilled from "
                f"them, read the prompt's text alone; leave {name} out and write {text!r} in the prompt"
            )


def check_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Return the prompts as a list; a text is one prompt, not one per letter.

    Raises:
        UserError: one is not a text, such as the NaN of a missing cell, or its characters cannot be encoded.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    for number, prompt in enumerate(listed, 1):
        if not isinstance(prompt, str):
            raise UserError(f"prompt {number} is {prompt!r} and not a text; write one, or leave its row out")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"prompt {number}, {prompt!a}, is not valid Unicode at character {error.start + 1}; write it anew"
            ) from None
    return listed


def warn_of_cut_text(model: Model, prompt: str) -> str:
    """Print which end of a prompt the text encoder does not read, if any, and return it."""
    cut = model.text_encoder.find_cut_text(prompt)
    if cut:
        read = "nothing" if model.card.is_imported else "only a tempo or key"
        console.print(
            f"generate: the text encoder reads {model.text_encoder.max_tokens} tokens; of the rest of the prompt "
            f"{read} counts, {len(cut)} characters are cut: {shorten(cut, CUT_WIDTH)!r}; shorten the prompt",
            markup=False,
        )
    return cut


def make_conditions(
    model: Model, prompts: list[str], words: list[PromptWords], *, seconds: float | None = None
) -> Conditioning:
    """Encode prompts with their tempi and keys as conditions on the model's device.

    Args:
        seconds: length of the clip, which is a condition of models that always make clips of one length.
    """
    text, longest = model.text_encoder.encode(prompts), model.card.clip_seconds
    timing = None if longest is None else torch.tensor([[0.0, seconds or longest]]).repeat(len(prompts), 1)
    return Conditioning(
        pooled=text.pooled,
        tokens=text.tokens,
        mask=text.mask,
        tempo_bpm=torch.tensor([torch.nan if w.tempo_bpm is None else w.tempo_bpm for w in words]),
        key=torch.tensor([w.key for w in words]),
        keep=torch.ones(len(prompts), dtype=torch.bool),
        timing=timing,
    ).to(model.device)
