"""The page of a data set in Chromium: sounds play, keys work, nothing overflows, hostile text is text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.page.dataset_page import make_page
from pipelines.evaluate.page.page import PAGE_FILE
from tests.support.browser import explain_missing_browser, open_page, start_browser, wait_until
from tests.support.listenable_dataset import CAPTIONS, HOSTILE_CAPTION, TRAIN_ROWS, make_listenable_dataset

MISSING = explain_missing_browser()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    make_page(make_listenable_dataset(str(folder / "set")), folder / "page", "train", count=12, seed=0)
    return folder / "page" / PAGE_FILE


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as started:
        yield started


def wait_until_playing(page: Any, number: int) -> None:
    wait_until(page, "n => { const a = document.querySelectorAll('audio')[n]; return !a.paused && a.currentTime > 0; }",
               number)  # fmt: skip


def test_players_play_one_at_a_time_and_keys_move_between_them(browser: Any, page_file: Path):
    with open_page(browser, page_file) as page:
        assert page.locator(".player button").count() == TRAIN_ROWS
        page.locator(".player button").nth(1).click()
        wait_until_playing(page, 1)
        page.keyboard.press("j")
        wait_until_playing(page, 2)
        assert page.evaluate("[...document.querySelectorAll('audio')].filter(a => !a.paused).length") == 1
        page.keyboard.press(" ")
        wait_until(page, "() => [...document.querySelectorAll('audio')].every(a => a.paused)")
        assert page.evaluate("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth > 0)")
        assert page.problems == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(browser: Any, page_file: Path, width: int):
    with open_page(browser, page_file, width=width, height=844) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter(e => {
              const box = e.getBoundingClientRect();
              return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
            }).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert cut == []
        assert page.problems == []


def test_hostile_text_is_shown_as_it_is(browser: Any, page_file: Path):
    with open_page(browser, page_file) as page:
        texts = page.locator(".caption").all_inner_texts()
        assert len(texts) == len(CAPTIONS)
        assert "<script>alert(1)</script>" in texts[1]
        assert HOSTILE_CAPTION.split("\x1b")[0].strip() in texts[1]
        assert page.locator("script").count() == 1
        assert page.problems == []
