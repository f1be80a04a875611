"""Configuration of validation: the EMA weights scored during training, without influence on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from presto_core.config.sampling import ScheduleConfig
from presto_core.config.section import Count, Section


class ValidationConfig(Section):
    """Metrics of the EMA weights against music of the validation split, recorded as validation/mmd and so on."""

    every: int = Field(0, ge=0)
    """Updates of the final network (generator updates in `distill-steps`) between two validations, and one at the end;
    0 turns validation off."""
    samples: int = Field(32, ge=2)
    """Clips to generate, always with the same captions and noise."""
    reference_samples: int = Field(128, ge=2)
    """Largest number of rows of the validation split to compare with."""
    batch_size: Count = 8
    """Number of clips that are generated at once."""
    steps: Count = 4
    """Sampling steps: of the generator, or of DPM++ 2M for a teacher and a layer-distilled model."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Noise levels of the sampler."""
    embedding: Literal["musicnn", "latents"] = "musicnn"
    """`musicnn`: the embedding of `evaluate`, on decoded audio of at least 3 s; `latents`: mean and standard deviation
    of each latent channel over time, without decoding."""
    backlog: int = Field(1, ge=0)
    """Validations that can be pending while training continues; 0 waits for each."""
    keep: Literal["last", "best"] = "last"
    """Weights that become the result: the last, or those with the lowest MMD."""

    def comparison_settings(self) -> dict[str, object]:
        """The settings that a validation's value depends on."""
        return self.model_dump(mode="json", exclude={"every", "backlog", "keep"})
