"""Raters of a listening test whose taste is known: their files of answers, as the page would write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluate.listening.answers import Key, KeyClip, KeyTrial
from pipelines.evaluate.listening.design import Design, add_mushra_trials, add_pair_trials

QUALITY = {"A": 2.0, "B": 0.5, "C": -0.5, "D": -2.0}
"""Log strengths of made-up systems."""


def make_key(kind: Any, *, systems: tuple[str, ...] = tuple(QUALITY), prompts: int = 4, catches: int = 8) -> Key:
    """The key of a test of made-up systems, without audio."""
    captions = {prompt: f"prompt {prompt}" for prompt in range(prompts)}
    questions = ("quality",) if kind == "pairs" else ()
    design = Design(kind, 0, "made-up", systems, "real", questions, captions=captions, secret=b"secret")
    if kind == "pairs":
        sources = [(system, prompt) for system in ("real", *systems) for prompt in captions]
        add_pair_trials(design, repeats=4, catch_sources=sources[:catches])
    else:
        add_mushra_trials(design)
    return Key.model_validate(json.loads(json.dumps(design.to_key())))


def answer_test(
    key: Key,
    rater: str,
    *,
    seed: int,
    guess: bool = False,
    quality: Mapping[str, float] = QUALITY,
    ties: float = 0.5,
) -> dict[str, Any]:
    """One rater's file: by the Davidson model or by ratings of the same order, or at random if `guess`."""
    rng = np.random.default_rng(seed)
    reply = {"pairs": _choose, "mushra": _rate}[key.kind]
    answers = [
        {"trial": trial_id, "clips": list(trial.clips), "seconds": 9.5, **reply(key, trial, rng, guess, quality, ties)}
        for trial_id, trial in key.trials.items()
    ]
    times = {"started": "2026-01-02T10:00:00.000Z", "saved": "2026-01-02T10:20:00.000Z"}
    return {"format": 1, "test": key.test, "kind": key.kind, "rater": rater, **times, "answers": answers}


def write_answers(path: Path, answers: Mapping[str, Any], edit: Callable[[Any], None] = lambda _: None) -> Path:
    """Write a file of answers, changed by `edit` if it is given."""
    copy = json.loads(json.dumps(answers))
    edit(copy)
    path.write_text(json.dumps(copy))
    return path


def _choose(
    key: Key, trial: KeyTrial, rng: np.random.Generator, guess: bool, quality: Mapping[str, float], ties: float
) -> dict[str, Any]:
    first, second = trial.clips
    if guess:
        return {"choices": {"quality": str(rng.choice([first, second, "none"], p=[0.45, 0.45, 0.1]))}}
    if trial.purpose == "catch":
        return {"choices": {"quality": trial.expected}}
    half = (quality[key.clips[first].system] - quality[key.clips[second].system]) / 2
    weights = np.array([np.exp(half), np.exp(-half), ties])
    return {"choices": {"quality": str(rng.choice([first, second, "none"], p=weights / weights.sum()))}}


def _rate(
    key: Key, trial: KeyTrial, rng: np.random.Generator, guess: bool, quality: Mapping[str, float], _ties: float
) -> dict[str, Any]:
    def rate(clip: KeyClip) -> int:
        if guess:
            return int(rng.integers(0, 101))
        mean = {"reference": 98.0, "anchor": 15.0}.get(clip.role, 55 + 15 * quality.get(clip.system, 0.0))
        return int(np.clip(mean + rng.normal(0, 1 if clip.role == "reference" else 6), 0, 100))

    return {"ratings": {clip: rate(key.clips[clip]) for clip in trial.clips}}
