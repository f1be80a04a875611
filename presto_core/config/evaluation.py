"""Configuration of `evaluate`: what is compared, on how many clips, and by which embeddings."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.config.section import Count, Section

EmbedderKind = Literal["musicnn", "clap", "vggish", "ast", "encodec", "dac", "mert"]
FOLDER_NAME = re.compile(r"(?=.{1,80}$)\w([\w.\-: ]*\w)?")
"""Names of systems that MLflow takes in those of parameters and metrics; without `/`, which divides keys of arrays."""


class EmbedderConfig(Section):
    """An embedding of audio. `musicnn` is shipped with the package; the others read your weights."""

    kind: EmbedderKind = "musicnn"
    """Which embedding."""
    path: str = ""
    """Local folder or Hugging Face hub id of its weights; empty uses the shipped ones (musicnn only)."""

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if self.kind == "musicnn" and self.path:
            raise ValueError(f"embedder musicnn takes no path, not {self.path!r}: its weights are in the package")
        if self.kind != "musicnn" and not self.path:
            raise ValueError(f"embedder {self.kind} needs a folder or hub id: write '{self.kind}=/path/to/weights'")
        return self


class EvaluateConfig(Section):
    """What is compared, on how many clips, and by which embeddings."""

    num_samples: Count = 256
    """Clips that each system generates from prompts of the test split."""
    validation_samples: int = Field(64, ge=0)
    """Clips that each system generates from prompts of the validation split. They are used to choose each model's
    sampler and number of steps, and by promotion; tables report the test split alone. 0 generates none and chooses
    each model's first sampler or number of steps."""
    reference_samples: int = Field(0, ge=0)
    """Most rows of real music to compare with, taken evenly from all its tracks; 0 uses all."""
    batch_size: Count = 16
    """Clips that are sampled at once."""
    student_steps: tuple[Count, ...] = (1, 2, 4, 8)
    """Numbers of steps with which each few-step generator is sampled."""
    base: tuple[BaseSampler, ...] = Field(
        (BaseSampler(), *(BaseSampler(sampler="euler", steps=n) for n in (1, 2, 4, 8))), min_length=1
    )
    """Samplers of the teacher; the first is the reference for speed-ups."""
    layers: tuple[BaseSampler, ...] = (BaseSampler(),)
    """Samplers of layer-distilled models."""
    schedule: ScheduleConfig | None = None
    """Noise levels of all systems; empty uses those that a generator stores for its number of steps, else sigma 80 to
    0.002, rho 7."""
    embedders: tuple[EmbedderConfig, ...] = Field((EmbedderConfig(),), min_length=1)
    """Embeddings that quality is measured on, e.g. [musicnn, clap=/models/clap]; tables show the first."""
    folders: dict[str, str] = Field(default_factory=dict)
    """Further systems as folders of audio, as {name: path}, e.g. {musicgen: /music/musicgen}. A name consists of
    letters, digits, spaces and any of _ - . :"""
    nearest_k: Count = 5
    """Number of nearest neighbours for precision, recall, density and coverage (Naeem et al. 2020)."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Probability that intervals should cover the true value."""
    interval_groups: int = Field(20, ge=0)
    """Number of groups of tracks that are left out in turn for the intervals; 0 computes no intervals."""
    latency_batch: Count = 8
    """Clips per batch in the second latency measurement; the first uses one clip."""
    save_audio: int = Field(4, ge=0)
    """Clips per system that the report keeps as audio; 0 keeps none."""

    @field_validator("embedders", mode="before")
    @classmethod
    def _parse_embedders(cls, value: object) -> object:
        """Accept names beside mappings: `musicnn`, `clap=/path`."""
        values = [value] if isinstance(value, (str, dict)) else value
        return [_parse_embedder(v) for v in values] if isinstance(values, (list, tuple)) else values

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        labels = [(e.kind, e.path) for e in self.embedders]
        if len(set(labels)) < len(labels):
            raise ValueError("embedders names one embedder twice")
        if bad := [name for name in self.folders if not FOLDER_NAME.fullmatch(name)]:
            raise ValueError(
                f"folders has a system named {bad[0]!r}; use up to 80 letters, digits, spaces and any of _ - . : in "
                "names, with a letter or digit first and last"
            )
        return self


def _parse_embedder(value: object) -> object:
    if not isinstance(value, str):
        return value
    kind, _, path = value.partition("=")
    return {"kind": kind.strip(), "path": path.strip()}
