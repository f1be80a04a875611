"""`presto study seeds`: the claims with error bars, from one teacher and several seeds of each distilled model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from pipelines.console import console, make_console
from pipelines.evaluate import plots
from pipelines.evaluate.report import read_report
from pipelines.workflows.demo import list_stages, load_flow_configs, run_node, start_storage
from pipelines.workflows.flow_overrides import MADE_INPUTS, OWN_SERVER, check_not_fixed, check_read
from pipelines.workflows.study_targets import (
    GENERATOR_STEPS,
    TARGETS,
    TEACHER_FEW_NFE,
    TEACHER_MANY_STEPS,
    Rows,
)
from presto_core.artifacts.durable import make_folders
from presto_core.config.schema import EvaluateStage
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import check_extra
from presto_core.metrics.table import METRICS, Metric

SHARED_STEPS, PER_SEED_STEPS = ("corpus", "ingest", "teacher"), ("ASE", "L", "S", "LS", "evaluate")
STEPS = SHARED_STEPS + PER_SEED_STEPS
FOLDER = Path(".presto/science")
QUALITY_KEYS = [
    name
    for name, metric in METRICS.items()
    if metric.group == "quality" and (metric.column or metric.validated or metric.needs == "teacher")
]
COST_KEYS = [name for name, metric in METRICS.items() if metric.group == "cost" and metric.column and metric.better]
SPREAD_KEYS = QUALITY_KEYS + COST_KEYS


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None with a single one."""

    mean: float
    std: float | None

    @staticmethod
    def from_values(values: list[float]) -> Spread:
        spread = stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None
        return Spread(mean(values), spread)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


def run(preset: str, overrides: list[str], *, seeds: int, local: bool) -> dict[str, Any]:
    """Train the teacher once, then distill and evaluate with each seed; finished runs are reused.

    Returns:
        The content of science.json: every seed's report, the spread of each system, and the ratios of `TARGETS`.

    Raises:
        UserError: the settings lack a system that the ratios compare, or a stage failed.
    """
    configs = load_configs(preset, overrides)
    _check_comparable(configs["evaluate"])
    check_extra("plots", "presto study seeds")
    reports = []
    with run_shared_steps(configs, local=local) as (root, artifacts):
        for seed in range(seeds):
            console.print(f"seed {seed}", style="bold")
            for name in PER_SEED_STEPS:
                artifacts[name] = run_node(name, configs[name].model_copy(update={"seed": seed}), root, artifacts)
            report = artifacts["evaluate"]
            reports.append(read_report(report))
    result = summarize(reports)
    _write(result)
    return result


def load_configs(preset: str, overrides: list[str]) -> dict[str, StageConfig]:
    """Return the settings of each node.

    Raises:
        ConfigError: a setting is invalid, or has no effect on this study.
    """
    check_read("presto study seeds", overrides, list_stages(STEPS))
    check_not_fixed("presto study seeds", overrides, MADE_INPUTS | {"teacher"}, storage=OWN_SERVER)
    return load_flow_configs(preset, overrides)


