"""Scores a listening test: raters screened, then preferences (Bradley-Terry) or mean ratings, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.listening.answers import NO_PREFERENCE, Answers, Key, read_answers, select_latest
from pipelines.evaluate.listening.bradley_terry import Strengths, add_pseudo_wins, fit_bradley_terry
from pipelines.evaluate.listening.resampling import RESAMPLES, describe_precision, estimate_intervals
from pipelines.evaluate.listening.screening import screen
from presto_core.errors import UserError

Array = npt.NDArray[np.float64]
ANCHOR = "low anchor (3.5 kHz)"
HIDDEN_REFERENCE = "hidden reference"


def score_files(files: Sequence[Path], key: Key, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Read all files, then score them; see `score`. Raises UserError for the first file that is not acceptable."""
    answers, notes = select_latest([(path, read_answers(path, key)) for path in files])
    result = score(answers, key, resamples=resamples, seed=seed)
    return result | {"notes": [*notes, *result["notes"]]}


def score(raters: Sequence[Answers], key: Key, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return the result as plain data: raters and why some are excluded, notes, and results per question.

    Raises:
        UserError: the answers do not connect all systems.
    """
    screenings = [screen(answers, key) for answers in raters]
    kept = [answers for answers, screening in zip(raters, screenings, strict=True) if screening.is_kept]
    prompts = sorted({trial.prompt for trial in key.trials.values() if trial.purpose == "compare"})
    notes = [f"{s.rater} is excluded: {s.reason}" for s in screenings if not s.is_kept]
    notes += [f"{s.rater} answered {s.answered} of {len(key.trials)} trials" for s in screenings if _is_partial(s, key)]
    notes += sorted({s.reason for s in screenings if s.is_kept and s.reason})
    notes += describe_precision(len(kept), len(prompts))
    questions = ["rating"] if key.kind == "mushra" else key.questions
    measure = _measure_ratings if key.kind == "mushra" else _measure_preferences
    return {
        "format": 1,
        "test": key.test,
        "kind": key.kind,
        "report": key.report,
        "raters": [asdict(screening) for screening in screenings],
        "prompts": len(prompts),
        "notes": notes,
        "results": {q: measure(kept, key, prompts, q, resamples, seed) for q in questions} if kept else {},
    }


def _is_partial(screening: Any, key: Key) -> bool:
    return bool(screening.is_kept and screening.answered < len(key.trials))


def _measure_preferences(
    raters: Sequence[Answers], key: Key, prompts: list[int], question: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One row per system, the most preferred first."""
    wins, ties = count_preferences(raters, key, prompts, question)
    all_wins, all_ties = wins.sum(axis=(0, 1)), ties.sum(axis=(0, 1))
    pseudo = add_pseudo_wins(all_wins, ties=all_ties) - all_wins
    fitted = _fit(all_wins + pseudo, all_ties, key)

    def refit(weights: Array) -> Array:
        resampled = [np.einsum("rp,rpij->ij", weights, counts) for counts in (wins, ties)]
        return _stack(fit_bradley_terry(resampled[0] + pseudo, resampled[1], fitted))

    values = _stack(fitted)
    intervals = estimate_intervals(refit, len(raters), len(prompts), resamples=resamples, seed=seed)
    rows = [
        {
            "system": system,
            "preference": values[0, i],
            "preference_interval": _get_interval(intervals, 0, i),
            "strength": values[1, i],
            "strength_interval": _get_interval(intervals, 1, i),
            "wins": int(all_wins[i].sum()),
            "ties": int(all_ties[i].sum()),
            "losses": int(all_wins[:, i].sum()),
        }
        for i, system in enumerate(key.systems)
    ]
    return sorted(rows, key=lambda row: -row["preference"])


def count_preferences(raters: Sequence[Answers], key: Key, prompts: list[int], question: str) -> tuple[Array, Array]:
    """Return wins and ties [raters, prompts, K, K], see `fit_bradley_terry`. Repeats and catch trials do not count."""
    shape = (len(raters), len(prompts), len(key.systems), len(key.systems))
    wins, ties = np.zeros(shape), np.zeros(shape)
    index = {system: i for i, system in enumerate(key.systems)}
    for r, answers in enumerate(raters):
        for answer in answers.answers:
            trial = key.trials[answer.trial]
            if trial.purpose != "compare":
                continue
            p, choice = prompts.index(trial.prompt), answer.choices[question]
            first, second = (index[key.clips[clip].system] for clip in trial.clips)
            if choice == NO_PREFERENCE:
                ties[r, p, first, second] += 1
                ties[r, p, second, first] += 1
            else:
                i, j = (first, second) if choice == trial.clips[0] else (second, first)
                wins[r, p, i, j] += 1
    return wins, ties


def _fit(wins: Array, ties: Array, key: Key) -> Strengths:
    try:
        return fit_bradley_terry(wins, ties)
    except ValueError as error:
        raise UserError(
            f"the answers do not connect all systems of test {key.test} ({', '.join(key.systems)}); "
            "collect answers of raters who finish the test"
        ) from error


def _stack(strengths: Strengths) -> Array:
    return np.stack([strengths.predict_preference(), strengths.theta])


def _measure_ratings(
    raters: Sequence[Answers], key: Key, prompts: list[int], _question: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One row per system, hidden reference and anchor, the best first."""
    names, ratings = collect_ratings(raters, key, prompts)
    has = ~np.isnan(ratings)
    values = np.where(has, ratings, 0.0)

    def average(weights: Array) -> Array:
        counts = np.einsum("rp,rpk->k", weights, has)
        sums = np.einsum("rp,rpk->k", weights, values)
        return np.asarray(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))

    means = average(np.ones(ratings.shape[:2]))
    intervals = estimate_intervals(average, len(raters), len(prompts), resamples=resamples, seed=seed)
    rows = [
        {
            "system": name,
            "mean": means[k],
            "mean_interval": _get_interval(intervals, k),
            "median": float(np.nanmedian(ratings[..., k])),
            "ratings": int(has[..., k].sum()),
        }
        for k, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def collect_ratings(raters: Sequence[Answers], key: Key, prompts: list[int]) -> tuple[list[str], Array]:
    """Return names [K] and ratings [raters, prompts, K], NaN where a rater did not answer."""
    names = {"reference": HIDDEN_REFERENCE, "anchor": ANCHOR}
    label = {clip_id: names.get(clip.role, clip.system) for clip_id, clip in key.clips.items()}
    order = list(dict.fromkeys(label.values()))
    ratings = np.full((len(raters), len(prompts), len(order)), np.nan)
    for r, answers in enumerate(raters):
        for answer in answers.answers:
            p = prompts.index(key.trials[answer.trial].prompt)
            for clip, rating in answer.ratings.items():
                ratings[r, p, order.index(label[clip])] = rating
    return order, ratings


def _get_interval(intervals: Array | None, *index: int) -> list[float] | None:
    if intervals is None:
        return None
    low, high = intervals
    return [float(low[index]), float(high[index])]
