"""One root configuration a stage: which sections it takes, how they fit together, and its run_id."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from presto_core.config.data import (
    CodecConfig,
    CorpusConfig,
    DataConfig,
    IngestConfig,
    TextConfig,
)
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sampling import EvaluateConfig, GenerateConfig
from presto_core.config.section import Section
from presto_core.config.sections import (
    ClusterConfig,
    HealthConfig,
    InputsConfig,
    LayersConfig,
    LoopConfig,
    NetworkConfig,
    StepsConfig,
    StorageConfig,
    TeacherConfig,
    TrackingConfig,
)
from presto_core.config.submit import SubmitConfig
from presto_core.config.sweep import SweepConfig
from presto_core.config.validation import ValidationConfig
from presto_core.errors import UserError

# Where and how a stage runs does not change what it makes, but for rounding (workers, micro-batches, sharding); nor
# does the name that its result is registered under.
NOT_IN_RUN_ID = ("storage", "tracking", "cluster", "submit", "loop", "health", "inputs", "name", "validation")


class StageConfig(Section):
    """What every stage takes.

    `NAME` is the stage's name; `PARENTS` names the inputs it reads, `OPTIONAL` those of them that may be empty, and
    `EXTERNAL_INPUT` what else decides the result.
    """

    NAME: ClassVar[str]
    PARENTS: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    EXTERNAL_INPUT: ClassVar[str] = ""

    inputs: InputsConfig = InputsConfig()
    storage: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    submit: SubmitConfig = SubmitConfig()
    seed: int = Field(0, ge=0)

    def references(self) -> dict[str, str]:
        """Role -> the artifact to read, as `inputs` names it.

        Raises:
            UserError: one that this stage needs is empty.
        """
        named = {role: str(getattr(self.inputs, role)) for role in self.PARENTS}
        for role, reference in named.items():
            if not reference and role not in self.OPTIONAL:
                raise UserError(
                    f"inputs.{role} is empty; give a registry name such as presto-{role}@candidate, an id or a URI"
                )
        return {role: reference for role, reference in named.items() if reference}

    def result_config(self) -> dict[str, Any]:
        """The settings that decide the result: all but where it runs and which artifacts it starts from."""
        return self.model_dump(mode="json", exclude=set(NOT_IN_RUN_ID))

    def run_id(self, parents: dict[str, str] | None = None) -> str:
        """Hash of the stage, its result-relevant settings and its parents' ids: the id of its artifact too."""
        body = [type(self).__name__, self.result_config(), sorted((parents or {}).items())]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def derive_values(self) -> dict[str, Any]:
        """Numbers that follow from the settings, for --dry-run."""
        return {}


class CorpusStage(StageConfig):
    NAME = "corpus"
    corpus: CorpusConfig = CorpusConfig()

    def derive_values(self) -> dict[str, Any]:
        return {"clips": round(self.corpus.minutes * 60 / self.corpus.clip_seconds)}


class IngestStage(StageConfig):
    NAME = "ingest"
    EXTERNAL_INPUT = "the contents of its files"

    ingest: IngestConfig = IngestConfig()
    codec: CodecConfig = CodecConfig()
    text: TextConfig = TextConfig()

    def result_config(self) -> dict[str, Any]:
        """Without the places audio comes from: what is in the files decides, and so does not what else is refused."""
        config = super().result_config()
        for name in ("source", "manifest", "name", "max_bad_fraction"):
            del config["ingest"][name]
        return config

    def derive_values(self) -> dict[str, Any]:
        return {"chunk_seconds": round(self.ingest.chunk_frames * 2048 / 44100, 3)}


class DatasetStage(StageConfig):
    """Of a look at a data set."""

    NAME = "dataset"
    PARENTS = ("dataset",)


