"""What `presto study paper` is going to run: the cells of each seed and teacher with their settings and run ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.presets.resolve import PRESETS
from pipelines.registry.presence import check_references
from pipelines.registry.resolve import resolve
from pipelines.stages.table import STAGES
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.tracking.client import open_tracker
from pipelines.workflows.paper_study_cells import Cell, Group, StudySettings, make_groups
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact, artifact_folder
from presto_core.config.loader import load_config
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import EvaluateStage, TeacherStage, foreign_sections
from presto_core.config.sections import InputsConfig
from presto_core.config.stage import StageConfig, TrainingStage

FOLDER = Path(".presto/studies/paper")
REGISTRY_NAME = "presto-paper-study"
"""Cells are registered under a name of their own, so that no alias of the default one moves."""
PRESET = "paper_study"


@dataclass(frozen=True)
class CellRun:
    """A cell with its seed and teacher.

    Attributes:
        config: its settings with inputs; `run_id` is that of the run they mean.
    """

    cell: Cell
    seed: int
    teacher: Artifact
    config: TrainingStage
    run_id: str

    @property
    def folder(self) -> Folder:
        """Where its artifact is, or will be."""
        return artifact_folder(open_folder(absolute_uri(self.config.storage.root), setting="storage.root"), self.run_id)

    @property
    def is_finished(self) -> bool:
        return self.folder.exists()

    def __str__(self) -> str:
        return f"{self.cell.name}, seed {self.seed}, teacher {self.teacher.id}"


@dataclass(frozen=True)
class Study:
    """What a preset, overrides and options mean.

    Attributes:
        overrides: of the preset, `key=value`.
        teachers: reference -> artifact.
    """

    preset: str
    overrides: tuple[str, ...]
    groups: list[Group]
    settings: StudySettings
    evaluate: EvaluateStage
    seeds: int
    teachers: dict[str, Artifact] = field(default_factory=dict)
    dataset: Artifact | None = None

    def load_cell(self, cell: Cell) -> TrainingStage:
        config = load_stage(STAGES[cell.stage].config, self.preset, [*self.overrides, *cell.settings])
        assert isinstance(config, TrainingStage)
        return config

    def list_cells(self) -> dict[str, Cell]:
        return {cell.name: cell for group in self.groups for cell in group.cells}

    def iter_runs(self, seed: int, teacher: Artifact, cells: Iterable[Cell]) -> Iterator[CellRun]:
        """The runs of some cells; a layer-distilled model comes before the cell that starts from it."""
        assert self.dataset
        for cell in cells:
            inputs = {"dataset": self.dataset, "teacher": teacher}
            references = {role: artifact.uri for role, artifact in inputs.items()}
            parents = {role: artifact.id for role, artifact in inputs.items()}
            if cell.layers:
                (start,) = self.iter_runs(seed, teacher, [self.list_cells()[cell.layers]])
                references["layers"] = parents["layers"] = start.run_id
            update = {"inputs": InputsConfig(**references), "seed": self.evaluate.seed + seed, "name": REGISTRY_NAME}
            config = self.load_cell(cell).model_copy(update=update)
            yield CellRun(cell, seed, teacher, config, config.run_id(parents))


def make_study(preset: str | None, overrides: list[str], *, only: Iterable[str] = (), seeds: int = 3) -> Study:
    """Read the settings; the teachers and the data set are not looked up yet.

    Raises:
        UserError: unknown preset, key or group, or a value out of range.
    """
    preset = preset or PRESET
    evaluate = load_stage(EvaluateStage, preset, overrides)
    teacher = load_stage(TeacherStage, preset, overrides)
    assert isinstance(evaluate, EvaluateStage)
    assert isinstance(teacher, TeacherStage)
    settings = StudySettings(
        teacher.teacher.p_train, evaluate.evaluate.schedule or ScheduleConfig(), evaluate.evaluate.base
    )
    study = Study(preset, tuple(overrides), make_groups(settings, only), settings, evaluate, seeds)
    for cell in study.list_cells().values():
        study.load_cell(cell)
    return study


def resolve_inputs(study: Study, teachers: Iterable[str]) -> Study:
    """Look up the teachers and the data set; raises UserError if one is unknown or damaged."""
    config, teachers = study.evaluate, list(teachers)
    check_references(config.tracking, {"dataset": config.inputs.dataset})
    for teacher in teachers:
        check_references(config.tracking, {"teacher": teacher})
    client, root = open_tracker(config.tracking).client, absolute_uri(config.storage.root)
    found = {reference: resolve(client, reference, root) for reference in teachers}
    dataset = resolve(client, config.inputs.dataset, root)
    return replace(study, teachers=found, dataset=dataset)


def list_runs(study: Study) -> list[CellRun]:
    """Every run of the study once, in the order in which they run."""
    runs: dict[str, CellRun] = {}
    for seed in range(study.seeds):
        for teacher in study.teachers.values():
            for group in study.groups:
                for run in study.iter_runs(seed, teacher, group.cells):
                    runs.setdefault(run.run_id, run)  # cells of two groups may be one run
    return list(runs.values())


def load_stage(stage: type[StageConfig], preset: str, overrides: list[str]) -> StageConfig:
    """The settings of a stage; overrides of other stages' sections are left out."""
    foreign = foreign_sections(stage)
    own = [o for o in overrides if o.partition("=")[0].partition(".")[0] not in foreign]
    return load_config(stage, preset, own, preset_folder=PRESETS)
