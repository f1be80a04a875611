"""`presto study paper`: the paper's ablations on your teachers, as ordinary runs; finished ones are reused.

For each seed and teacher, and each group of cells: train the cells that are not finished, measure their systems, and
write the results so far. An interrupted study resumes where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from pipelines.cluster.session import ClusterError
from pipelines.cluster.shutdown import StoppedError
from pipelines.console import console
from pipelines.stages.table import STAGES
from pipelines.storage.filesystem import open_folder
from pipelines.workflows.paper_study_cells import Group, StudySystem, list_teacher_systems
from pipelines.workflows.paper_study_durations import Durations
from pipelines.workflows.paper_study_plan import FOLDER, CellRun, Study, list_runs, make_study, resolve_inputs
from presto_core.artifacts.manifest import Artifact, read_artifact
from presto_core.errors import UserError
from presto_core.extras import check_extra


def run(
    preset: str | None,
    overrides: list[str],
    *,
    only: Iterable[str] = (),
    seeds: int = 3,
    teachers: Iterable[str] = (),
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """Run the study, or list its cells.

    Args:
        only: names of groups; empty runs all of them.
        teachers: references of the teachers; empty takes `inputs.teacher`.
        dry_run: list the cells, which of them are finished, and the time of the others from that of finished ones.

    Returns:
        The content of results.json; None of a dry run.

    Raises:
        UserError: unknown group, teacher or data set; or a cell or its evaluation failed.
    """
    study = make_study(preset, overrides, only=only, seeds=seeds)
    references = list(dict.fromkeys(teachers)) or [study.evaluate.inputs.teacher]
    if dry_run:
        from pipelines.workflows.paper_study_dry_run import print_plan

        print_plan(study, references)
        return None
    check_extra("plots", "presto study paper")
    return execute(resolve_inputs(study, references))


def execute(study: Study) -> dict[str, Any]:
    """Run all cells and measure them, seed by seed; results are written after each group.

    Raises:
        UserError: no cell could be trained, or an evaluation failed.
    """
    from pipelines.workflows.paper_study_report import StudyResults

    results, durations = StudyResults(study), Durations.load()
    numbers = {run.run_id: number for number, run in enumerate(list_runs(study), 1)}
    for seed in range(study.seeds):
        for reference, teacher in study.teachers.items():
            for group in study.groups:
                cells = list(study.iter_runs(seed, teacher, group.cells))
                for run in cells:
                    run_cell(run, durations, f"{numbers[run.run_id]}/{len(numbers)}", results.failures)
                rows, floor = measure_group(study, group, teacher, [r for r in cells if r.is_finished], durations)
                results.add(reference, seed, rows, floor)
                results.write()
    if len(results.failures) == len(numbers):
        raise UserError(f"no cell of the study could be trained: {next(iter(results.failures.values()))}")
    return results.finish()


def run_cell(run: CellRun, durations: Durations, number: str, failures: dict[str, str]) -> None:
    """Train a cell unless it is finished, and print one line.

    A cell that fails, as by divergence, is added to `failures`, and the others run; one that lacks what all cells need
    ends the study.
    """
    label, started = f"paper study: cell {number}: {run}", time.monotonic()
    if run.is_finished or str(run) in failures:
        console.print(f"{label}: {'finished, reused' if run.is_finished else 'failed before'}", markup=False)
        return
    try:
        STAGES[run.cell.stage].run(run.config)
    except (ClusterError, StoppedError):
        raise
    except UserError as error:
        failures[str(run)] = str(error)
        console.print(f"{label}: failed: {error}", style="yellow", markup=False)
        return
    seconds = time.monotonic() - started
    durations.add(run.cell.stage, run.run_id, seconds)
    console.print(f"{label}: {seconds:.0f} s", markup=False)


def measure_group(
    study: Study, group: Group, teacher: Artifact, runs: list[CellRun], durations: Durations
) -> tuple[dict[StudySystem, dict[str, Any]], dict[str, Any]]:
    """Measure the systems of a group's finished cells, those of the teacher, and real music; print one line."""
    from pipelines.workflows.paper_study_measure import make_evaluation

    artifacts = {run.cell.name: read_artifact(run.folder) for run in runs}
    systems = {s: artifacts[s.cell] for s in group.systems if s.cell in artifacts}
    systems |= dict.fromkeys(list_teacher_systems(study.settings), teacher)
    evaluation = make_evaluation(study, teacher, open_folder(str(FOLDER.absolute())).child("rows"))
    started = time.monotonic()
    pending = [system for system, artifact in systems.items() if not evaluation.is_measured(system, artifact.id)]
    rows = evaluation.measure(systems)
    if pending:
        seconds = (time.monotonic() - started) / len(pending)
        for system in pending:
            durations.add("measure", f"{systems[system].id} {system.key}", seconds)
        console.print(f"paper study: {group.name}: {len(pending)} systems measured, {seconds:.0f} s each")
    return rows, evaluation.measure_floor()
