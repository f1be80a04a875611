"""Families of teachers that can be imported: their components, and how these fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple, Protocol

from presto_core.models import flow_grid, lcm_grid
from presto_core.models.flow_grid import FlowGrid
from presto_core.models.lcm_grid import LcmGrid
from presto_core.text.diffusers_encoder import TOKENIZERS, read_width

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
        components: all that a folder must have, and no other.
        projection: the component that makes conditions of numbers, and of text if the family projects it; None for a
            family whose conditions have no weights outside the transformer.
        default_seconds: length of a clip if none is given; None for a family whose clips all have one length.
        given_scheduler: class of a scheduler that the stock pipeline must be given, because it loads none.
    """

    components: ClassVar[dict[str, Component]]
    projection: ClassVar[str | None]
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

    def read_conditioner(self, parts: Parts) -> dict[str, Any]:
        """Return the settings of the conditioner: those of the projection."""
        assert self.projection is not None
        return {name: value for name, value in parts[self.projection].items() if not name.startswith("_")}

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


class StableAudioKind(TeacherKind):
    """Stable Audio Open: v-prediction in the cosine schedule, clips of one length, timing as a condition."""

    components = list_components(
        "StableAudioDiTModel",
        ("projection_model", "stable_audio", "StableAudioProjectionModel"),
        "AutoencoderOobleck",
        "T5EncoderModel",
        ("CosineDPMSolverMultistepScheduler", lcm_grid.SCHEDULER),
    )
    projection = "projection_model"

    def list_sizes(self, parts: Parts) -> tuple[Size, ...]:
        transformer, vae, projection = parts["transformer"], parts["vae"], parts["projection_model"]
        width, text = projection["conditioning_dim"], read_width(parts["text_encoder"])
        return (
            Size("latent channels", "vae", vae["decoder_input_channels"], "transformer", transformer["in_channels"]),
            Size(
                "output channels", "transformer", transformer["out_channels"], "its input", transformer["in_channels"]
            ),
            Size("text width", "text_encoder", text, "projection_model", projection["text_encoder_dim"]),
            Size(
                "conditioning width", "projection_model", width, "transformer", transformer["cross_attention_input_dim"]
            ),
            Size("global width", "projection_model", 2 * width, "transformer", transformer["global_states_input_dim"]),
        )

    def read_audio(self, parts: Parts) -> Audio:
        vae = parts["vae"]
        return Audio(vae["sampling_rate"], prod(vae["downsampling_ratios"]), vae.get("audio_channels", 2))

    def count_frames(self, parts: Parts, seconds: float | None) -> int:
        return int(parts["transformer"]["sample_size"])

    def read_longest(self, parts: Parts) -> float:
        return float(parts["projection_model"]["max_value"])

    def check_scheduler(self, kind: str, settings: dict[str, Any]) -> None:
        if kind == lcm_grid.SCHEDULER:
            LcmGrid.from_settings(settings)
            return
        for name, expected in (("prediction_type", "v_prediction"), ("sigma_data", 1.0)):
            if settings.get(name, expected) != expected:
                raise ValueError(f"{name}={settings[name]}; this family has {name}={expected}")
        low, high = (settings.get(name, default) for name, default in (("sigma_min", 0.3), ("sigma_max", 500)))
        if not (isinstance(low, int | float) and isinstance(high, int | float) and 0 < low < high <= 1e4):
            raise ValueError(f"sigma_min={low} and sigma_max={high}; set 0 < sigma_min < sigma_max <= 10000")
        settings.update(sigma_min=low, sigma_max=high)

    def read_grid(self, kind: str, settings: Settings) -> LcmGrid | None:
        return LcmGrid.from_settings(settings) if kind == lcm_grid.SCHEDULER else None

    def read_range(self, settings: Settings) -> list[float]:
        return [float(settings["sigma_min"]), float(settings["sigma_max"])]

    def read_precondition(self, settings: Settings) -> dict[str, Any]:
        return {"kind": "v_cosine"}

    def make_grid(self, *, precondition: Settings, sigma_max: float) -> LcmGrid:
        return LcmGrid(sigma_max)

    def convert_to_grid(self, transformer: Any, *, precondition: Settings, grid: Grid) -> None:
        assert isinstance(grid, LcmGrid)
        lcm_grid.scale_frequencies(transformer, grid.time_step)  # the scheduler calls it with integers


class StableAudio3Kind(TeacherKind):
    """Stable Audio 3: flow matching, clips of any length, whose seconds are a condition."""

    components = list_components(
        "StableAudio3DiTModel",
        ("duration_embedder", "stable_audio_3", "StableAudio3DurationEmbedder"),
        "AutoencoderSAME",
        "T5GemmaEncoderModel",
        (flow_grid.SCHEDULER,),
    )
    projection = "duration_embedder"
    default_seconds = 10.0  # of the pipeline's call

    def list_sizes(self, parts: Parts) -> tuple[Size, ...]:
        transformer, vae, projection = parts["transformer"], parts["vae"], parts["duration_embedder"]
        width, text = projection["output_dim"], read_width(parts["text_encoder"])
        return (
            Size("latent channels", "vae", vae["latent_dim"], "transformer", transformer["io_channels"]),
            Size("text width", "text_encoder", text, "transformer", transformer["cond_token_dim"]),
            Size("conditioning width", "duration_embedder", width, "transformer", transformer["cond_token_dim"]),
            Size("global width", "duration_embedder", width, "transformer", transformer["global_cond_dim"]),
        )

    def read_audio(self, parts: Parts) -> Audio:
        vae = parts["vae"]
        hop = vae["patch_size"] * prod(vae["encoder_strides"])
        return Audio(vae["sampling_rate"], hop, vae.get("audio_channels", 2))

    def count_frames(self, parts: Parts, seconds: float | None) -> int:
        rate_hz, hop, _ = self.read_audio(parts)
        patch = int(parts["transformer"].get("patch_size", 1))
        frames = math.ceil(round((seconds or self.default_seconds) * rate_hz / hop, 6))
        return math.ceil(frames / patch) * patch

    def read_longest(self, parts: Parts) -> float:
        return float(parts["duration_embedder"]["max_val"])

    def check_scheduler(self, kind: str, settings: dict[str, Any]) -> None:
        flow_grid.check_plain(settings)
        if settings.get("stochastic_sampling"):
            FlowGrid.from_settings(settings)

    def read_grid(self, kind: str, settings: Settings) -> FlowGrid | None:
        return FlowGrid.from_settings(settings) if settings.get("stochastic_sampling") else None

    def read_range(self, settings: Settings) -> list[float]:
        return FlowGrid().sigma_range  # of the pipeline's call; the scheduler has none

    def read_precondition(self, settings: Settings) -> dict[str, Any]:
        return {"kind": "flow", "time_scale": flow_grid.read_time_scale(settings)}

    def make_grid(self, *, precondition: Settings, sigma_max: float) -> FlowGrid:
        return FlowGrid(time_scale=float(precondition.get("time_scale", 1.0)))

    def list_call_arguments(self, seconds: float) -> str:
        return f"duration={seconds:.6g}"
