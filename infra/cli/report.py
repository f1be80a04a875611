"""`presto report`: copy an evaluation's report to this machine and render the page to listen and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Preview, RegistryArgs

if TYPE_CHECKING:
    from presto_core.artifacts.manifest import Artifact

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
    """Render an evaluation's page (no server needed) and print its path."""
    from pipelines.console import console
    from pipelines.evaluate.page.fetch import REPORTS, fetch_report, find_local_report
    from pipelines.evaluate.page.page import PAGE_FILE, render_page

    folder, copy = find_local_report(name), ""
    if folder is None:
        stored = find_stored_report(name, settings or [])
        folder, copy = REPORTS / stored.id, f"copy report {stored.id} and "
        if not dry_run:
            fetch_report(stored)
    if dry_run:
        console.print(f"report: would {copy}render {folder / PAGE_FILE}", markup=False)
        return
    page = render_page(folder).resolve()
    typer.echo(page)
    if open_browser:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            console.print("report: no browser was found on this machine; open the page yourself")


def find_stored_report(name: str, settings: list[str]) -> Artifact:
    """Find the report in the store and registry that the settings name; see `find_report`."""
    from pipelines.evaluate.page.fetch import find_report
    from pipelines.presets.resolve import load_stage_config
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("registry", settings)
    client = open_tracker(config.tracking).client
    return find_report(client, name, absolute_uri(config.storage.root))
