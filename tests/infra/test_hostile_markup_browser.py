"""Known tricks of markup in everything that pages show, in Chromium: no script runs and no request leaves.

The same texts written into a page as they are do both, so that a page without effect shows escaping, not a dead trick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate.dataset_clips import DatasetRow
from pipelines.evaluate.page import dataset_page
from pipelines.evaluate.page.page import render_page
from pipelines.registry.lineage import render_svg
from pipelines.sweep import report as sweep_report
from tests.pipelines.test_lineage_svg import USUAL, make_graph
from tests.support.browser import explain_missing_browser, start_browser
from tests.support.example_report import make_result
from tests.support.hostile_markup import LIVE, TRICKS

MISSING = explain_missing_browser()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


class Watched:
    """A page that records scripts that call alert, and requests for anything but local files."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context()
        self.effects: list[str] = []
        self.context.route("**/*", lambda route: route.continue_() if is_local(route.request.url) else route.abort())
        self.page = self.context.new_page()

    def _note_script(self, dialog: Any) -> None:
        self.effects.append("script ran")
        dialog.dismiss()

    def _note_request(self, request: Any) -> None:
        if not is_local(request.url):
            self.effects.append(f"request for {request.url}")

    def open(self, path: Path) -> list[str]:
        """What happens until the page is loaded and its pictures and sounds have failed; in a page of its own."""
        from playwright.sync_api import Error

        self.page.close()  # a late effect of the page before is not this one's
        self.page, self.effects = self.context.new_page(), []
        self.page.on("dialog", self._note_script)
        self.page.on("request", self._note_request)
        try:
            self.page.goto(path.resolve().as_uri(), wait_until="load")
        except Error:
            self.effects.append("it went elsewhere")
        self.page.wait_for_timeout(60)
        return list(self.effects)


def is_local(url: str) -> bool:
    """Whether a request stays here; Chromium reports javascript: as the source of a sound too, which runs nothing."""
    return url.startswith(("file:", "data:", "about:", "blob:", "javascript:"))


@pytest.fixture(scope="module")
def watched(browser: Any) -> Iterator[Watched]:
    made = Watched(browser)
    yield made
    made.context.close()


@pytest.mark.slow
def test_the_tricks_work_where_nothing_is_escaped(watched: Watched, tmp_path: Path):
    dead = []
    for number, trick in enumerate(LIVE):
        path = tmp_path / f"{number}.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><title>x</title><p>{trick}</p>")
        if not watched.open(path):
            dead.append(trick)
    assert len(dead) <= len(LIVE) // 10, dead


def spread(value: Any, tricks: Iterator[str]) -> Any:
    """The same structure with a trick in every text; keys and numbers stay."""
    if isinstance(value, dict):
        return {key: spread(item, tricks) for key, item in value.items()}
    if isinstance(value, list):
        return [spread(item, tricks) for item in value]
    return next(tricks) if isinstance(value, str) else value


def test_a_report_of_tricks_does_nothing(watched: Watched, tmp_path: Path):
    result, tricks = make_result(), cycle(TRICKS)
    prompts = [{"caption": trick, "track": trick, "key": trick, "seed": trick} for trick in TRICKS]
    audio = tmp_path / "audio" / '"><img src=x onerror=alert(1)>.wav'
    audio.parent.mkdir()
    audio.write_bytes(b"")
    clips = [
        {"system": trick, "prompt": number, "audio": f"audio/{audio.name}", "key": trick, "spectrogram": trick}
        for number, trick in enumerate(TRICKS)
    ]
    systems = [{**row, "name": trick, "model": trick, "role": trick, "label": trick}
               for row, trick in zip(cycle(result["systems"]), TRICKS)]  # fmt: skip
    hostile = spread(result, tricks) | {"systems": systems, "prompts": prompts, "clips": clips, "notes": list(TRICKS)}
    hostile["models"] = {
        trick: dict.fromkeys(("label", "version", "version_url", "run_url"), trick) for trick in TRICKS
    }
    hostile["parents"] = dict.fromkeys(TRICKS, TRICKS[1])
    hostile["hardware"] = {trick: trick for trick in TRICKS}
    (tmp_path / "report.json").write_text(json.dumps(hostile))
    page = render_page(tmp_path)
    assert watched.open(page) == []
    assert watched.page.locator("main img[src=x], main svg, main iframe, main form, main object").count() == 0
    assert LIVE[1] in watched.page.locator("main").inner_text()


def test_a_dataset_of_tricks_does_nothing(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts = {trick: trick for trick in TRICKS} | {"id": TRICKS[1], "note": TRICKS[2]}
    monkeypatch.setattr(dataset_page, "describe", lambda dataset: facts)
    latents = np.zeros((2, 3), np.float16)
    rows = [
        DatasetRow("train", n, latents, trick, 90.0, trick, trick, trick, 0.0, {"licence": trick, "title": trick})
        for n, trick in enumerate(TRICKS)
    ]
    tricks = cycle(TRICKS)
    clips = [
        dataset_page.DatasetClip(row, audio=next(tricks), spectrogram=next(tricks), problem=row.track) for row in rows
    ]
    shard = {"file": "x", "split": "train", "rows": 1, "sha256": "a" * 64}
    dataset = LatentDataset(TRICKS[0], {"id": TRICKS[1], "kind": "dataset", "dataset": {"shards": [shard]}})
    (tmp_path / "index.html").write_text(
        dataset_page.make_html(dataset, clips, split="train", seed=0), encoding="utf-8", errors="replace"
    )
    assert watched.open(tmp_path / "index.html") == []
    assert LIVE[1] in watched.page.locator("body").inner_text()


def test_a_sweep_of_tricks_does_nothing(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweep_report, "make_plots", lambda result: {})
    trials = [
        {"settings": {trick: trick}, "value": 0.5, "last": {}, "update": 1, "state": trick, "reason": trick}
        for trick in TRICKS
    ]
    result = {
        "id": TRICKS[0], "stage": TRICKS[1], "metrics": [TRICKS[2]], "winner": {"command": TRICKS[3]}, "trials": trials,
        "verdict": {"says": TRICKS[4]}, "importance": {"update": TRICKS[5], "trials": 3},
        "saved": {"steps_trained": 1, "steps_of_all_to_the_end": 2, "share": 0.5, "trial_seconds_saved": 1},
        "overhead": {"other_share": 0.0, "validation_share": 0.0, "all_share": 0.0},
        "repeats": {trick: {"values": [1.0], "mean": 1.0, "std": None} for trick in TRICKS},
    }  # fmt: skip
    (tmp_path / "index.html").write_text(sweep_report.to_html(result), encoding="utf-8")
    assert watched.open(tmp_path / "index.html") == []
    assert LIVE[1] in watched.page.locator("body").inner_text()


def test_a_lineage_of_tricks_does_nothing(watched: Watched, tmp_path: Path):
    for number, trick in enumerate(TRICKS):
        path = tmp_path / f"{number}.svg"
        path.write_text(render_svg(make_graph(USUAL, "ls", name=trick)), encoding="utf-8")
        if number % 4 == 0:  # each would take as long as a page
            assert watched.open(path) == [], trick
        assert "<script" not in path.read_text().lower()
