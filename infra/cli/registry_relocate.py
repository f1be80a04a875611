"""`presto registry relocate`: make the records of a moved or copied project, or a moved store, point to it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from infra.cli.options import AsJson, Preview, RegistryArgs
from infra.cli.registry_views import print_result
from pipelines.console import console, print_table, print_warning
from pipelines.presets.resolve import load_stage_config

MAX_NAMED = 3


def relocate(
    settings: RegistryArgs = None,
    old: Annotated[
        str,
        typer.Option(
            "--from", metavar="OLD", help="Former folder or s3://bucket/prefix of what moved.", show_default=False
        ),
    ] = "",
    new: Annotated[str, typer.Option("--to", metavar="NEW", help="Where it is now.", show_default=False)] = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Rewrite the paths in MLflow's records; by default, from the former to the present path of this project folder.

    Run it in a project folder that was moved or copied, or with --from and --to for a store that moved. The files
    themselves are not moved. A copy of the database is kept next to it.
    """
    from pipelines.registry.relocation import find_relocation
    from pipelines.registry.relocation import relocate as rewrite_records
    from pipelines.tracking.uri import check_uri, tracking_uri, uri_source

    tracking = load_stage_config("registry", settings or []).tracking
    check_uri(tracking_uri(tracking), uri_source(tracking))
    relocation = find_relocation(tracking, old, new)
    if relocation is None:
        print_result("relocate: this project lies where it was made; nothing to do", {"counts": {}}, as_json)
        return
    result = rewrite_records(tracking, relocation, dry_run=dry_run)
    where = f"from {relocation.old} to {relocation.new}"
    if result.counts and not as_json:
        rows = [[name, str(count)] for name, count in result.counts.items()]
        print_table(f"records {where}", ("records", "number"), rows)
    outcome = "would be rewritten" if dry_run else "are rewritten"
    payload = asdict(relocation) | asdict(result) | {"dry_run": dry_run}
    print_result(f"relocate: {result.total} records {outcome} {where}", payload, as_json)
    if result.backup:
        console.print(f"the database as it was before is kept: {result.backup}", markup=False)
    if result.missing:
        named = ", ".join(result.missing[:MAX_NAMED])
        print_warning(f"{len(result.missing)} registered artifacts are not there, such as {named}; move them too")
