"""The search behind the student settings of `make science`: each trial distilled and judged on one base."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.demo import run_step, stage_configs
from pipelines.progress import console
from pipelines.science import FOLDER, STUDENT_STEPS, base_trained
from pipelines.storage import open_folder
from presto_core.config.errors import UserError
from presto_core.config.schema import EvaluateStage, StageConfig
from presto_core.registry.store import read_file
from tune_spaces.trials import STUDENT_TRIALS, overrides

TRIED = ("S", "evaluate")
# the seeds that `presto science` reports stay unseen
SEARCH_SEED = 1000
# enough to rank trials, a fraction of what judging a reported seed costs
SHORT = (
    "evaluate.num_samples=120",
    "evaluate.student_steps=[1,2,4]",
    "evaluate.base=[{sampler: dpmpp_2m, steps: 4}]",
    "evaluate.save_audio=0",
    f"seed={SEARCH_SEED}",
)


def run(
    preset: str, words: list[str], *, local: bool, trials: dict[str, dict[str, Any]] = STUDENT_TRIALS
) -> list[dict[str, Any]]:
    """Distil and judge every trial; one that is done already costs nothing.

    Returns:
        What search.json holds: a trial's name, its settings and its Fréchet distance and MMD by steps, best first.

    Raises:
        UserError: the students are not judged at the steps that rank them, or a stage could not go on.
    """
    planned = {name: trial_configs(preset, words, trial) for name, trial in trials.items()}
    found = []
    with base_trained(stage_configs(preset, words), local=local) as (root, made):
        for name, trial in trials.items():
            console.print(f"[bold]trial: {name}")
            configs = planned[name]
            for step in TRIED:
                made[step] = run_step(step, configs[step], root, made)
            report = made["evaluate"]
            found.append(judged(name, trial, read_file(open_folder(report.uri), "report.json", report.manifest)))
            _write(found)
    _show(ranked(found))
    return ranked(found)


def plan(preset: str, words: list[str]) -> str:
    """What the search would try, one line a trial, after the checks it would make."""
    for trial in STUDENT_TRIALS.values():
        trial_configs(preset, words, trial)
    return "\n".join(f"# trial {name}: {' '.join(overrides(trial))}" for name, trial in STUDENT_TRIALS.items())


def trial_configs(preset: str, words: list[str], trial: dict[str, Any]) -> dict[str, StageConfig]:
    """What one trial distils and judges with.

    Raises:
        UserError: the students would not be judged at the steps that rank them.
    """
    configs = stage_configs(preset, [*SHORT, *words, *overrides(trial)])
    judge = configs["evaluate"]
    assert isinstance(judge, EvaluateStage)
    if STUDENT_STEPS not in judge.evaluate.student_steps:
        raise UserError(
            f"the search ranks students by their distance at {STUDENT_STEPS} steps; "
            f"add {STUDENT_STEPS} to evaluate.student_steps"
        )
    return {step: configs[step] for step in TRIED}


def judged(name: str, trial: dict[str, Any], report: bytes) -> dict[str, Any]:
    """One row of the search: the student's distances by number of steps."""
    rows = [row for row in json.loads(report)["systems"] if row["role"] == "student"]
    return {
        "trial": name,
        "settings": trial,
        "fd": {str(row["steps"]): row["fd"] for row in rows},
        "mmd": {str(row["steps"]): row["mmd"] for row in rows},
    }


def ranked(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best Fréchet distance at the reported number of steps first."""
    return sorted(found, key=lambda row: row["fd"][str(STUDENT_STEPS)])


def to_markdown(found: list[dict[str, Any]]) -> str:
    """The search's table: one line a trial, best first."""
    steps = list(found[0]["fd"])
    lines = [f"| trial | {' | '.join(f'FD at {n}' for n in steps)} |", "|---|" + "---:|" * len(steps)]
    for row in ranked(found):
        cells = " | ".join(f"{row['fd'][n]:.1f}" for n in steps)
        lines.append(f"| {row['trial']} | {cells} |")
    return "\n".join(lines) + "\n"


def _write(found: list[dict[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "search.json").write_text(json.dumps(ranked(found), indent=2))
    (FOLDER / "search.md").write_text(to_markdown(found))


def _show(found: list[dict[str, Any]]) -> None:
    steps = list(found[0]["fd"])
    table = Table(title=f"student settings after {len(found)} trials, Fréchet distance by steps")
    table.add_column("trial")
    for n in steps:
        table.add_column(n, justify="right")
    for row in found:
        table.add_row(row["trial"], *(f"{row['fd'][n]:.1f}" for n in steps))
    Console(width=100).print(table)
    console.print(f"search: table and settings in {FOLDER}/search.json")
