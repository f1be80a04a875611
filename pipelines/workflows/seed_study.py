"""`presto study`: the claims with error bars, from one teacher and several seeds of each distilled model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.console import console
from pipelines.evaluate import plots
from pipelines.evaluate.report import read_report
from pipelines.workflows.demo import load_flow_configs, run_node, start_storage
from presto_core.config.schema import EvaluateStage
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import check_extra

SHARED_STEPS, PER_SEED_STEPS = ("corpus", "ingest", "teacher"), ("ASE", "L", "S", "LS", "evaluate")
STEPS = SHARED_STEPS + PER_SEED_STEPS
FOLDER = Path(".presto/science")
GENERATOR_STEPS, TEACHER_FEW_NFE, TEACHER_MANY_STEPS = 4, 4, 40
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    mean: float
    std: float

    @staticmethod
    def from_values(values: list[float]) -> Spread:
        return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


def run(preset: str, overrides: list[str], *, seeds: int, local: bool) -> dict[str, Any]:
    """Train the teacher once, then distill and evaluate with each seed; finished runs are reused.

    Returns:
        The content of science.json: every seed's report, the spread of each system, and the ratios of `TARGETS`.

    Raises:
        UserError: the settings lack a system that the ratios compare, or a stage failed.
    """
    configs = load_flow_configs(preset, overrides)
    _check_comparable(configs["evaluate"])
    check_extra("plots", "presto study")
    reports = []
    with run_shared_steps(configs, local=local) as (root, artifacts):
        for seed in range(seeds):
            console.print(f"[bold]seed {seed}")
            for name in PER_SEED_STEPS:
                artifacts[name] = run_node(name, configs[name].model_copy(update={"seed": seed}), root, artifacts)
            report = artifacts["evaluate"]
            reports.append(read_report(report))
    result = summarize(reports)
    _write(result)
    return result


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
    names = [row["name"] for row in reports[0]["systems"]]
    by_name = {name: [next(r for r in report["systems"] if r["name"] == name) for report in reports] for name in names}
    return {
        "systems": [_summarize_system(rows) for rows in by_name.values()],
        "floor_fd": asdict(Spread.from_values([report["floor"]["fd"] for report in reports])),
        "ratios": {
            name: asdict(Spread.from_values([target.ratio(report["systems"]) for report in reports]))
            for name, target in TARGETS.items()
        },
        "reports": reports,
    }


@dataclass(frozen=True)
class Target:
    """A ratio with a target.

    Attributes:
        description: the ratio in words.
        ratio: computes it from the systems of one report.
        threshold: its maximum, or its minimum if `at_least`.
    """

    description: str
    ratio: Callable[[Rows], float]
    threshold: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.threshold if self.at_least else value <= self.threshold


def _best_teacher_fd(rows: Rows, fits: Callable[[dict[str, Any]], bool]) -> float:
    return min(row["fd"] for row in rows if row["role"] == "teacher" and fits(row))


def _find_generator(rows: Rows, label: str) -> dict[str, Any]:
    return next(row for row in rows if row["label"] == label and row["steps"] == GENERATOR_STEPS)


def _find_layer_row(rows: Rows, method: str) -> dict[str, Any]:
    """Return the row of a layer-distilled model with its first sampler, which is the teacher's first sampler."""
    return next(row for row in rows if row["role"] == "layers" and row["label"].split()[0] == method)


