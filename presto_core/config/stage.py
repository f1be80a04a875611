"""What every stage's configuration has: inputs, storage, cluster, the run id; and what those that train add."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from presto_core.config.data import DataConfig
from presto_core.config.registry_name import RegistryName
from presto_core.config.section import Section
from presto_core.config.sections import (
    ClusterConfig,
    HealthConfig,
    InputsConfig,
    LayersConfig,
    LoopConfig,
    LoraConfig,
    StepsConfig,
    StorageConfig,
    TeacherConfig,
    TrackingConfig,
)
from presto_core.config.submit import SubmitConfig
from presto_core.config.validation import ValidationConfig
from presto_core.config.workers import check_divisible, derive_per_worker
from presto_core.errors import UserError

# Where and how a stage runs does not change what it makes, but for rounding (workers, micro-batches, sharding); nor
# does the name that its result is registered under.
NOT_IN_RUN_ID = ("storage", "tracking", "cluster", "submit", "loop", "health", "inputs", "name", "validation")

# Settings that came later than the runs that exist: at these values they are left out of the run id, which so stands.
ADDED_SETTINGS = {
    ("network", "spectrum_bins"): 0,
    ("network", "beat_heads"): 0,
    ("network", "frame_rate"): 0.0,
    ("teacher", "attribute_dropout"): 0.0,
    ("layers", "attribute_dropout"): 0.0,
    ("layers", "lora"): LoraConfig().model_dump(mode="json"),
    ("steps", "lora"): LoraConfig().model_dump(mode="json"),
    ("steps", "shared_taps"): False,
}


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
    """Seed of all randomness in the stage."""

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
        config = self.model_dump(mode="json", exclude=set(NOT_IN_RUN_ID))
        for (section, name), value in ADDED_SETTINGS.items():
            if config.get(section, {}).get(name) == value:
                del config[section][name]
        return config

    def run_id(self, parents: dict[str, str] | None = None) -> str:
        """Hash of the stage, its result-relevant settings and its parents' ids: the id of its artifact too."""
        body = [type(self).__name__, self.result_config(), sorted((parents or {}).items())]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def derive_values(self) -> dict[str, Any]:
        """Numbers that follow from the settings, for --dry-run."""
        return {}


class TrainingStage(StageConfig):
    """What the stages that train take beside their own section, which `SECTION` names."""

    SECTION: ClassVar[str] = ""

    name: RegistryName = "presto"
    """Registry name of the result."""
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
    def attribute_dropout(self) -> float:
        """Probability that a row's tempo is dropped, and independently its key."""
        section = self.section
        return 0.0 if isinstance(section, StepsConfig) else section.attribute_dropout

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
    def _check_adapters_replicated(self) -> Self:
        section, parallel = getattr(self, self.SECTION, None), self.cluster.parallel
        if isinstance(section, LayersConfig | StepsConfig) and section.lora.rank:
            roles = ("layers",) if isinstance(section, LayersConfig) else ("generator", "fake_score", "real_score")
            if shard := [role for role in roles if getattr(parallel, role) == "shard"]:
                raise ValueError(
                    f"cluster.parallel.{shard[0]}=shard cannot hold weights that networks share; with "
                    f"{self.SECTION}.lora.rank={section.lora.rank} set it to replicate"
                )
        return self

    @model_validator(mode="after")
    def _check_batch_divisible(self) -> Self:
        if self.SECTION:
            check_divisible(f"{self.SECTION}.global_batch_size", self.section.global_batch_size, self.cluster)
        return self
