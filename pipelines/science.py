"""The claim with error bars: one base model, several students, each judged on held-out music (`presto science`)."""

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

from pipelines import plots
from pipelines.demo import placed, run_stage_module, stage_configs, storage_root
from pipelines.progress import console
from pipelines.storage import open_folder
from presto_core.config.errors import UserError
from presto_core.config.schema import EvaluateStage, StageConfig
from presto_core.registry.store import read_file

ONCE, EACH_SEED = ("corpus", "ingest", "train-teacher"), ("distill-steps", "evaluate")
STAGES = ONCE + EACH_SEED
FOLDER = Path(".presto/science")
STUDENT_STEPS, BASE_FEW_NFE, BASE_MANY_STEPS = 4, 4, 40
TARGETS = {"few": 0.5, "many": 1.1}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    mean: float
    std: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


def run(preset: str, overrides: list[str], *, seeds: int, local: bool) -> dict[str, Any]:
    """Train the base once, then distil and evaluate with each seed; what is done already is used again.

    Returns:
        What science.json holds: every seed's report, the spread of each system, and the two ratios.

    Raises:
        UserError: the settings lack a system that the ratios compare, or a stage could not go on.
    """
    configs = stage_configs(preset, overrides)
    _require_comparable(configs["evaluate"])
    reports = []
    with base_trained(configs, local=local) as (root, made):
        for seed in range(seeds):
            console.print(f"[bold]seed {seed}")
            for stage in EACH_SEED:
                config = configs[stage].model_copy(update={"seed": seed})
                made[stage] = run_stage_module(stage, placed(config, root, made))
            report = made["evaluate"]
            reports.append(json.loads(read_file(open_folder(report.uri), "report.json", report.manifest)))
    result = summarised(reports)
    _write(result)
    return result


@contextmanager
def base_trained(configs: dict[str, StageConfig], *, local: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """A Ray session in which data set and base exist: the storage root, and the artifacts by stage."""
    from pipelines.cluster import ray_session, training_cpus

    root = storage_root(local=local)
    made: dict[str, Any] = {}
    cluster = configs["train-teacher"].cluster
    with ray_session(cluster, cpus=training_cpus(cluster)):
        for stage in ONCE:
            made[stage] = run_stage_module(stage, placed(configs[stage], root, made))
        yield root, made


def summarised(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread over seeds of each system and of the ratios that the targets are about."""
    names = [row["name"] for row in reports[0]["systems"]]
    by_name = {name: [next(r for r in report["systems"] if r["name"] == name) for report in reports] for name in names}
    return {
        "systems": [_system(rows) for rows in by_name.values()],
        "floor_fd": asdict(Spread.of([report["floor"]["fd"] for report in reports])),
        "ratios": {kind: asdict(Spread.of([ratio(report["systems"], kind) for report in reports])) for kind in TARGETS},
        "targets": TARGETS,
        "reports": reports,
    }


def ratio(rows: Rows, kind: str) -> float:
    """Student's Fréchet distance at 4 steps ÷ the least of the base's: at 4 evaluations, or with 40 steps and more."""
    fits: dict[str, Callable[[dict[str, Any]], bool]] = {
        "few": lambda row: row["nfe"] == BASE_FEW_NFE,
        "many": lambda row: row["steps"] >= BASE_MANY_STEPS,
    }
    student = next(row["fd"] for row in rows if row["role"] == "student" and row["steps"] == STUDENT_STEPS)
    return float(student / min(row["fd"] for row in rows if row["role"] == "base" and fits[kind](row)))


def _require_comparable(config: StageConfig) -> None:
    """Refuse early what `ratio` could not compare."""
    assert isinstance(config, EvaluateStage)
    settings = config.evaluate
    few = any(b.nfe == BASE_FEW_NFE for b in settings.base)
    many = any(b.steps >= BASE_MANY_STEPS for b in settings.base)
    if not (few and many and STUDENT_STEPS in settings.student_steps):
        raise UserError(
            f"science compares the student at {STUDENT_STEPS} steps with the base at {BASE_FEW_NFE} evaluations and "
            f"at {BASE_MANY_STEPS} steps or more; add what is missing to evaluate.student_steps or evaluate.base"
        )


def _system(rows: Rows) -> dict[str, Any]:
    spread = {key: asdict(Spread.of([row[key] for row in rows])) for key in ("fd", "mmd", "sampling_ms", "speed_up")}
    return {key: rows[0][key] for key in ("name", "role", "steps", "nfe", "sampler")} | spread


def to_markdown(result: dict[str, Any]) -> str:
    """The results table of the README."""
    seeds = len(result["reports"])
    lines = [
        f"| system | NFE | FD, {seeds} seeds | MMD x 1000 | ms a clip | speed-up |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["systems"]:
        fd, mmd = (Spread(**row[key]) for key in ("fd", "mmd"))
        name = f"**{row['name']}**" if row["role"] == "student" else row["name"]
        scaled = Spread(mmd.mean * 1e3, mmd.std * 1e3)
        latency, faster = row["sampling_ms"]["mean"], row["speed_up"]["mean"]
        lines.append(f"| {name} | {row['nfe']} | {fd} | {scaled} | {latency:.0f} | {faster:.1f}x |")
    lines.append(f"| real music (noise floor) | | {Spread(**result['floor_fd'])} | | | |")
    return "\n".join(lines) + "\n\n" + verdict(result) + "\n"


def verdict(result: dict[str, Any]) -> str:
    """The two ratios against their targets, in words."""
    said = []
    bases = {"few": "the base at 4 evaluations", "many": "the base's best sampler of 40 steps and more"}
    for kind, against in bases.items():
        value, target = Spread(**result["ratios"][kind]), result["targets"][kind]
        met = "met" if value.mean <= target else "missed"
        said.append(f"student at 4 steps ÷ {against}: {value} (target ≤ {target}: {met})")
    return "Fréchet distance, " + "; ".join(said) + "."


def _write(result: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "science.json").write_text(json.dumps(result, indent=2))
    (FOLDER / "science.md").write_text(to_markdown(result))
    (FOLDER / "quality_vs_steps.png").write_bytes(plots.quality_over_seeds(result))
    table = Table(title=f"{len(result['reports'])} seeds, held-out music")
    for name in ("system", "NFE", "FD", "ms a clip", "speed-up"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in result["systems"]:
        latency, faster = f"{row['sampling_ms']['mean']:.0f}", f"{row['speed_up']['mean']:.1f}x"
        table.add_row(row["name"], str(row["nfe"]), str(Spread(**row["fd"])), latency, faster)
    table.add_row("real music (noise floor)", "", str(Spread(**result["floor_fd"])), "", "", style="dim")
    Console(width=100).print(table)
    console.print(verdict(result))
    console.print(f"science: table, plot and all figures in {FOLDER}")