@contextmanager
def run_shared_steps(configs: dict[str, StageConfig], *, local: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Open a Ray session and make data set and teacher; yields the storage root and the artifacts by node."""
    from pipelines.cluster.session import ray_session, training_cpus

    root = start_storage(local=local)
    artifacts: dict[str, Any] = {}
    cluster = configs["teacher"].cluster
    with ray_session(cluster, cpus=training_cpus(cluster)):
        for name in SHARED_STEPS:
            artifacts[name] = run_node(name, configs[name], root, artifacts)
        yield root, artifacts


def summarize(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the spread over seeds of each system and of the ratios in `TARGETS`."""
    names = [row["name"] for row in reports[0]["systems"] if row["role"] != "folder"]
    by_name = {name: [next(r for r in report["systems"] if r["name"] == name) for report in reports] for name in names}
    return {
        "systems": [_summarize_system(rows) for rows in by_name.values()],
        "floor": {
            # real music is the same with every seed
            key: asdict(Spread(reports[0]["floor"][key], None))
            for key in QUALITY_KEYS
            if key in reports[0]["floor"]
        },
        "ratios": {
            name: asdict(Spread.from_values([target.ratio(report["systems"]) for report in reports]))
            for name, target in TARGETS.items()
        },
        "split": reports[0].get("split", "held_out"),
        "reports": reports,
    }


def _check_comparable(config: StageConfig) -> None:
    """Check before any work that the evaluation has what `TARGETS` compare."""
    assert isinstance(config, EvaluateStage)
    settings = config.evaluate
    few = any(b.nfe == TEACHER_FEW_NFE for b in settings.base)
    many = any(b.steps >= TEACHER_MANY_STEPS for b in settings.base)
    if not (few and many and GENERATOR_STEPS in settings.student_steps):
        raise UserError(
            f"presto study seeds compares generators at {GENERATOR_STEPS} steps with the teacher at {TEACHER_FEW_NFE} "
            f"evaluations and at {TEACHER_MANY_STEPS} steps or more; set evaluate.student_steps and evaluate.base"
        )
    if settings.layers[:1] != settings.base[:1]:
        raise UserError(
            "presto study seeds compares layer-distilled models with the teacher under one sampler; make the first of "
            "evaluate.layers the first of evaluate.base"
        )


def _summarize_system(rows: Rows) -> dict[str, Any]:
    shared_keys = ("name", "label", "role", "steps", "nfe", "blocks_run", "sampler")
    return {key: rows[0][key] for key in shared_keys} | {
        key: asdict(Spread.from_values([r[key] for r in rows])) for key in SPREAD_KEYS if key in rows[0]
    }


def _list_columns(result: dict[str, Any]) -> list[Metric]:
    """The metrics of the table that every system has: the columns of evaluation, and the distance to the teacher."""
    shown = [METRICS[key] for key in SPREAD_KEYS if METRICS[key].column or METRICS[key].needs == "teacher"]
    return [metric for metric in shown if all(metric.name in row for row in result["systems"])]


def _format_spread(metric: Metric, row: dict[str, Any]) -> str:
    """Mean and standard deviation as the metric is shown; empty if the row lacks it."""
    if metric.name not in row:
        return ""
    spread = Spread(**row[metric.name])
    std = "" if spread.std is None else f" ± {spread.std * metric.scale:{metric.format}}"
    return metric.format_value(spread.mean) + std


def to_markdown(result: dict[str, Any]) -> str:
    """Format the results table for the docs."""
    seeds, columns = len(result["reports"]), _list_columns(result)
    lines = [
        f"| system, mean of {seeds} | NFE | blocks/clip | {' | '.join(metric.title for metric in columns)} |",
        "|---|---:|---:|" + "---:|" * len(columns),
    ]
    for row in result["systems"]:
        name = row["name"] if row["role"] == "teacher" else f"**{row['name']}**"
        cells = " | ".join(_format_spread(metric, row) for metric in columns)
        lines.append(f"| {name} | {row['nfe']} | {row['blocks_run']} | {cells} |")
    lines.append(f"| real music (floor) | | | {' | '.join(_format_spread(m, result['floor']) for m in columns)} |")
    return "\n".join(lines) + "\n\n" + format_verdict(result) + "\n"


def format_verdict(result: dict[str, Any]) -> str:
    """Format each ratio against its target, one line per ratio."""
    lines = []
    for name, target in TARGETS.items():
        value, sign = Spread(**result["ratios"][name]), "≥" if target.at_least else "≤"
        outcome = "met" if target.is_met(value.mean) else "missed"
        lines.append(f"- {target.description}: {value} (target {sign} {target.threshold:g}: {outcome})")
    return "\n".join(lines)


def _write(result: dict[str, Any]) -> None:
    make_folders(FOLDER)
    (FOLDER / "science.json").write_text(json.dumps(result, indent=2))
    (FOLDER / "science.md").write_text(to_markdown(result))
    (FOLDER / "quality_vs_blocks.png").write_bytes(plots.plot_quality_over_seeds(result))
    columns = _list_columns(result)
    table = Table(title=f"{len(result['reports'])} seeds, quality on the {result['split']} split")
    for name in ("system", "NFE", "blocks", *(metric.title for metric in columns)):
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in result["systems"]:
        cells = (_format_spread(metric, row) for metric in columns)
        table.add_row(row["name"], str(row["nfe"]), str(row["blocks_run"]), *cells)
    table.add_row("real music", "", "", *(_format_spread(m, result["floor"]) for m in columns), style="dim")
    make_console().print(table)
    console.print(format_verdict(result))
    console.print(f"study: table, plot and all numbers are in {FOLDER}")
