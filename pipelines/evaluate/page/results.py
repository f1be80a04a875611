"""The results table of the page: one per embedder, with intervals, explanations and marks of metrics that failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.evaluate.page.fields import read_list, read_mapping, read_number, read_rows, read_text
from presto_core.metrics.table import METRICS, Metric

GROUPS = ("quality", "prompt", "audio", "cost")
SHOWN_FIRST = ("quality", "prompt", "cost")
"""Groups whose columns are shown before a reader selects others."""
UNFIT = "it does not rank real music, its round trip through the codec, noised and shuffled music in this order"
CHANCE = "_shuffled"
"""Ends the name of what a metric of prompts gives against prompts of other tracks: shown beside its value."""


@dataclass(frozen=True)
class Column:
    """A metric that at least one row has.

    Attributes:
        is_detail: shown only with "all metrics"; a group without a column on the terminal shows all of its metrics.
        warning: why its values are not to be trusted; empty if it passed its fitness test.
        undecided: pairs of conditions whose order the fitness test could not decide.
        has_chance: whether a row has its value against prompts of other tracks.
    """

    metric: Metric
    is_detail: bool
    warning: str = ""
    undecided: str = ""
    has_chance: bool = False

    @property
    def explanation(self) -> str:
        better = f"; {self.metric.better} is better" if self.metric.better else ""
        chance = "; chance: against prompts of other tracks" if self.has_chance else ""
        warning = f". Failed the fitness test: {self.warning}" if self.warning else ""
        undecided = f". Undecided: {self.undecided}" if self.undecided else ""
        return f"{self.metric.description}{better}{chance}{warning}{undecided}"


@dataclass(frozen=True)
class Cell:
    """A value as text, as a number to sort by, its interval, and its chance level; `value` is None if there is none."""

    text: str
    value: float | None
    interval: str = ""
    chance: str = ""


@dataclass(frozen=True)
class Row:
    """A system; it is chosen if it is the best of its model by validation, not by what the table shows."""

    name: str
    role: str
    is_chosen: bool
    cells: list[Cell]


@dataclass(frozen=True)
class ResultTable:
    """All rows on one embedder; `controls` are real music, which no model made."""

    embedder: str
    columns: list[Column]
    systems: list[Row]
    controls: list[Row]

    @property
    def groups(self) -> list[tuple[str, bool]]:
        """Groups that have columns, each with whether it is shown at first."""
        names = dict.fromkeys(column.metric.group for column in self.columns)
        return [(name, name in SHOWN_FIRST) for name in names]


def make_tables(result: dict[str, Any]) -> list[ResultTable]:
    """Return one table per embedder (and channel, for stereo), the headline's first.

    Raises:
        ReportError: a part of the report has the wrong type.
    """
    systems, controls = read_rows(result, "systems"), read_rows(result, "controls") or _read_floor(result)
    names = list(dict.fromkeys(name for row in systems for name in read_mapping(row, "by_embedder")))
    names = names or [read_text(read_mapping(result, "embedding"), "name")]
    return [
        _make_table(
            name,
            [_select_embedder(row, name) for row in systems],
            [_select_embedder(row, name) for row in controls],
            read_verdicts(result, name),
        )
        for name in names
    ]


def read_verdicts(result: dict[str, Any], embedder: str) -> dict[str, dict[str, Any]]:
    """Return metric -> verdict of the fitness test on this embedder; of another channel, what holds for the mid."""
    fitness = read_mapping(result, "fitness")
    verdicts = read_mapping(fitness, embedder) or read_mapping(fitness, embedder.partition(",")[0])
    return {name: read_mapping(verdicts, name) for name in verdicts}


def _read_floor(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The only control of reports before format 2."""
    floor = read_mapping(result, "floor")
    return [{"name": "real music, train", "role": "real", **floor}] if floor else []


def _select_embedder(row: dict[str, Any], embedder: str) -> dict[str, Any]:
    """The row with the metrics of one embedder in place of those of the first."""
    by_embedder = read_mapping(row, "by_embedder")
    if embedder not in by_embedder:
        return row
    own = read_mapping(by_embedder, embedder)
    foreign = {name for name in by_embedder for name in read_mapping(by_embedder, name)}
    intervals = {k: v for k, v in read_mapping(row, "intervals").items() if k not in foreign}
    is_first = embedder == next(iter(by_embedder))
    own_intervals = read_mapping(own, "intervals") or (read_mapping(row, "intervals") if is_first else {})
    kept = {key: value for key, value in row.items() if key not in foreign}
    return {**kept, **own, "intervals": {**intervals, **own_intervals}}


def _make_table(
    embedder: str,
    systems: list[dict[str, Any]],
    controls: list[dict[str, Any]],
    verdicts: dict[str, dict[str, Any]],
) -> ResultTable:
    reported = {key for row in (*systems, *controls) for key in row if read_number(row, key) is not None}
    beside = {name + CHANCE for name in reported & set(METRICS)}
    metrics = [metric for metric in METRICS.values() if metric.name in reported - beside]
    metrics.sort(key=lambda metric: GROUPS.index(metric.group))  # stable: the order of the table of metrics within
    with_main = {metric.group for metric in metrics if metric.column}
    columns = [
        Column(
            metric,
            is_detail=not metric.column and metric.group in with_main,
            has_chance=metric.name + CHANCE in reported,
            **_describe_verdict(verdicts.get(metric.name, {})),
        )
        for metric in metrics
    ]
    rows, references = ([_make_row(row, columns) for row in some] for some in (systems, controls))
    return ResultTable(embedder, columns, rows, references)


def _describe_verdict(verdict: dict[str, Any]) -> dict[str, str]:
    """What a column tells of the fitness test of its metric."""
    warning = (read_text(verdict, "reason") or UNFIT) if verdict.get("fit") is False else ""
    return {"warning": warning, "undecided": "; ".join(map(str, read_list(verdict, "undecided")))}


def _make_row(row: dict[str, Any], columns: list[Column]) -> Row:
    is_chosen = row.get("chosen") is True and bool(read_mapping(row, "validation"))
    cells = [_make_cell(row, column.metric) for column in columns]
    return Row(read_text(row, "name"), read_text(row, "role"), is_chosen, cells)


def _make_cell(row: dict[str, Any], metric: Metric) -> Cell:
    value = read_number(row, metric.name)
    if value is None:
        return Cell("", None) if row.get(metric.name) is None else Cell("not finite", None)
    limits = read_list(read_mapping(row, "intervals"), metric.name)
    low_high = [read_number({"limit": limit}, "limit") for limit in limits]
    interval = ""
    if len(low_high) == 2 and None not in low_high:
        interval = " to ".join(f"{limit * metric.scale:{metric.format}}" for limit in low_high if limit is not None)
    chance = read_number(row, metric.name + CHANCE)
    return Cell(metric.format_value(value), value, interval, "" if chance is None else metric.format_value(chance))
