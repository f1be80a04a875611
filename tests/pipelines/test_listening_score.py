"""Scores of listening tests: known strengths are recovered, intervals cover, and raters who guess are dropped."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.evaluate.listening.answers import Answers, Key, find_key, read_answers
from pipelines.evaluate.listening.resampling import Array, draw_weights, estimate_intervals
from pipelines.evaluate.listening.score import count_preferences, score, score_files
from pipelines.evaluate.listening.screening import screen
from presto_core.errors import UserError
from tests.support.simulated_raters import QUALITY, answer_test, make_key, write_answers

ID = "ab" * 6


def simulate(key: Key, raters: int, *, seed: int = 0, **options: Any) -> list[Answers]:
    return [Answers.model_validate(answer_test(key, f"r{i}", seed=1000 * seed + i, **options)) for i in range(raters)]


def test_simulated_raters_give_back_the_systems_strengths():
    key = make_key("pairs", prompts=8)
    result = score(simulate(key, 25), key, resamples=100)
    rows = {row["system"]: row for row in result["results"]["quality"]}
    assert list(rows) == list(QUALITY)
    for system, strength in QUALITY.items():
        assert rows[system]["strength"] == pytest.approx(strength, abs=0.3)
        low, high = rows[system]["strength_interval"]
        assert low < rows[system]["strength"] < high
    assert sum(row["wins"] for row in rows.values()) == sum(row["losses"] for row in rows.values())
    assert sum(row["wins"] + row["ties"] / 2 for row in rows.values()) == 25 * 8 * 6


def test_repeats_and_catch_trials_do_not_count_as_preferences():
    key = make_key("pairs")
    wins, ties = count_preferences(simulate(key, 3), key, [0, 1, 2, 3], "quality")
    np.testing.assert_array_equal(np.triu(wins + wins.swapaxes(2, 3) + ties).sum(axis=(2, 3)), 6.0)


# over 10 s: 40 simulated tests, each fitted again 60 times
def test_intervals_of_preferences_cover_the_true_strength():
    key = make_key("pairs", systems=("A", "B"), prompts=8)
    truth = {"A": 0.6, "B": -0.6}
    hits = 0
    for trial in range(40):
        raters = simulate(key, 8, seed=trial + 1, quality=truth)
        row = next(r for r in score(raters, key, resamples=60)["results"]["quality"] if r["system"] == "A")
        hits += row["strength_interval"][0] <= 0.6 <= row["strength_interval"][1]
    assert hits >= 34  # the pigeonhole bootstrap errs on the wide side; Binomial(40, 0.95) is below 34 in 0.3 %


def average(values: Array, weights: Array) -> Array:
    return np.array((weights * values).sum() / weights.sum())


def test_intervals_of_means_cover_where_raters_and_prompts_differ():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values = rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, (1, 12)) + rng.normal(0, 1, (12, 12))
        interval = estimate_intervals(partial(average, values), 12, 12, resamples=200)
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    assert 0.88 <= hits / 200 <= 0.99


def test_weights_draw_as_many_raters_and_prompts_as_there_are():
    for weights in draw_weights(5, 3, resamples=10, seed=1):
        assert weights.shape == (5, 3)
        assert weights.sum() == 15
        assert np.linalg.matrix_rank(weights) == 1
    assert estimate_intervals(np.sum, 1, 1) is None


@pytest.mark.parametrize("kind", ["pairs", "mushra"])
def test_of_three_raters_the_one_who_guesses_is_found_and_dropped(tmp_path: Path, kind: str):
    key = make_key(kind, prompts=8)
    files = [
        write_answers(tmp_path / f"{name}.json", answer_test(key, name, seed=i, guess=name == "guesser"))
        for i, name in enumerate(("ann", "guesser", "bob"))
    ]
    result = score_files(files, key, resamples=50)
    assert [rater["is_kept"] for rater in result["raters"]] == [True, False, True]
    assert result["notes"][0].startswith("guesser is excluded: ")
    assert any(note.startswith("2 raters: intervals are rough") for note in result["notes"])
    rows = next(iter(result["results"].values()))
    ranked = [row["system"] for row in rows if row["system"] in QUALITY]
    assert (ranked[0], ranked[-1]) == ("A", "D")


def test_a_rater_who_guesses_passes_the_catch_trials_in_at_most_5_percent():
    key = make_key("pairs", systems=("A", "B"), prompts=4)
    passed = sum(screen(rater, key).is_kept for rater in simulate(key, 1000, guess=True))
    assert passed <= 50


def test_one_slip_in_eight_catch_trials_is_forgiven_and_two_are_not():
    key = make_key("pairs")
    catches = [i for i, trial in key.trials.items() if trial.purpose == "catch"]
    for slips, is_kept in ((0, True), (1, True), (2, False)):
        answers = answer_test(key, "r", seed=0)
        for answer in answers["answers"]:
            if answer["trial"] in catches[:slips]:
                answer["choices"]["quality"] = "none"
        screening = screen(Answers.model_validate(answers), key)
        assert (screening.is_kept, screening.checks_passed) == (is_kept, 8 - slips)


@pytest.mark.parametrize(("role", "rating"), [("reference", 89), ("anchor", 91)])
def test_mushra_raters_may_err_in_15_percent_of_trials_and_no_more(role: str, rating: int):
    key = make_key("mushra", prompts=20)  # 15 % are 3
    for slips, is_kept in ((3, True), (4, False)):
        answers = answer_test(key, "r", seed=0)
        for answer in answers["answers"][:slips]:
            clip = next(c for c in answer["clips"] if key.clips[c].role == role)
            answer["ratings"][clip] = rating
        assert screen(Answers.model_validate(answers), key).is_kept is is_kept


def test_mushra_means_are_those_of_the_ratings():
    key = make_key("mushra", prompts=3)
    raters = simulate(key, 4)
    result = score(raters, key, resamples=20)
    for row in result["results"]["rating"]:
        if row["system"] in QUALITY:
            ratings = [
                rating
                for rater in raters
                for answer in rater.answers
                for clip, rating in answer.ratings.items()
                if (key.clips[clip].role, key.clips[clip].system) == ("system", row["system"])
            ]
            assert (row["mean"], row["median"]) == pytest.approx((np.mean(ratings), np.median(ratings)))
            assert row["ratings"] == 12


@pytest.mark.parametrize("kind", ["pairs", "mushra"])
@pytest.mark.parametrize(
    ("raters", "prompts", "note"),
    [(0, 4, "no rater is left"), (1, 1, "no interval is possible"), (1, 4, "one rater: intervals are over prompts")],
)
def test_too_few_raters_are_a_note(kind: str, raters: int, prompts: int, note: str):
    key = make_key(kind, prompts=prompts, catches=8)
    kept = simulate(key, raters)
    result = score([*kept, *simulate(key, 1, guess=True, seed=5)] if not raters else kept, key, resamples=20)
    assert any(note in text for text in result["notes"])
    assert bool(result["results"]) is bool(raters)
    json.dumps(result, allow_nan=False)


def test_of_a_raters_files_the_one_saved_last_counts_and_that_is_reported(tmp_path: Path):
    key = make_key("pairs")
    answers = answer_test(key, "ann", seed=0)
    new = write_answers(tmp_path / "new.json", answers)
    old = write_answers(
        tmp_path / "old.json", answers, lambda a: a.update(saved="2026-01-01T00:00:00Z", answers=a["answers"][:3])
    )
    for files in ([old, new], [new, old]):
        result = score_files(files, key, resamples=20)
        assert [rater["answered"] for rater in result["raters"]] == [len(key.trials)]
        assert "ann has several files; old.json is left out for new.json, saved last" in result["notes"]


def test_unfinished_tests_count_and_are_reported():
    key = make_key("pairs")
    answers = answer_test(key, "ann", seed=0)
    answers["answers"] = [a for a in answers["answers"] if key.trials[a["trial"]].purpose != "repeat"]
    result = score([Answers.model_validate(answers)], key, resamples=20)
    assert f"ann answered {len(key.trials) - 4} of {len(key.trials)} trials" in result["notes"]


def rate_first(rating: Any) -> Any:
    """Change the first rating of the first answer."""
    return lambda answers: answers["answers"][0]["ratings"].update({answers["answers"][0]["clips"][0]: rating})


def edit_first(**changes: Any) -> Any:
    return lambda answers: answers["answers"][0].update(changes)


HOSTILE: list[tuple[str, Any, str]] = [
    (
        "mushra",
        rate_first(math.nan),
        "NaN is no number",
    ),
    ("mushra", rate_first(101), "not '101'"),
    ("mushra", rate_first("90"), "not '90'"),
    ("mushra", lambda a: a["answers"][0]["ratings"].popitem(), "has ratings of"),
    ("pairs", edit_first(trial="0" * 12), "trial 000000000000, which test"),
    ("pairs", edit_first(clips=["0" * 12, "1" * 12]), "shows other clips"),
    ("pairs", edit_first(choices={"quality": "0" * 12}), "prefers clip 000000000000, which it does not show"),
    ("pairs", edit_first(choices={"taste": "none"}), "not the questions quality"),
    ("pairs", edit_first(seconds=-1), "greater than or equal to 0"),
    ("pairs", lambda a: a["answers"].append(a["answers"][0]), "twice"),
    ("pairs", lambda a: a.update(rater="<b>ann</b>"), "rater"),
    ("pairs", lambda a: a.update(rater="ann\n"), "rater"),
    ("pairs", lambda a: a.update(extra=1), "extra"),
    ("pairs", lambda a: a.update(test="0" * 12), "answers test 000000000000, not"),
    ("pairs", lambda a: a.update(format=2), "format"),
    ("pairs", lambda a: a.pop("answers"), "answers: Field required"),
]


@pytest.mark.parametrize(("kind", "edit", "message"), HOSTILE)
def test_hostile_answers_are_one_message_that_names_the_file(tmp_path: Path, kind: str, edit: Any, message: str):
    key = make_key(kind)
    path = write_answers(tmp_path / "answers.json", answer_test(key, "ann", seed=0), edit)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_answers(path, key)
    assert "answers.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"rater": "\\ud800"}', "\x00"])
def test_files_that_are_no_answers_are_one_message(tmp_path: Path, content: str):
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"answers\.json"):
        read_answers(path, make_key("pairs"))


def test_the_key_is_found_beside_the_answers_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / "a.json"]
    with pytest.raises(UserError, match=r"no single key file found .found none"):
        find_key(files, {ID})
    (tmp_path / "x.key.json").touch()
    assert find_key(files, {ID}) == tmp_path / "x.key.json"
    (tmp_path / "y.key.json").touch()
    with pytest.raises(UserError, match=r"found 2: .*x\.key\.json, .*y\.key\.json.; name it with --key"):
        find_key(files, {ID})


def test_of_several_keys_the_one_of_the_answered_test_is_found(tmp_path: Path):
    key = make_key("pairs")
    other = key.model_copy(update={"test": "0" * 12})
    for name, one in (("a", other), ("b", key), ("c", other)):
        (tmp_path / f"{name}.key.json").write_text(one.model_dump_json())
    assert find_key([tmp_path / "a.json"], {key.test}) == tmp_path / "b.key.json"
    with pytest.raises(UserError, match=r"no single key file found .found 3"):
        find_key([tmp_path / "a.json"], {other.test})


def test_a_missing_answers_file_is_named_before_a_missing_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"ann\.json cannot be read"):
        CliRunner().invoke(app, ["listening-test", "score", "ann.json"], catch_exceptions=False)
