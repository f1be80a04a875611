"""Rewrite where MLflow's records say that files are, after a project or a store moved, or in a copy of one.

A database is changed in one transaction, a SQLite file after a copy of it was made: an interrupted command changes
nothing, and one that is run again finds nothing left to do. MLflow's server lets tags be changed only; where its own
artifacts are is the server's business.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pipelines.registry.names import RegistryError
from pipelines.tracking.client import create_client, translate_mlflow_errors
from pipelines.tracking.database import find_former_home
from pipelines.tracking.uri import sqlite_path, tracking_uri
from presto_core.artifacts.durable import move_synced, sync_file
from presto_core.config.sections import TrackingConfig

# tables and the columns in which MLflow and Presto keep paths and URIs
COLUMNS = {
    "experiments": "artifact_location",
    "experiment_tags": "value",
    "runs": "artifact_uri",
    "tags": "value",
    "datasets": "dataset_source",
    "logged_models": "artifact_location",
    "logged_model_tags": "tag_value",
    "registered_model_tags": "value",
    "model_versions": "source",
    "model_version_tags": "value",
}
SECOND_COLUMNS = {"model_versions": "storage_location"}
PAGE = 1000
Rewrite = Callable[[str], str]


@dataclass(frozen=True)
class Relocation:
    """A prefix of paths or URIs, and what takes its place; neither ends in a slash."""

    old: str
    new: str

    def rewrite(self, text: str) -> str:
        """Return the text with the prefix replaced, where it is a path or URI below it, or JSON that holds such."""
        for old, new in self._forms():
            if text == old or text.startswith(f"{old}/"):
                return new + text[len(old) :]
            if text[:1] in "{[":
                quoted_old, quoted_new = json.dumps(old)[:-1], json.dumps(new)[:-1]
                text = re.sub(rf'{re.escape(quoted_old)}(?=[/"])', quoted_new.replace("\\", r"\\"), text)
        return text

    def _forms(self) -> Iterator[tuple[str, str]]:
        """The prefix as a path, and as MLflow writes it: a file URI."""
        yield self.old, self.new
        if not self.old.startswith("s3://"):
            new = self.new if self.new.startswith("s3://") else f"file://{quote(self.new)}"
            yield f"file://{quote(self.old)}", new
            if quote(self.old) != self.old:
                yield f"file://{self.old}", new


@dataclass(frozen=True)
class RelocationResult:
    """What was rewritten, or would be.

    Attributes:
        counts: table or kind of record -> number of its values.
        backup: copy of the database as it was before; empty if nothing was changed or it is no file.
        missing: artifacts of local versions that are not at the new place.
    """

    counts: dict[str, int]
    backup: str = ""
    missing: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def find_relocation(config: TrackingConfig, old: str = "", new: str = "") -> Relocation | None:
    """Return what to rewrite: as given, or from where this project was; None if it lies where it was made.

    Raises:
        RegistryError: only one of both is given, they overlap, or the new place does not exist.
    """
    if bool(old) != bool(new):
        raise RegistryError(f"--{'to' if old else 'from'} is missing; give both, or neither for this project's folder")
    if not old:
        path = sqlite_path(tracking_uri(config))
        former = find_former_home(path) if path else None
        if path is None or former is None:
            return None
        return Relocation(str(former.parent), str(path.parent.parent))
    relocation = Relocation(_normalize(old), _normalize(new))
    if relocation.old == relocation.new:
        raise RegistryError(f"--from and --to are both {relocation.old}; name two places")
    if f"{relocation.new}/".startswith(f"{relocation.old}/"):
        raise RegistryError(
            f"--to {relocation.new} lies in --from {relocation.old}, so running this again would not be the same; "
            "name the folders that moved themselves"
        )
    if not relocation.new.startswith("s3://") and not Path(relocation.new).is_dir():
        raise RegistryError(f"--to {relocation.new} is no folder; name the place that the files are at now")
    return relocation


def _normalize(uri: str) -> str:
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "s3":
        if not urlsplit(uri).netloc:
            raise RegistryError(f"{uri!r} has no bucket; use s3://bucket/prefix")
        return uri.rstrip("/")
    if scheme not in ("", "file"):
        raise RegistryError(f"{uri!r} is neither a folder nor s3://bucket/prefix")
    path = unquote(uri.removeprefix("file://")) if scheme else uri
    return str(Path(path).expanduser().absolute()).rstrip("/") or "/"


def relocate(config: TrackingConfig, relocation: Relocation, *, dry_run: bool = False) -> RelocationResult:
    """Rewrite all records below the old place.

    Raises:
        TrackingError: MLflow does not answer, or another process has locked its database.
    """
    uri = tracking_uri(config)
    with translate_mlflow_errors(config):
        if uri.startswith(("http://", "https://")):
            return RelocationResult(_rewrite_through_server(config, relocation.rewrite, dry_run=dry_run))
        return _rewrite_database(uri, relocation, dry_run=dry_run)


def _rewrite_database(uri: str, relocation: Relocation, *, dry_run: bool) -> RelocationResult:
    from sqlalchemy import create_engine

    path = sqlite_path(uri)
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            counts = {str(column): len(rows) for column, rows in _find_rows(connection, relocation.rewrite) if rows}
        if dry_run or not counts:
            return RelocationResult(counts)
        backup = _copy_database(path) if path else ""
        with engine.begin() as connection:
            for column, rows in _find_rows(connection, relocation.rewrite):
                _update_rows(connection, column, rows)
        with engine.connect() as connection:
            missing = tuple(_iter_missing(connection))
    finally:
        engine.dispose()
    return RelocationResult(counts, backup, missing)


Row = tuple[tuple[Any, ...], str]  # its primary key, and the new value


def _find_rows(connection: Any, rewrite: Rewrite) -> Iterator[tuple[Any, list[Row]]]:
    """Yield columns of tables with the rows that change."""
    from sqlalchemy import MetaData, Table, inspect, select

    metadata, present = MetaData(), set(inspect(connection).get_table_names())
    for name, column_name in [*COLUMNS.items(), *SECOND_COLUMNS.items()]:
        if name not in present:
            continue
        table = Table(name, metadata, autoload_with=connection, resolve_fks=False)
        if column_name not in table.c:  # a database of another release of MLflow
            continue
        column, keys = table.c[column_name], list(table.primary_key.columns)
        rows = connection.execute(select(*keys, column).where(column.is_not(None)))
        changes = ((row, rewrite(str(row[-1]))) for row in rows)
        yield column, [(tuple(row[:-1]), new) for row, new in changes if new != row[-1]]


def _update_rows(connection: Any, column: Any, rows: list[Row]) -> None:
    keys = list(column.table.primary_key.columns)
    for values, new in rows:
        change = column.table.update().values({column.name: new})
        connection.execute(change.where(*(key == value for key, value in zip(keys, values, strict=True))))


def _iter_missing(connection: Any) -> Iterator[str]:
    """Yield local artifacts of registered versions that do not exist."""
    from sqlalchemy import text

    from pipelines.registry.names import ARTIFACT_URI

    query = text("SELECT DISTINCT value FROM model_version_tags WHERE key = :key ORDER BY value")
    for (uri,) in connection.execute(query, {"key": ARTIFACT_URI}):
        if "://" not in uri and not Path(uri).exists():
            yield uri


def _copy_database(path: Path) -> str:
    """Copy a database that other processes may use, under a name of its own."""
    backup = path.with_name(f"{path.name}.before-relocation-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    partial = backup.with_name(f"{backup.name}.partial")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as target:
        source.backup(target)
    sync_file(partial)
    move_synced(partial, backup)
    return str(backup)


def _rewrite_through_server(config: TrackingConfig, rewrite: Rewrite, *, dry_run: bool) -> dict[str, int]:
    """Rewrite the tags of models, versions and runs; all that MLflow's server lets a client change."""
    client, _ = create_client(config)
    counts = {"registered_model_tags.value": 0, "model_version_tags.value": 0, "tags.value": 0}

    def change(kind: str, tags: dict[str, str], write: Callable[[str, str], Any]) -> None:
        for key, value in tags.items():
            if (new := rewrite(value)) != value:
                counts[kind] += 1
                if not dry_run:
                    write(key, new)

    for model in iter_pages(client.search_registered_models, 100):
        name = model.name
        change(
            "registered_model_tags.value",
            model.tags,
            partial(client.set_registered_model_tag, name),
        )
    for version in iter_pages(client.search_model_versions, PAGE):
        change(
            "model_version_tags.value",
            version.tags,
            partial(client.set_model_version_tag, version.name, version.version),
        )
    experiments = [found.experiment_id for found in iter_pages(client.search_experiments, PAGE)]
    for run in iter_pages(partial(client.search_runs, experiments), PAGE):
        run_id = run.info.run_id
        change("tags.value", run.data.tags, partial(client.set_tag, run_id))
    return {kind: count for kind, count in counts.items() if count}


def iter_pages(search: Callable[..., Any], size: int = PAGE) -> Iterator[Any]:
    """Yield what one of MLflow's searches finds, however many pages it is."""
    token = None
    while True:
        page = search(max_results=size, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
