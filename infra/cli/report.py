"""`presto report`: copy an evaluation's report to this machine and render the page to listen and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import Preview, RegistryArgs

ReportName = Annotated[
    str,
    typer.Argument(
        metavar="REPORT",
        help="A report's id, URI or registry name (presto-report@v2), a model's (the report that measured it), or the "
        "folder of a copied report.",
    ),
]
OpenBrowser = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]


def report(
    name: ReportName, settings: RegistryArgs = None, open_browser: OpenBrowser = False, dry_run: Preview = False
) -> None:
    """Render a report's page, which needs no server; prints its path."""
    from pipelines.console import console
    from pipelines.evaluate.page.fetch import REPORTS, find_local_report
    from pipelines.evaluate.page.page import PAGE_FILE, render_page

    folder = find_local_report(name)
    if dry_run:
        action = f"render {folder / PAGE_FILE}" if folder else f"copy report {name} to {REPORTS} and render its page"
        console.print(f"report: would {action}", markup=False)
        return
    page = render_page(folder or _fetch(name, settings or [])).resolve()
    typer.echo(page)
    if open_browser:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            console.print("report: no browser was found on this machine; open the page yourself")


def _fetch(name: str, settings: list[str]) -> Path:
    """Copy the report of the store and registry that the settings name."""
    from pipelines.evaluate.page.fetch import fetch_report, find_report
    from pipelines.presets.resolve import load_stage_config
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("registry", settings)
    client = open_tracker(config.tracking).client
    return fetch_report(find_report(client, name, absolute_uri(config.storage.root)))
