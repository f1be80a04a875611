"""Chromium, driven by Playwright's protocol: pages of a folder opened as a person would, without a server."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # containers run tests as root
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--disable-dev-shm-usage",
]


def find_chromium() -> str | None:
    """Return the path of the first Chromium on PATH."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def explain_missing_browser() -> str:
    """Return why pages cannot be opened in a browser; empty if they can."""
    if find_chromium() is None:
        return f"no browser on PATH ({', '.join(PROGRAMS)}); install Chromium, e.g. apt-get install chromium"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed; run pip install playwright"
    return ""


@contextmanager
def start_browser() -> Iterator[Any]:
    """Start one headless Chromium for several pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Any, path: Path, *, width: int = 1280, height: int = 900, theme: Literal["light", "dark"] = "light"
) -> Iterator[Any]:
    """Open a local file as file://; `page.problems` lists the console's errors and uncaught exceptions so far."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    page = context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: (page.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        page.goto(path.resolve().as_uri(), wait_until="load")
        yield page
    finally:
        context.close()


def wait_until(page: Any, expression: str, argument: Any = None, *, patience_s: float = 20.0) -> None:
    """Wait until JavaScript is true; Playwright's own waiting evaluates text, which a page's policy may refuse."""
    deadline = time.monotonic() + patience_s
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"not true within {patience_s} s: {expression} {argument}"
        page.wait_for_timeout(20)


def measure_contrast(page: Any, selector: str) -> float:
    """Contrast of an element's text with the ground behind it (WCAG 2.2: relative luminance)."""
    colors = page.evaluate(
        """selector => {
          const element = document.querySelector(selector);
          let ground = element;
          while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        }""",
        selector,
    )
    values = [[int(v) / 255 for v in re.findall(r"\d+", color)[:3]] for color in colors]
    linear = [[v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color] for color in values]
    light, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)
