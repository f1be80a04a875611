"""The plan of `presto study paper` on the terminal: its cells, which are finished, and how long the others take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from pipelines.console import console, make_console
from pipelines.workflows.paper_study_cells import list_teacher_systems
from pipelines.workflows.paper_study_durations import Durations
from pipelines.workflows.paper_study_plan import Study, list_runs, resolve_inputs
from presto_core.errors import UserError


def print_plan(study: Study, teachers: Sequence[str]) -> None:
    """Print the cells and the estimated time; without teacher or data set, what is finished is not known."""
    try:
        study = resolve_inputs(study, teachers)
    except UserError as error:
        _print_cells(study)
        console.print(f"which cells are finished is not known: {error}", style="yellow", markup=False)
    else:
        _print_runs(study)
    systems = {system.key for group in study.groups for system in group.systems}
    samplers = len(list_teacher_systems(study.settings))
    console.print(f"measures {len(systems)} systems per seed and teacher, and {samplers} samplers per teacher")


def _print_cells(study: Study) -> None:
    table = Table(title=f"{study.seeds} seed(s) of")
    for name in ("group", "cell", "stage", "settings"):
        table.add_column(name, overflow="fold")
    for group in study.groups:
        for cell in group.cells:
            table.add_row(group.name, cell.name, cell.stage, " ".join(cell.settings) or "of the preset")
    make_console().print(table)


def _print_runs(study: Study) -> None:
    durations, runs = Durations.load(), list_runs(study)
    table = Table(title=f"{len(runs)} runs")
    for name in ("cell", "seed", "teacher", "run", "state"):
        table.add_column(name, overflow="fold")
    for run in runs:
        state = "finished" if run.is_finished else "to train"
        table.add_row(run.cell.name, str(run.seed), run.teacher.id, run.run_id, state)
    make_console().print(table)
    pending = [run.cell.stage for run in runs if not run.is_finished]
    unknown = sorted({stage for stage in pending if durations.mean(stage) is None})
    seconds = sum(durations.mean(stage) or 0.0 for stage in pending)
    known = len(pending) - sum(stage in unknown for stage in pending)
    times = [f"about {seconds / 60:.0f} min for {known} of them"] if known else []
    times += [f"none of {' and '.join(unknown)} was timed yet"] if unknown else []
    console.print(
        f"{len(pending)} of {len(runs)} runs are to train{': ' if times else ''}{'; '.join(times)}", markup=False
    )
    if measure := durations.mean("measure"):
        console.print(f"a system was measured in {measure:.0f} s on average")
