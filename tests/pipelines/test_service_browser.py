"""The page of a real service in a real browser: generate, repaint, compare two models, and errors that are told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import explain_missing_browser, measure_contrast, start_browser, wait_until
from tests.support.small_service import open_loadable_registry, run_service

MISSING = explain_missing_browser()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]
HOSTILE = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, before = tmp_path_factory.mktemp("service"), Path.cwd()
    os.chdir(folder)
    registry = open_loadable_registry(folder)
    registry.promote(registry.add(1))
    with run_service(
        model="champion", tracking=registry.tracking, storage=registry.storage, log_file=str(folder / "log.jsonl")
    ) as url:
        yield url
    os.chdir(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as browser:
        yield browser


@pytest.fixture(params=[(390, "light"), (1280, "dark")], ids=["phone", "dark desktop"])
def page(request: pytest.FixtureRequest, browser: Any, url: str) -> Iterator[Any]:
    width, theme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.problems, page.foreign = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((url, "blob:")) else page.foreign.append(sent.url))
    page.goto(url)
    wait_until(page, "() => document.querySelectorAll('#model option').length > 2")
    yield page
    context.close()


def count_colours(page: Any, selector: str) -> int:
    """Number of different pixels of a canvas."""
    return page.evaluate(
        """selector => {
          const canvas = document.querySelector(selector);
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(data.buffer)).size;
        }""",
        selector,
    )


def test_from_a_prompt_to_a_repainted_clip_and_a_comparison(page: Any):
    # by keyboard alone: the prompt, then Ctrl+Enter
    page.focus("#prompt")
    page.keyboard.type(f"piano {HOSTILE}")
    page.keyboard.press("Control+Enter")
    wait_until(page, "() => document.querySelectorAll('.card').length === 1", patience_s=90)
    assert page.inner_text(".card h2") == f"piano {HOSTILE}"
    assert page.title() == "Presto"
    assert count_colours(page, ".card .wave") > 1
    assert count_colours(page, ".card .spectrogram") > 50
    wait_until(page, "() => document.querySelector('audio').duration > 0.5")

    # a region, dragged over the waveform, is made anew
    box = page.locator(".card .sound").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    seconds = page.evaluate("document.querySelector('audio').duration")
    assert float(page.input_value(".card .from")) == pytest.approx(0.25 * seconds, abs=0.05)
    page.click(".card .repaint")
    wait_until(page, "() => document.querySelectorAll('.card').length === 2", patience_s=90)
    assert page.inner_text("#problem") == ""
    assert "repainted" in page.inner_text(".card .about")

    # two models, one seed
    page.select_option("#other", "presto-tiny-ls")
    page.fill("#steps", "1")
    page.click("#make")
    wait_until(page, "() => document.querySelectorAll('.pair .card').length === 2", patience_s=90)
    page.click(".pair .switch")
    wait_until(page, "() => !document.querySelector('.pair .card audio').paused")
    page.click(".pair .switch")
    wait_until(page, "() => document.querySelector('.pair .card audio').paused")

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for selector in (".card .about", "#make", ".hint"):
        assert measure_contrast(page, selector) >= 4.5
    assert (page.problems, page.foreign) == ([], [])


def test_the_status_line_names_a_click_that_does_nothing_while_a_request_runs(page: Any):
    page.fill("#prompt", "piano")
    page.fill("#steps", "1")
    page.click("#make")
    wait_until(page, "() => document.querySelectorAll('.card').length === 1", patience_s=90)
    # a request that takes as long as the test wants
    waiting: list[Any] = []
    page.route("**/v1/edit", lambda route: waiting.append(route))
    for button in (".vary", ".extend", ".repaint", ".again"):
        page.click(f".card {button}")
        if button == ".vary":
            wait_until(page, "() => document.querySelector('#status').textContent === 'Editing…'")
            seed = page.input_value("#seed")
            continue
        assert "Nothing else was started" in page.inner_text("#status")
        assert page.is_visible("#status")
        page.evaluate("document.querySelector('#status').textContent = ''")
    assert page.input_value("#seed") == seed
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    assert len(waiting) == 1
    page.click("#cancel")
    wait_until(page, "() => document.querySelector('#status').textContent === 'Cancelled.'")
    page.unroute("**/v1/edit")
    page.click(".card .again")
    wait_until(page, "() => document.querySelectorAll('.card').length === 2", patience_s=90)


def test_an_error_is_shown_and_the_page_goes_on(page: Any):
    page.fill("#prompt", "piano")
    page.fill("#key", "H flat")
    page.click("#make")
    wait_until(page, "() => !document.querySelector('#problem').hidden", patience_s=60)
    assert "H flat" in page.inner_text("#problem")
    page.fill("#key", "")
    page.fill("#steps", "1")
    page.click("#make")
    wait_until(page, "() => document.querySelectorAll('.card').length === 1", patience_s=60)
    assert page.evaluate("document.querySelector('#problem').hidden")
