"""Which raters count: those whose answers to trials with a known answer are better than chance."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binom

from pipelines.evaluate.listening.answers import Answer, Answers, Key

HIDDEN_REFERENCE_LEAST = 90  # ITU-R BS.1534-3, 4.1.2
LOW_ANCHOR_MOST = 90  # 4.1.2 has this rule for the mid-range anchor, which is harder to tell from the reference
MOST_SHARE_WRONG = 0.15
CHANCE = 0.05  # probability that a rater who guesses passes
LEAST_CATCHES = 5  # of 4, even all right has probability 1/16 by chance


@dataclass(frozen=True)
class Screening:
    """A rater's verdict; `reason` says why one is excluded, or what a kept one could not be checked for."""

    rater: str
    is_kept: bool
    reason: str
    answered: int
    checks_passed: int
    checks: int
    repeats_equal: int = 0
    repeats: int = 0


def screen(answers: Answers, key: Key) -> Screening:
    """Check one rater by the rule of the test's kind."""
    return screen_mushra(answers, key) if key.kind == "mushra" else screen_pairs(answers, key)


def screen_mushra(answers: Answers, key: Key) -> Screening:
    """Drop who rates the hidden reference below 90, or the low anchor above 90, in more than 15 % of trials."""
    trials = answers.answers
    low = sum(_rate(answer, key, "reference") < HIDDEN_REFERENCE_LEAST for answer in trials)
    high = sum(_rate(answer, key, "anchor") > LOW_ANCHOR_MOST for answer in trials)
    reasons = [
        f"rates {text} in {wrong} of {len(trials)} trials"
        for wrong, text in (
            (low, f"the hidden reference below {HIDDEN_REFERENCE_LEAST}"),
            (high, f"the low anchor above {LOW_ANCHOR_MOST}"),
        )
        if wrong > MOST_SHARE_WRONG * len(trials)
    ]
    if not trials:
        reasons = ["has no answers"]
    passed = len(trials) - low
    return Screening(answers.rater, not reasons, "; ".join(reasons), len(trials), passed, len(trials))


def screen_pairs(answers: Answers, key: Key) -> Screening:
    """Drop who prefers the full clip to its low-pass copy no more often than a guess would.

    That is, if as many right answers of all catch trials have a probability above 5 % by coin flips; no preference is
    a wrong answer. Repeats are counted, not a reason: two systems may sound alike.
    """
    by_trial = {answer.trial: answer for answer in answers.answers}
    catches = [(by_trial[i], t) for i, t in key.trials.items() if t.purpose == "catch" and i in by_trial]
    right = sum(_choose(answer, key) == trial.expected for answer, trial in catches)
    repeats = [
        (by_trial[i], by_trial[t.repeat_of]) for i, t in key.trials.items() if t.repeat_of in by_trial and i in by_trial
    ]
    equal = sum(_choose(again, key) == _choose(first, key) for again, first in repeats)
    is_kept, reason = _decide(right, len(catches), key)
    if not answers.answers:
        is_kept, reason = False, "has no answers"
    counts = (len(answers.answers), right, len(catches), equal, len(repeats))
    return Screening(answers.rater, is_kept, reason, *counts)


def _decide(right: int, catches: int, key: Key) -> tuple[bool, str]:
    in_test = sum(trial.purpose == "catch" for trial in key.trials.values())
    if in_test < LEAST_CATCHES:
        return True, "not checked: the test has too few catch trials"
    # P(X >= right) of a rater who guesses, X ~ Binomial(catches, 1/2)
    if catches < LEAST_CATCHES or binom.sf(right - 1, catches, 0.5) > CHANCE:
        return False, f"is right in {right} of {catches} catch trials, as a guess could be"
    return True, ""


def _rate(answer: Answer, key: Key, role: str) -> int:
    return next(rating for clip, rating in answer.ratings.items() if key.clips[clip].role == role)


def _choose(answer: Answer, key: Key) -> str:
    """The choice by the first question; sound quality where it is put."""
    question = "quality" if "quality" in key.questions else key.questions[0]
    return answer.choices[question]
