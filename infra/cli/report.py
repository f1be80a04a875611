"""`presto report`: copy an evaluation's report to this machine and render the page to listen and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Preview, RegistryArgs

if TYPE_CHECKING:
    from presto_core.artifacts.manifest import Artifact

ReportName = Annotated[
    str,
    typer.Argument(
        metavar="REPORT",
        help="A report's id, URI or registry name (presto-report@v2), the name of a model (for the report that "
        "measured it), or the folder of a copied report.",
    ),
]
OpenBrowser = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]

LOCAL_REPORTS = Path(".presto/reports")
Picture = Annotated[
    str, typer.Option("--picture", metavar="FILE.png", help="Also draw all prompts and models as one picture.")
]


def report(
    name: ReportName,
    settings: RegistryArgs = None,
    open_browser: OpenBrowser = False,
    picture: Picture = "",
    dry_run: Preview = False,
) -> None:
    """Render the page of an evaluation, which needs no server, and print its path."""
    check_report_findable(name, settings or [])
    from pipelines.console import console, print_text
    from pipelines.evaluate.page.fetch import REPORTS, fetch_report, find_local_report
    from pipelines.evaluate.page.page import PAGE_FILE, render_page

    folder, copy = find_local_report(name), ""
    if folder is None:
        stored = find_stored_report(name, settings or [])
        folder, copy = REPORTS / stored.id, f"copy report {stored.id} and "
        if not dry_run:
            fetch_report(stored)
    if dry_run:
        drawn = f" and draw {picture}" if picture else ""
        console.print(f"report: would {copy}render {folder / PAGE_FILE}{drawn}", markup=False)
        return
    page = render_page(folder).resolve()
    print_text(str(page))
    if picture:
        draw_picture(folder, picture)
    if open_browser:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            console.print("report: no browser was found on this machine; open the page yourself")


def draw_picture(folder: Path, file: str) -> None:
    """Write the spectrograms of a fetched report's prompts as one picture; UserError if it cannot be written."""
    from pipelines.console import print_text
    from pipelines.evaluate.page.prompt_grid import draw_prompt_grid
    from presto_core.errors import UserError

    content = draw_prompt_grid(folder)
    try:
        Path(file).write_bytes(content)
    except OSError as error:
        raise UserError(f"--picture={file} cannot be written: {error}") from None
    print_text(file)


def check_report_findable(name: str, settings: list[str]) -> None:
    """Refuse a registry's name where there is no registry, before anything heavy is imported; raises UserError."""
    from pipelines.evaluate.page.fields import ReportError
    from pipelines.presets.resolve import load_stage_config
    from pipelines.registry.names import parse_reference
    from pipelines.registry.presence import check_registry_exists, find_missing_artifact

    config = load_stage_config("registry", settings, takes_preset=False)
    is_copy = Path(name).exists() or (LOCAL_REPORTS / name).exists()
    if is_copy:
        return
    if parse_reference(name):
        check_registry_exists(config.tracking)
    elif path := find_missing_artifact(name, config.storage.root):
        raise ReportError(
            f"there is no report {name}: {path} does not exist; name one that presto registry list presto-report "
            "shows, its store with storage.root=…, or make one: presto evaluate"
        )


def find_stored_report(name: str, settings: list[str]) -> Artifact:
    """Find the report in the store and registry that the settings name; see `find_report`."""
    from pipelines.evaluate.page.fetch import find_report
    from pipelines.presets.resolve import load_stage_config
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("registry", settings, takes_preset=False)
    client = open_tracker(config.tracking).client
    return find_report(client, name, absolute_uri(config.storage.root))
