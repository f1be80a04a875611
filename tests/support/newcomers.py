"""Number of files that a newcomer touches or reads for eight tasks: `python -m tests.support.newcomers` prints a table.

The files are found in the sources by a name: a class, a string or the next function of a call chain.
`tests/core/test_newcomers.py` checks the limits.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("presto_core", "pipelines", "tune_spaces", "infra")

# from a shard in S3 to the optimizer: each file names what the next one defines
ROW_TO_OPTIMIZER = (
    ("pipelines/stages/train_teacher.py", "run_training"),
    ("pipelines/stages/training.py", "launch_training"),
    ("pipelines/train/ray_train.py", "train_worker"),
    ("pipelines/train/worker.py", "stream_batches"),
    ("pipelines/data/dataset.py", "EpochReader"),
    ("pipelines/data/batch_reader.py", "EpochPlan"),
    ("pipelines/data/epoch_plan.py", ""),
    ("pipelines/data/shard_reader.py", "read_table"),
    ("pipelines/data/shards.py", "read_verified"),
    ("presto_core/artifacts/store.py", ""),
    ("presto_core/training/loop.py", "Algorithm"),
    ("presto_core/training/state.py", ""),
    ("presto_core/training/teacher.py", "optim"),
    ("presto_core/training/optim.py", ""),
)


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        files: files that a newcomer touches or reads.
        aim: maximum number of files.
        why: how they are counted.
    """

    name: str
    files: tuple[str, ...]
    aim: int
    why: str


@cache
def parse_sources() -> dict[str, ast.Module]:
    """Return path from the root -> syntax tree of each source file."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def files_naming(name: str) -> tuple[str, ...]:
    """Return the files that define, import or use an identifier."""
    return tuple(file for file, names in find_identifiers().items() if name in names)


def files_with_string(text: str) -> tuple[str, ...]:
    """Return the files with a string constant that equals `text`."""
    constants = {
        file: {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        for file, tree in parse_sources().items()
    }
    return tuple(file for file, values in constants.items() if text in values)


def find_broken_links() -> list[str]:
    """Return links of ROW_TO_OPTIMIZER whose file is missing or does not contain the next name."""
    known = find_identifiers()
    return [
        f"{file} -> {name}"
        for file, name in ROW_TO_OPTIMIZER
        if file not in known or (name and name not in known[file])
    ]


@cache
def find_identifiers() -> dict[str, set[str]]:
    """Return path from the root -> identifiers that a source file defines, imports or uses."""
    return {file: set(_iter_identifiers(tree)) for file, tree in parse_sources().items()}


def _iter_identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            yield node.name


def list_tasks() -> list[Task]:
    """Return the tasks with the files that each takes today."""
    new_stage = tuple(f for f in files_naming("EvaluateStage") if f.startswith(("pipelines/stages", "infra")))
    return [
        Task("change the DMD gradient", files_naming("dmd_gradient"), 2, "its file, and the algorithm that calls it"),
        Task("add a noise distribution", files_naming("LogUniformNoise"), 1, "files that name one"),
        Task("add a network class", files_naming("DiT"), 2, "files that name one: its own, and its row"),
        Task(
            "follow a row from S3 to the optimizer",
            tuple(file for file, _ in ROW_TO_OPTIMIZER),
            15,
            "the chain of calls",
        ),
        Task(
            "why was my run not resumed?",
            files_naming("explain_new_run"),
            2,
            "the command prints it; where that is done",
        ),
        Task("add a metric", files_with_string("clicks"), 2, "files with the name of one: its own, and its row"),
        Task("add a stage", new_stage, 2, "files that name one's settings: its module, and its row"),
        Task(
            "add a CLI command",
            (*(f for f in files_naming("list_runs") if f.startswith("infra")), "infra/cli/main.py"),
            2,
            "its file in infra/cli, and one line in main.py",
        ),
    ]


def main() -> None:
    """Print the table."""
    print(f"{'task':40} files  aim")
    for task in list_tasks():
        print(f"{task.name:40} {len(task.files):5}  ≤ {task.aim}  {task.why}")
        for file in task.files:
            print(f"{'':4}{file}")


if __name__ == "__main__":
    main()
