"""A listening test from report to table: built by the command, taken in Chromium by keyboard, scored by the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli.listening import app
from pipelines.evaluate.listening.answers import Key, KeyClip, read_key
from presto_core.errors import UserError
from tests.support.browser import explain_missing_browser, open_page, start_browser
from tests.support.example_report import make_report_folder
from tests.support.simulated_raters import answer_test, make_key, write_answers

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(explain_missing_browser()), reason=explain_missing_browser() or "there is a browser"),
]
SIZES = [(1280, "light"), (390, "dark")]
QUALITY = {"S 4": 90, "LS 4": 60}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report_folder(tmp_path_factory.mktemp("report"), seconds=1.0)


@pytest.fixture(scope="module")
def long_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that no test hears to their end, however busy the machine."""
    return make_report_folder(tmp_path_factory.mktemp("long-report"), seconds=8.0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


def run_command(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def build(report: Path, tmp_path: Path, kind: str, *options: object) -> tuple[Path, Key]:
    page = tmp_path / f"{kind}.html"
    run_command("build", report, "--kind", kind, "--systems", "S 4, LS 4", "--out", page, *options)
    return page, read_key(tmp_path / f"{kind}.key.json")


def start(page: Any, rater: str) -> None:
    page.fill("#rater", rater)
    page.keyboard.press("Enter")
    page.wait_for_selector("#trial:not([hidden])")


def hear(page: Any, keys: str) -> None:
    """Press the key of each clip, and listen until the page counts it as heard."""
    slots = page.eval_on_selector_all("button[data-slot]", "buttons => buttons.map(b => b.dataset.slot)")
    slots = [slot for slot in slots if slot != "reference"]
    for key, slot in zip(keys, slots, strict=True):
        page.keyboard.press(key)
        page.wait_for_selector(f'button.heard[data-slot="{slot}"]', timeout=20_000)


def answer_pair(page: Any, key: Key) -> None:
    """Prefer the full clip to its anchor, and the better system."""
    hear(page, "ab")
    values = page.eval_on_selector_all("#questions button", "buttons => buttons.map(b => b.dataset.value)")
    first, second = (rank(key.clips[value]) for value in (values[0], values[2]))
    page.keyboard.press("1" if first > second else "3")
    page.keyboard.press("Enter")


def answer_mushra(page: Any, key: Key) -> None:
    """Rate each clip from the keyboard: 50, and steps of 10 up or down to what it is worth."""
    slots = page.eval_on_selector_all("button[data-slot]", "buttons => buttons.map(b => b.dataset.slot)")[1:]
    page.keyboard.press("0")
    page.wait_for_selector('button.playing[data-slot="reference"]')
    for digit, slot in enumerate(slots, start=1):
        page.keyboard.press(str(digit))
        page.wait_for_selector(f'button.heard[data-slot="{slot}"]', timeout=20_000)
        steps = (rank(key.clips[slot]) - 50) // 10
        for _ in range(abs(steps)):
            page.keyboard.press("Shift+ArrowUp" if steps > 0 else "Shift+ArrowDown")
    page.keyboard.press("Enter")


def rank(clip: KeyClip) -> int:
    return {"reference": 100, "anchor": 10}.get(clip.role) or QUALITY[clip.system]


def wait_for_count(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('count').textContent === text", arg=text)


def take_test(browser: Any, path: Path, key: Key, answer: Callable[[Any, Key], None], folder: Path) -> Path:
    """Take a whole test by keyboard, with a reload in the middle; returns the downloaded answers."""
    total = len(key.trials)
    with open_page(browser, path) as page:
        start(page, "ann")
        for number in range(1, total + 1):
            wait_for_count(page, f"Trial {number} of {total}")
            if number == total // 2 + 1:
                before = page.inner_text("#prompt"), page.get_attribute("button.heard, button[data-slot]", "data-slot")
                page.reload()
                assert f"Continue ({number - 1} of {total} answered)" in page.inner_text("#begin")
                page.keyboard.press("Enter")
                wait_for_count(page, f"Trial {number} of {total}")
                assert before[0] == page.inner_text("#prompt")
            answer(page, key)
        page.wait_for_selector("#end:not([hidden])")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        target = folder / download.value.suggested_filename
        download.value.save_as(target)
        assert page.problems == []
    return target


class TestInBrowser:
    pytestmark = needs_browser

    # over 10 s: both clips of 8 trials are heard in real time
    def test_a_pairs_test_is_taken_by_keyboard_resumed_and_scored(self, report: Path, browser: Any, tmp_path: Path):
        options = ("--prompts", 2, "--repeats", 1, "--catches", 5)
        path, key = build(report, tmp_path, "pairs", *options)
        answers = take_test(browser, path, key, answer_pair, tmp_path)
        result = json.loads(run_command("score", answers, "--json"))
        (rater,) = result["raters"]
        assert (rater["rater"], rater["is_kept"], rater["checks_passed"], rater["repeats_equal"]) == ("ann", True, 5, 1)
        rows = {row["system"]: (row["wins"], row["losses"]) for row in result["results"]["quality"]}
        assert rows == {"S 4": (2, 0), "LS 4": (0, 2)}

    # over 10 s: 4 clips of 2 trials are heard in real time
    @pytest.mark.slow
    def test_a_mushra_test_is_taken_by_keyboard_resumed_and_scored(self, report: Path, browser: Any, tmp_path: Path):
        path, key = build(report, tmp_path, "mushra", "--prompts", 2)
        answers = take_test(browser, path, key, answer_mushra, tmp_path)
        result = json.loads(run_command("score", answers, "--json"))
        assert result["raters"][0]["is_kept"]
        means = {row["system"]: row["mean"] for row in result["results"]["rating"]}
        assert means == {"hidden reference": 100, "S 4": 90, "LS 4": 60, "low anchor (3.5 kHz)": 10}

    @pytest.mark.parametrize("kind", ["pairs", "mushra"])
    @pytest.mark.parametrize(("width", "theme"), SIZES)
    def test_the_page_fits_and_one_clip_plays_at_a_time(
        self, long_report: Path, browser: Any, tmp_path: Path, kind: str, width: int, theme: Any
    ):
        path, _ = build(long_report, tmp_path, kind)
        with open_page(browser, path, width=width, theme=theme) as page:
            assert measure_overflow(page) <= 0
            start(page, "ann")
            page.keyboard.press("Enter")  # nothing is answered: stays
            for key in ("a", "b") if kind == "pairs" else ("0", "1", "2"):
                page.keyboard.press(key)
                page.wait_for_selector("button.playing")
                assert page.locator("button.playing").count() == 1
            page.keyboard.press(" ")
            page.wait_for_function("() => !document.querySelector('button.playing')")
            assert page.inner_text("#count").startswith("Trial 1 of")
            assert measure_overflow(page) <= 0
            assert page.problems == []

    def test_mushra_continues_at_the_same_position_and_pairs_start_again(
        self, long_report: Path, browser: Any, tmp_path: Path
    ):
        positions = {}
        for kind, keys in (("mushra", "12"), ("pairs", "ab")):
            path, _ = build(long_report, tmp_path, kind)
            with open_page(browser, path) as page:
                start(page, "ann")
                page.keyboard.press(keys[0])
                page.wait_for_function("() => parseFloat(document.getElementById('position').style.width) > 6")
                page.keyboard.press(" ")  # paused: the position stays
                page.wait_for_function("() => !document.querySelector('button.playing')")
                page.evaluate(WATCH_START)
                page.keyboard.press(keys[1])
                positions[kind] = page.evaluate("() => window.startOffset")
        assert positions["mushra"] > 0.4
        assert positions["pairs"] == 0

    def test_order_depends_on_the_rater_and_is_the_same_for_one_rater(self, report: Path, browser: Any, tmp_path: Path):
        path, _ = build(report, tmp_path, "pairs")
        orders = [read_order(browser, path, rater) for rater in ("ann", "ann", "bob")]
        assert orders[0] == orders[1] != orders[2]

    def test_the_test_sound_plays_on_the_start_page_and_stops(self, report: Path, browser: Any, tmp_path: Path):
        path, _ = build(report, tmp_path, "mushra")
        with open_page(browser, path) as page:
            page.click("#sound")
            page.wait_for_function("() => document.getElementById('sound').textContent === 'Stop test sound'")
            page.wait_for_function("() => document.getElementById('sound').textContent === 'Play test sound'")
            start(page, "ann")
            assert page.problems == []

    def test_both_questions_must_be_answered(self, report: Path, browser: Any, tmp_path: Path):
        path, key = build(report, tmp_path, "pairs", "--question", "quality", "--question", "prompt")
        assert key.questions == ("quality", "prompt")
        with open_page(browser, path) as page:
            start(page, "ann")
            hear(page, "ab")
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            assert page.inner_text("#missing") == "Which clip follows the description better?"
            page.keyboard.press("6")
            page.keyboard.press("Enter")
            wait_for_count(page, f"Trial 2 of {len(key.trials)}")
            page.keyboard.press("p")
            wait_for_count(page, f"Trial 1 of {len(key.trials)}")
            pressed = page.eval_on_selector_all(
                "#questions button[aria-pressed=true]", "all => all.map(b => b.innerText)"
            )
            assert pressed == ["No preference", "B"]

    def test_a_name_with_html_is_refused_in_the_page(self, report: Path, browser: Any, tmp_path: Path):
        path, _ = build(report, tmp_path, "pairs")
        with open_page(browser, path) as page:
            page.fill("#rater", "<img src=x onerror=alert(1)>")
            page.keyboard.press("Enter")
            assert "letters, digits" in page.inner_text("#notice")
            assert page.is_visible("#start")


WATCH_START = """() => {
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (when, offset) {
    window.startOffset = offset;
    return start.call(this, when, offset);
  };
}"""


def measure_overflow(page: Any) -> int:
    return int(page.evaluate("() => document.documentElement.scrollWidth - innerWidth"))


def read_order(browser: Any, path: Path, rater: str) -> list[str]:
    """The first trial's prompt and clips, as this rater sees them."""
    with open_page(browser, path) as page:
        start(page, rater)
        slots = page.eval_on_selector_all("button[data-slot]", "buttons => buttons.map(b => b.dataset.slot)")
        return [page.inner_text("#prompt"), *slots]


@pytest.mark.parametrize("kind", ["pairs", "mushra"])
def test_a_dry_run_writes_nothing(report: Path, empty: Path, kind: str):
    run_command("build", report, "--kind", kind, "--dry-run")
    assert list(empty.glob("*.html")) == []


def test_an_unknown_kind_is_refused(report: Path):
    with pytest.raises(UserError, match="'triangle' is unknown; choose pairs or mushra"):
        CliRunner().invoke(app, ["build", str(report), "--kind", "triangle"], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["pairs", "mushra"])
def test_the_score_is_a_table_that_fits_80_columns(empty: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    key = make_key(kind, prompts=4)
    (empty / "made-up.key.json").write_text(key.model_dump_json())
    files = [
        write_answers(empty / f"{name}.json", answer_test(key, name, seed=i, guess=name == "guesser"))
        for i, name in enumerate(("ann", "guesser", "bob"))
    ]
    output = run_command("score", *files)
    assert "guesser is excluded" in output
    tables = [line for line in output.splitlines() if line.startswith(("│", "┃"))]
    assert tables
    assert max(map(len, tables)) <= 80
