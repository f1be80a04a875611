"""What differs between families of teachers: components, how they fit together, noise levels of their samplers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from presto_core.models import flow_grid
from presto_core.models.flow_grid import FlowGrid, ShiftedGrid
from presto_core.text.diffusers_encoder import TOKENIZERS

Settings = Mapping[str, Any]
Parts = Mapping[str, Settings]  # settings by component
Pair = tuple[str, str]


@dataclass(frozen=True)
class Component:
    """A component: the classes it may be of, and whether it has weights.

    Attributes:
        default: settings of the first class if the folder lacks the component; None if it must have it.
    """

    pairs: tuple[Pair, ...]
    weights: bool = True
    settings: str = "config.json"
    default: Settings | None = None


class Size(NamedTuple):
    """A number that two components must agree on."""

    name: str
    component: str
    value: Any
    other: str
    expected: Any


class Audio(NamedTuple):
    """What the settings of a codec say of the audio."""

    rate_hz: int
    hop: int
    channels: int


class Grid(Protocol):
    """Noise levels that the stock sampler of a few-step model visits."""

    @property
    def sigma_range(self) -> list[float]:
        """Lowest and highest noise level."""
        ...

    def list_sigmas(self, steps: int) -> list[float]: ...

    def to_settings(self) -> dict[str, Any]:
        """Return scheduler_config.json."""
        ...


class TeacherKind:
    """A row of the table of teachers.

    Attributes:
        components: all that a folder must have, and no other but those in `unused`, which are not read.
        projection: the component that makes conditions of numbers, and of text if the family projects it; None for a
            family whose conditions have no weights outside the transformer.
        copied: components that a student's folder takes from the teacher's.
        student_settings: settings of the transformer of a few-step model that differ from the teacher's.
        default_seconds: length of a clip if none is given; None for a family whose clips all have one length.
        given_scheduler: class of a scheduler that the stock pipeline must be given, because it loads none.
    """

    components: ClassVar[dict[str, Component]]
    unused: ClassVar[tuple[str, ...]] = ()
    projection: ClassVar[str | None]
    copied: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer")
    student_settings: ClassVar[Settings] = {}
    default_seconds: ClassVar[float | None] = None
    given_scheduler: ClassVar[str] = ""

    def list_sizes(self, parts: Parts) -> tuple[Size, ...]:
        """Return the numbers that must agree; raises KeyError if one is missing."""
        raise NotImplementedError

    def read_audio(self, parts: Parts) -> Audio:
        raise NotImplementedError

    def count_frames(self, parts: Parts, seconds: float | None) -> int:
        """Return the latent frames of every clip, of a length in seconds if the family has any."""
        raise NotImplementedError

    def read_longest(self, parts: Parts) -> float:
        """Return the seconds of the longest clip that the projection, or else the pipeline, knows."""
        raise NotImplementedError

    def read_conditioner(self, folder: Path, parts: Parts) -> dict[str, Any]:
        """Return the settings of the conditioner as a model card keeps them: those of the projection."""
        assert self.projection is not None
        return keep_settings(parts[self.projection])

    def check_teacher(self, parts: Parts) -> None:
        """Refuse a model that is no teacher whatever its scheduler; raises ValueError, which names the setting."""

    def check_scheduler(self, kind: str, settings: dict[str, Any]) -> None:
        """Refuse a parameterisation that the class is not trained with, and add the defaults of the class.

        Raises:
            ValueError: the message names the setting.
        """
        raise NotImplementedError

    def read_grid(self, kind: str, settings: Settings) -> Grid | None:
        """Return the levels of a few-step model, such as `presto export` writes; None for a teacher."""
        raise NotImplementedError

    def read_range(self, settings: Settings) -> list[float]:
        """Return the lowest and the highest noise level of a teacher's scheduler."""
        raise NotImplementedError

    def read_precondition(self, settings: Settings) -> dict[str, Any]:
        """Return the parameterisation as a model card keeps it, given the scheduler's settings."""
        raise NotImplementedError

    def make_grid(self, *, precondition: Settings, sigma_max: float) -> Grid:
        """Return the levels at which the stock sampler runs a model with this card."""
        raise NotImplementedError

    def convert_to_grid(self, transformer: Any, *, precondition: Settings, grid: Grid) -> None:
        """Change the weights of a model with this card in place, so that the stock sampler can call it."""

    def list_call_arguments(self, seconds: float) -> str:
        """Return what the pipeline's call must be told besides prompt and steps."""
        return "guidance_scale=1.0"


def list_components(
    transformer: str, projection: tuple[str, str, str] | None, vae: str, text_encoder: str, schedulers: tuple[str, ...]
) -> dict[str, Component]:
    """Return the components of a family, given the class of each; of the projection name, library and class."""

    def take(library: str, *names: str) -> tuple[Pair, ...]:
        return tuple((library, name) for name in names)

    projections = {projection[0]: Component(take(*projection[1:]))} if projection else {}
    return {
        "transformer": Component(take("diffusers", transformer)),
        **projections,
        "vae": Component(take("diffusers", vae)),
        "text_encoder": Component(take("transformers", text_encoder)),
        "tokenizer": Component(take("transformers", *TOKENIZERS), weights=False, settings="tokenizer_config.json"),
        "scheduler": Component(take("diffusers", *schedulers), weights=False, settings="scheduler_config.json"),
    }


class FlowKind(TeacherKind):
    """What flow models have in common: their scheduler, which does ping-pong steps if it is told to.

    Attributes:
        grid: levels of the family's pipeline.
    """

    grid: ClassVar[FlowGrid | ShiftedGrid]

    def check_scheduler(self, kind: str, settings: dict[str, Any]) -> None:
        flow_grid.check_plain(settings)
        if settings.get("stochastic_sampling"):
            flow_grid.check_ping_pong(settings)

    def read_grid(self, kind: str, settings: Settings) -> Grid | None:
        if not settings.get("stochastic_sampling"):
            return None
        flow_grid.check_ping_pong(settings)
        return replace(self.grid, time_scale=flow_grid.read_time_scale(settings))

    def read_range(self, settings: Settings) -> list[float]:
        return self.grid.sigma_range  # of the pipeline's call; the scheduler has none

    def read_precondition(self, settings: Settings) -> dict[str, Any]:
        return {"kind": "flow", "time_scale": flow_grid.read_time_scale(settings)}

    def make_grid(self, *, precondition: Settings, sigma_max: float) -> Grid:
        return replace(self.grid, time_scale=float(precondition.get("time_scale", 1.0)))


def keep_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that a class takes, of those that its configuration file has."""
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def read_oobleck(vae: Settings) -> Audio:
    """Return what the settings of an AutoencoderOobleck say; raises KeyError."""
    return Audio(vae["sampling_rate"], prod(vae["downsampling_ratios"]), vae.get("audio_channels", 2))
