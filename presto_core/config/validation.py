"""Configuration of validation: the averaged weights judged while a run trains, without a part in the training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from presto_core.config.sampling import ScheduleConfig
from presto_core.config.section import Count, Section


class ValidationConfig(Section):
    """Distances of the averaged weights to held-out music, every so many updates; a row validation/fd, ... each."""

    every: int = Field(0, ge=0)
    """Updates of the network that is shipped (generator updates in `distill-steps`) between two validations, and one
    at the end; 0 validates nothing."""
    samples: int = Field(32, ge=2)
    """Clips that are made, always of the same captions and from the same noise."""
    reference_samples: int = Field(128, ge=2)
    """Held-out rows they are compared with, at most."""
    batch_size: Count = 8
    steps: Count = 4
    """Sampling steps: of the generator, or of DPM++ 2M for a base and a layer-distilled model."""
    schedule: ScheduleConfig = ScheduleConfig()
    embedding: Literal["musicnn", "latents"] = "musicnn"
    """`musicnn`: that of `evaluate`, on decoded audio of 3 s and more; `latents`: mean and standard deviation of each
    latent channel over time, which decodes nothing."""
    backlog: int = Field(1, ge=0)
    """Validations that may be under way while training goes on; 0 waits for each of them."""
    keep: Literal["last", "best"] = "last"
    """Weights that become the result: those of the end, or those of the least Fréchet distance."""

    def comparison_settings(self) -> dict[str, object]:
        """The settings that a validation's value depends on."""
        return self.model_dump(mode="json", exclude={"every", "backlog", "keep"})
