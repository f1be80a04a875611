"""One root configuration a stage: which sections it takes, how they fit together, and its run_id."""

from __future__ import annotations

import math
from typing import Any

from presto_core.config.data import CodecConfig, CorpusConfig, IngestConfig, TextConfig
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.promotion import PromoteConfig
from presto_core.config.registry_name import RegistryName
from presto_core.config.sampling import EditConfig, GenerateConfig, ScheduleConfig
from presto_core.config.sections import (
    InputsConfig,
    LayersConfig,
    NetworkConfig,
    StepsConfig,
    TeacherConfig,
)
from presto_core.config.stage import StageConfig, TrainingStage
from presto_core.config.sweep import SweepConfig
from presto_core.config.teacher_import import ModelSourceConfig


class CorpusStage(StageConfig):
    NAME = "corpus"
    corpus: CorpusConfig = CorpusConfig()

    def derive_values(self) -> dict[str, Any]:
        held_out = self.corpus.validation_tracks + self.corpus.test_tracks
        return {"clips": held_out + math.ceil(round(self.corpus.minutes * 60 / self.corpus.clip_seconds, 6))}


class IngestStage(StageConfig):
    NAME = "ingest"
    EXTERNAL_INPUT = "the contents of its files"

    ingest: IngestConfig = IngestConfig()
    codec: CodecConfig = CodecConfig()
    text: TextConfig = TextConfig()

    def result_config(self) -> dict[str, Any]:
        """Without the places audio comes from: what is in the files decides, and so does not what else is refused."""
        config = super().result_config()
        for name in ("source", "manifest", "name", "max_bad_fraction", "held_out_fraction"):
            del config["ingest"][name]
        return config

    def derive_values(self) -> dict[str, Any]:
        return {"chunk_seconds": round(self.ingest.chunk_frames * 2048 / 44100, 3)}


class DatasetStage(StageConfig):
    """Settings of the `presto dataset` commands."""

    NAME = "dataset"
    PARENTS = ("dataset",)


class ImportTeacherStage(StageConfig):
    NAME = "import-teacher"
    EXTERNAL_INPUT = "the contents of the teacher's files"

    name: RegistryName = "presto-teacher"
    """Registry name of the teacher."""
    model: ModelSourceConfig = ModelSourceConfig()

    def result_config(self) -> dict[str, Any]:
        """Without the place it comes from: what is in the files decides."""
        config = super().result_config()
        for name in ("source", "revision"):
            del config["model"][name]
        return config


class TeacherStage(TrainingStage):
    NAME, SECTION = "train-teacher", "teacher"
    PARENTS = ("dataset",)

    name: RegistryName = "presto-teacher"
    """Registry name of the teacher."""
    network: NetworkConfig = NetworkConfig()
    teacher: TeacherConfig = TeacherConfig()


class LayersStage(TrainingStage):
    NAME, SECTION = "distill-layers", "layers"
    PARENTS = ("dataset", "teacher")

    name: RegistryName = "presto-generator"
    """Registry name of the model."""
    layers: LayersConfig = LayersConfig()


class StepsStage(TrainingStage):
    NAME, SECTION = "distill-steps", "steps"
    PARENTS = ("dataset", "teacher", "layers")
    OPTIONAL = ("layers",)

    name: RegistryName = "presto-generator"
    """Registry name of the model."""
    steps: StepsConfig = StepsConfig()

    @property
    def total_steps(self) -> int:
        """R critic steps and one generator step for each update of the generator."""
        return self.updates * (self.steps.fake_updates_per_generator_update + 1)

    def derive_values(self) -> dict[str, Any]:
        return {"total_steps": self.total_steps, **super().derive_values()}


class EvaluateStage(StageConfig):
    NAME = "evaluate"
    PARENTS = ("dataset", "teacher", "generator")
    OPTIONAL = ("generator",)

    evaluate: EvaluateConfig = EvaluateConfig()

    def references(self) -> dict[str, str]:
        return super().references() | {f"compared_{i}": r for i, r in enumerate(self.inputs.compared)}

    def result_config(self) -> dict[str, Any]:
        """With the default schedule where none is given, as from before models could store one."""
        config = super().result_config()
        given = config["evaluate"]["schedule"]
        config["evaluate"]["schedule"] = ScheduleConfig().model_dump() if given is None else {"given": given}
        return config

    def derive_values(self) -> dict[str, Any]:
        clips = self.evaluate.num_samples + self.evaluate.validation_samples
        nfe = sum(b.nfe for b in self.evaluate.base) + sum(self.evaluate.student_steps)
        return {"network_evaluations_of_teacher_and_one_generator": nfe * clips}


class SweepStage(StageConfig):
    """Settings of a sweep; those of the stage that it tries are a configuration of their own."""

    NAME = "sweep"
    sweep: SweepConfig = SweepConfig()


class GenerateStage(StageConfig):
    NAME = "generate"
    PARENTS = OPTIONAL = ("generator",)

    inputs: InputsConfig = InputsConfig(generator="")
    """Without a generator: presto-generator@candidate of the registry if there is one, else the package's."""
    generate: GenerateConfig = GenerateConfig()


class EditStage(StageConfig):
    NAME = "edit"
    PARENTS = OPTIONAL = ("generator",)
    EXTERNAL_INPUT = "the audio of its file"

    inputs: InputsConfig = InputsConfig(generator="")
    """Without a generator: as for `generate`."""
    edit: EditConfig = EditConfig()


class RegistryStage(StageConfig):
    """Settings of the registry commands."""

    NAME = "registry"
    promote: PromoteConfig = PromoteConfig()


def stage_configs() -> dict[str, type[StageConfig]]:
    """Stage name -> its configuration class, of every stage that is defined."""
    classes, queue = dict[str, type[StageConfig]](), [StageConfig]
    while queue:
        parent = queue.pop(0)
        queue += parent.__subclasses__()
        if "NAME" in vars(parent):  # a class made from a stage's at run time has its name too
            classes[parent.NAME] = parent
    return classes


def foreign_sections(config: type[StageConfig]) -> set[str]:
    """Sections of other stages that this one does not have."""
    return {name for other in stage_configs().values() for name in other.model_fields} - set(config.model_fields)
