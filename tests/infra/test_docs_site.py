"""The documentation site: builds without a warning, its reference names everything, and no page asks another server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.docs_site.commands import describe_commands
from infra.docs_site.configuration import describe_configuration
from infra.docs_site.hooks import turn_links
from infra.docs_site.metrics import describe_metrics
from pipelines.stages.table import STAGES
from presto_core.config.describe import describe_settings
from presto_core.metrics.table import ROWS
from tests.e2e.command_check import FOLDERS
from tests.e2e.page_commands import BLOCK, list_pages
from tests.support.browser import explain_missing_browser, start_browser

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_asks_another_server(site: Path):
    """Links to follow are free to lead elsewhere; what a browser loads by itself is not."""
    loaded = re.compile(r'<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)="?(https?:[^"\s>]+)')
    found = {
        (path.name, url)
        for path in site.rglob("*.html")
        for url in loaded.findall(path.read_text(encoding="utf-8"))
        if not url.startswith("http://127.0.0.1")
    }
    assert found == set()


def test_every_page_of_the_docs_is_in_the_navigation(site: Path):
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in navigation} == set()


def test_the_reference_names_every_setting_command_and_metric():
    configuration, commands, metrics = describe_configuration(), describe_commands(), describe_metrics()
    keys = {setting.key for stage in STAGES.values() for setting in describe_settings(stage.config)}
    assert {key for key in keys if f"`{key}`" not in configuration} == set()
    assert {f"## presto {' '.join(row.command)}" for row in STAGES.values() if row.command} <= set(
        commands.splitlines()
    )
    assert {metric.name for metric in ROWS if f"| `{metric.name}` |" not in metrics} == set()


@pytest.mark.parametrize(
    ("link", "origin", "page", "turned"),
    [
        ("docs/method.md#loss", "README.md", "index.md", "(method.md#loss)"),
        ("docs/images/a.png", "README.md", "index.md", "(images/a.png)"),
        ("../README.md#results", "docs/method.md", "method.md", "(index.md#results)"),
        ("../metrics.md", "docs/reference/metrics.md", "reference/metrics.md", "(../metrics.md)"),
        ("../LICENSE", "docs/model_card.md", "model_card.md", ""),
        ("https://arxiv.org/abs/2410.05167", "README.md", "index.md", "(https://arxiv.org/abs/2410.05167)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(link: str, origin: str, page: str, turned: str):
    assert turn_links(f"[text]({link})", origin=origin, page=page) == f"[text]{turned}"


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(explain_missing_browser()), reason=explain_missing_browser())
def test_no_page_is_wider_than_its_window(site: Path):
    """At the width of a telephone and of a screen; tables and code scroll within themselves."""
    too_wide = {}
    with start_browser() as browser:
        page = browser.new_page()
        for path in sorted(site.rglob("*.html")):
            page.goto(path.as_uri())
            for width in (420, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                found = page.evaluate("document.documentElement.scrollWidth")
                if found > width:
                    too_wide[path.name, width] = found
        page.goto((site / "index.html").as_uri())
        table = page.query_selector(".md-typeset__scrollwrap")
        assert table.evaluate("element => element.scrollWidth <= element.clientWidth"), "the table of README is cut"
    assert too_wide == {}


def test_every_relative_link_and_every_path_in_text_exists():
    """Also of links that the site shows as text, since they lead to files without a page."""
    missing = set()
    for path in list_pages():
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", BLOCK.sub("", text)):
            if not (path.parent / target).exists():
                missing.add((path.name, target))
        for span in re.findall(r"`([\w.]+/[\w./-]+)`", text):
            if span.split("/")[0] in FOLDERS and not (ROOT / span.partition("::")[0]).exists():
                missing.add((path.name, span))
    assert missing == set()


@pytest.mark.parametrize("package", ["presto_core", "pipelines", "infra"])
def test_the_map_of_the_architecture_lists_every_room(package: str):
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (rooms,) = re.findall(rf"^{package}/ .*\n((?:  .*\n)+)", page, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", rooms, re.MULTILINE)) == folders