class TrainingStage(StageConfig):
    """What the stages that train take beside their own section, which `SECTION` names."""

    SECTION: ClassVar[str] = ""

    name: str = "presto"
    """Registry name of what is made."""
    data: DataConfig = DataConfig()
    loop: LoopConfig = LoopConfig()
    health: HealthConfig = HealthConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def section(self) -> TeacherConfig | LayersConfig | StepsConfig:
        """The stage's own section."""
        return getattr(self, self.SECTION)

    @property
    def updates(self) -> int:
        """Updates of the network that is shipped, from the first to the last."""
        section = self.section
        return section.generator_updates if isinstance(section, StepsConfig) else section.steps

    @property
    def caption_dropout(self) -> float:
        """Probability that a row's conditions are dropped."""
        section = self.section
        return 0.0 if isinstance(section, StepsConfig) else section.caption_dropout

    @property
    def total_steps(self) -> int:
        """Steps of the run, those that update other networks included."""
        return self.updates

    def result_config(self) -> dict[str, Any]:
        """With validation where it chooses the weights that become the result."""
        config = super().result_config()
        if self.validation.keep == "best":
            config["validation"] = {"every": self.validation.every, **self.validation.comparison_settings()}
        return config

    def derive_values(self) -> dict[str, Any]:
        batch = self.section.global_batch_size
        return {"rows_seen": self.total_steps * batch, **derive_per_worker(batch, self.cluster, self.loop)}

    @model_validator(mode="after")
    def _check_keep_best(self) -> Self:
        if self.validation.keep == "best" and not self.validation.every:
            raise ValueError("validation.keep=best needs validations to choose from; set validation.every")
        return self

    @model_validator(mode="after")
    def _check_batch_divisible(self) -> Self:
        if self.SECTION:
            _check_divisible(f"{self.SECTION}.global_batch_size", self.section.global_batch_size, self.cluster)
        return self


class TeacherStage(TrainingStage):
    NAME, SECTION = "train-teacher", "teacher"
    PARENTS = ("dataset",)

    name: str = "presto-teacher"
    network: NetworkConfig = NetworkConfig()
    teacher: TeacherConfig = TeacherConfig()


class LayersStage(TrainingStage):
    NAME, SECTION = "distill-layers", "layers"
    PARENTS = ("dataset", "teacher")

    name: str = "presto-generator"
    layers: LayersConfig = LayersConfig()


class StepsStage(TrainingStage):
    NAME, SECTION = "distill-steps", "steps"
    PARENTS = ("dataset", "teacher", "layers")
    OPTIONAL = ("layers",)

    name: str = "presto-generator"
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

    def derive_values(self) -> dict[str, Any]:
        nfe = sum(b.nfe for b in self.evaluate.base) + sum(self.evaluate.student_steps)
        return {"network_evaluations_of_base_and_one_student": nfe * self.evaluate.num_samples}


class SweepStage(StageConfig):
    """Of a sweep over another stage's settings, which are a configuration of their own."""

    NAME = "sweep"
    sweep: SweepConfig = SweepConfig()


class GenerateStage(StageConfig):
    NAME = "generate"
    PARENTS = ("generator",)

    generate: GenerateConfig = GenerateConfig()


class RegistryStage(StageConfig):
    """Of a look at the register, or work on it."""

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


def _check_divisible(name: str, batch: int, cluster: ClusterConfig) -> None:
    for key in ("num_workers", "min_workers"):
        workers = max(getattr(cluster, key), 1)
        if batch % workers:
            possible = ", ".join(map(str, valid_worker_counts(batch, max_workers=workers)))
            raise ValueError(f"{name}={batch} must be a multiple of cluster.{key}={workers}, as it is of {possible}")


def valid_worker_counts(batch: int, *, min_workers: int = 1, max_workers: int) -> list[int]:
    """Numbers of workers that share a global batch evenly, in ascending order."""
    return [count for count in range(max(min_workers, 1), max_workers + 1) if batch % count == 0]


def derive_per_worker(batch: int, cluster: ClusterConfig, loop: LoopConfig) -> dict[str, Any]:
    """What each worker does of a global batch, and in how many micro-batches; where elastic, for each group size."""
    max_workers = max(cluster.num_workers, 1)
    rows_per_worker = {
        count: batch // count
        for count in valid_worker_counts(batch, min_workers=cluster.min_workers or max_workers, max_workers=max_workers)
    }
    accumulation_steps = {
        count: -(-share // (loop.micro_batch_size or share)) for count, share in rows_per_worker.items()
    }
    values: dict[str, Any] = {
        "batch_size_per_worker": rows_per_worker[max_workers],
        "gradient_accumulation_steps": accumulation_steps[max_workers],
    }
    if cluster.min_workers:
        values["by_number_of_workers"] = {
            count: f"{share} per worker, accumulated in {accumulation_steps[count]}"
            for count, share in rows_per_worker.items()
        }
    return values