TARGETS = {
    "few": Target(
        "FD of S at 4 steps ÷ the teacher at 4 evaluations, its best sampler",
        lambda rows: (
            _find_generator(rows, "S")["fd"] / _best_teacher_fd(rows, lambda row: row["nfe"] == TEACHER_FEW_NFE)
        ),
        0.5,
    ),
    "many": Target(
        "FD of S at 4 steps ÷ the teacher with 40 steps and more, its best sampler",
        lambda rows: (
            _find_generator(rows, "S")["fd"] / _best_teacher_fd(rows, lambda row: row["steps"] >= TEACHER_MANY_STEPS)
        ),
        1.1,
    ),
    "layers": Target(
        "distance to the teacher's own samples, L ÷ ASE",
        lambda rows: _find_layer_row(rows, "L")["fd_to_teacher"] / _find_layer_row(rows, "ASE")["fd_to_teacher"],
        1.0,
    ),
    "both": Target(
        "FD at 4 steps, LS ÷ S", lambda rows: _find_generator(rows, "LS")["fd"] / _find_generator(rows, "S")["fd"], 1.25
    ),
    "faster": Target(
        "sampling time of a clip at 4 steps, S ÷ LS",
        lambda rows: _find_generator(rows, "S")["latency_ms"] / _find_generator(rows, "LS")["latency_ms"],
        1.2,
        at_least=True,
    ),
}


def _check_comparable(config: StageConfig) -> None:
    """Check before any work that the evaluation has what `TARGETS` compare."""
    assert isinstance(config, EvaluateStage)
    settings = config.evaluate
    few = any(b.nfe == TEACHER_FEW_NFE for b in settings.base)
    many = any(b.steps >= TEACHER_MANY_STEPS for b in settings.base)
    if not (few and many and GENERATOR_STEPS in settings.student_steps):
        raise UserError(
            f"presto study compares generators at {GENERATOR_STEPS} steps with the teacher at {TEACHER_FEW_NFE} "
            f"evaluations and at {TEACHER_MANY_STEPS} steps or more; set evaluate.student_steps and evaluate.base"
        )
    if settings.layers[:1] != settings.base[:1]:
        raise UserError(
            "presto study compares layer-distilled models with the teacher under one sampler; make the first of "
            "evaluate.layers the first of evaluate.base"
        )


def _summarize_system(rows: Rows) -> dict[str, Any]:
    shared_keys = ("name", "label", "role", "steps", "nfe", "blocks_run", "sampler")
    spread_keys = ("fd", "fd_to_teacher", "mmd", "latency_ms", "speed_up")
    return {key: rows[0][key] for key in shared_keys} | {
        key: asdict(Spread.from_values([r[key] for r in rows])) for key in spread_keys
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Format the results table for the docs."""
    seeds = len(result["reports"])
    lines = [
        f"| system | NFE | blocks/clip | FD, mean of {seeds} | FD to teacher | MMD x 1000 | ms/clip | speed-up |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["systems"]:
        fd, fd_to_teacher, mmd = (Spread(**row[key]) for key in ("fd", "fd_to_teacher", "mmd"))
        name = row["name"] if row["role"] == "teacher" else f"**{row['name']}**"
        scaled = Spread(mmd.mean * 1e3, mmd.std * 1e3)
        cost = f"{row['latency_ms']['mean']:.0f} | {row['speed_up']['mean']:.1f}x"
        lines.append(f"| {name} | {row['nfe']} | {row['blocks_run']} | {fd} | {fd_to_teacher} | {scaled} | {cost} |")
    lines.append(f"| real music (noise floor) | | | {Spread(**result['floor_fd'])} | | | | |")
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
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "science.json").write_text(json.dumps(result, indent=2))
    (FOLDER / "science.md").write_text(to_markdown(result))
    (FOLDER / "quality_vs_blocks.png").write_bytes(plots.plot_quality_over_seeds(result))
    table = Table(title=f"{len(result['reports'])} seeds, held-out music")
    for name in ("system", "NFE", "blocks/clip", "FD", "FD to teacher", "ms/clip", "speed-up"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in result["systems"]:
        latency, speed_up = f"{row['latency_ms']['mean']:.0f}", f"{row['speed_up']['mean']:.1f}x"
        distances = (str(Spread(**row[key])) for key in ("fd", "fd_to_teacher"))
        table.add_row(row["name"], str(row["nfe"]), str(row["blocks_run"]), *distances, latency, speed_up)
    table.add_row("real music (noise floor)", "", "", str(Spread(**result["floor_fd"])), "", "", "", style="dim")
    Console(width=100).print(table)
    console.print(format_verdict(result))
    console.print(f"study: table, plot and all numbers are in {FOLDER}")
