"""From `presto serve` to the first sound in a browser: seconds of each part, and pictures of the page in four sizes.

    python -m tests.bench.serve_first_audio [--pictures FOLDER] [--model presto-tiny-ls]

The clock starts with the process of `presto serve` and ends when the player of the first clip plays. The pictures show
that clip, repainted, and a comparison of two models: look at them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from pipelines.serve.run import find_free_port
from tests.support.browser import explain_missing_browser, start_browser, wait_until

PATIENCE_S = 300.0
SIZES = {
    "phone": (390, 844, "light"),
    "phone-dark": (390, 844, "dark"),
    "tablet": (820, 1180, "light"),
    "desktop-dark": (1440, 900, "dark"),
}


@contextmanager
def start_service(model: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the command in a folder of its own; gives the URL at once, before anything answers there."""
    port = find_free_port("127.0.0.1")
    command = [sys.executable, "-m", "infra.cli.main", "serve", "--model", model, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"presto serve ended with {process.returncode}"
        try:
            if requests.get(f"{url}/readyz", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"not ready within {PATIENCE_S:g} s")


def play_first_clip(page: Any, url: str) -> None:
    """Open the page, ask for a clip as a person does, and return when it is heard."""
    page.goto(url)
    page.fill("#prompt", "slow piano in A minor, 80 bpm")
    page.click("#make")
    wait_until(page, "() => document.querySelectorAll('.card').length === 1", patience_s=PATIENCE_S)
    page.evaluate("document.querySelector('.card audio').play()")
    wait_until(page, "() => document.querySelector('.card audio').currentTime > 0", patience_s=PATIENCE_S)


def take_pictures(browser: Any, url: str, folder: Path) -> None:
    """Use all of the page in each size; refuses a page that is wider than its window."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height, theme) in SIZES.items():
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        page = context.new_page()
        play_first_clip(page, url)
        page.click(".card .repaint")
        wait_until(page, "() => document.querySelectorAll('.card').length === 2", patience_s=PATIENCE_S)
        page.select_option("#other", "presto-tiny-s")
        page.click("#make")
        wait_until(page, "() => document.querySelectorAll('.pair .card').length === 2", patience_s=PATIENCE_S)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        page.screenshot(path=str(folder / f"page-{name}.png"), full_page=True)
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="presto-tiny-ls")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the page in four sizes")
    arguments = parser.parse_args()
    if missing := explain_missing_browser():
        sys.exit(missing)
    load = os.getloadavg()
    with start_browser() as browser:
        started = time.monotonic()
        with start_service(arguments.model) as (url, process):
            wait_until_ready(url, process)
            ready_s = time.monotonic() - started
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            play_first_clip(page, url)
            sounding_s = time.monotonic() - started
            if arguments.pictures:
                take_pictures(browser, url, arguments.pictures)
    print(f"{arguments.model}, {os.cpu_count()} cores, load before {load[0]:.1f}\n")
    print("| `presto serve` to | s |\n|---|---:|")
    for name, seconds in (("ready", ready_s), ("first sound in the browser", sounding_s)):
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
