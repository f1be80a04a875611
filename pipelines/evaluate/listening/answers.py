"""The key of a listening test and the answers of its raters, read from files that nobody vouches for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from presto_core.errors import UserError

MOST_BYTES = 5_000_000
NO_PREFERENCE = "none"
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Rater = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Rating = Annotated[int, Field(strict=True, ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0, le=1e6)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KeyClip(_Record):
    """What an opaque clip id stands for."""

    role: Literal["system", "reference", "anchor"]
    system: str
    prompt: int


class KeyTrial(_Record):
    """What an opaque trial id stands for."""

    purpose: Literal["compare", "repeat", "catch"]
    prompt: int
    clips: tuple[Id, ...]
    repeat_of: Id | Literal[""] = ""
    expected: Id | Literal[""] = ""


class Key(_Record):
    """The key file that was written beside the page."""

    format: Literal[1]
    test: Id
    kind: Literal["pairs", "mushra"]
    seed: int
    report: str
    questions: tuple[str, ...]
    systems: tuple[str, ...]
    reference: str
    clips: dict[Id, KeyClip]
    trials: dict[Id, KeyTrial]

    @model_validator(mode="after")
    def _check_trials(self) -> Self:
        for trial_id, trial in self.trials.items():
            if unknown := [c for c in trial.clips if c not in self.clips]:
                raise ValueError(f"trial {trial_id} has unknown clip {unknown[0]}")
            clips = [self.clips[c] for c in trial.clips]
            if self.kind == "mushra" and not {"reference", "anchor"} <= {clip.role for clip in clips}:
                raise ValueError(f"trial {trial_id} lacks the hidden reference or the anchor")
            named = [clip.system for clip in clips if clip.system in self.systems]
            if self.kind == "pairs" and trial.purpose == "compare" and not len(named) == len(clips) == 2:
                raise ValueError(f"trial {trial_id} does not compare two of the systems")
        return self


class Answer(_Record):
    """A rater's answer to one trial: a choice per question, or a rating per clip."""

    trial: Id
    clips: tuple[Id, ...]
    """In the order shown: A and B, or version 1 to n."""
    seconds: Seconds
    choices: dict[str, Id | Literal["none"]] = Field(default_factory=dict)
    ratings: dict[Id, Rating] = Field(default_factory=dict)


class Answers(_Record):
    """One rater's file."""

    format: Literal[1]
    test: Id
    kind: Literal["pairs", "mushra"]
    rater: Rater
    started: AwareDatetime
    saved: AwareDatetime
    answers: tuple[Answer, ...]


Model = TypeVar("Model", Key, Answers)


def read_key(path: Path) -> Key:
    """Read a key file; raises UserError."""
    return _read(path, Key)


def parse_answers(path: Path) -> Answers:
    """Read one rater's answers, of whatever test; raises UserError."""
    return _read(path, Answers)


def read_answers(path: Path, key: Key) -> Answers:
    """Read one rater's answers to this test.

    Raises:
        UserError: no such file, no JSON, values out of range, another test's answers, unknown trials or clips.
    """
    answers = parse_answers(path)
    if answers.test != key.test:
        raise UserError(
            f"{path} answers test {answers.test}, not {key.test} (of report {key.report}); score it with its own key"
        )
    seen: set[str] = set()
    for answer in answers.answers:
        _check_answer(answer, key, path)
        if answer.trial in seen:
            raise UserError(f"{path} answers trial {answer.trial} twice; download the answers again from the page")
        seen.add(answer.trial)
    return answers


def select_latest(files: Iterable[tuple[Path, Answers]]) -> tuple[list[Answers], list[str]]:
    """Keep one file per rater, the one saved last; returns notes of what was left out."""
    kept: dict[str, tuple[Path, Answers]] = {}
    notes = []
    for path, answers in files:
        former = kept.get(answers.rater)
        if former is None:
            kept[answers.rater] = (path, answers)
            continue
        latest = max(former, (path, answers), key=lambda file: file[1].saved)
        left_out = path if latest is former else former[0]
        kept[answers.rater] = latest
        notes.append(f"{answers.rater} has several files; {left_out.name} is left out for {latest[0].name}, saved last")
    return [answers for _, answers in kept.values()], notes


def find_key(files: Sequence[Path], tests: Collection[str]) -> Path:
    """Return the key file beside these files or in the current folder; of several, the one of these tests.

    Args:
        tests: ids of the tests that the files answer.

    Raises:
        UserError: there is none, or none of several is the one.
    """
    folders = dict.fromkeys(path.resolve() for path in [*(file.parent for file in files), Path()])
    keys = sorted(path for folder in folders for path in folder.glob("*.key.json"))
    own = [path for path in keys if _read_test(path) in tests] if len(keys) > 1 else keys
    if len(own) != 1:
        found = f"found {len(keys)}: {', '.join(map(str, keys))}" if keys else "found none beside the answers or here"
        raise UserError(f"no single key file found ({found}); name it with --key")
    return own[0]


def _read_test(path: Path) -> str:
    """The id of the test whose key this is; empty if it is no key."""
    try:
        return read_key(path).test
    except UserError:
        return ""


def _read(path: Path, model: type[Model]) -> Model:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES} bytes; a file of answers is not")
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is no {_describe(model)}: {_format_first(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{path} cannot be read as {_describe(model)}: {reason}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON; use finite numbers")


def _describe(model: type[Model]) -> str:
    return "key of a listening test" if model is Key else "file of answers that the page made"


def _format_first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part)[:40] for part in first["loc"])
    value = "" if isinstance(first["input"], (dict, list, tuple)) else f", not {str(first['input'])[:60]!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{path}: {first['msg']}{value}{more}"


def _check_answer(answer: Answer, key: Key, path: Path) -> None:
    trial = key.trials.get(answer.trial)
    if trial is None:
        raise UserError(f"{path} answers trial {answer.trial}, which test {key.test} does not have")
    clips = set(trial.clips)
    if set(answer.clips) != clips or len(answer.clips) != len(clips):
        raise UserError(f"{path}: trial {answer.trial} shows other clips than the test's; expected {sorted(clips)}")
    if key.kind == "mushra" and (set(answer.ratings) != clips or answer.choices):
        raise UserError(f"{path}: trial {answer.trial} has ratings of {sorted(answer.ratings)}, not of {sorted(clips)}")
    if key.kind == "pairs":
        _check_choices(answer, key, clips, path)


def _check_choices(answer: Answer, key: Key, clips: set[str], path: Path) -> None:
    if set(answer.choices) != set(key.questions) or answer.ratings:
        expected = ", ".join(key.questions)
        raise UserError(f"{path}: trial {answer.trial} answers {sorted(answer.choices)}, not the questions {expected}")
    for choice in answer.choices.values():
        if choice not in clips | {NO_PREFERENCE}:
            raise UserError(f"{path}: trial {answer.trial} prefers clip {choice}, which it does not show")
