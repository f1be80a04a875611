"""Stable Audio Open and Stable Audio 3 as teachers: their components, and how these fit together."""

from __future__ import annotations

import math
from math import prod
from typing import Any

from presto_core.models import flow_grid, lcm_grid
from presto_core.models.flow_grid import FlowGrid
from presto_core.models.lcm_grid import LcmGrid
from presto_core.models.teacher_kind import (
    Audio,
    FlowKind,
    Grid,
    Parts,
    Settings,
    Size,
    TeacherKind,
    list_components,
    read_oobleck,
)
from presto_core.text.diffusers_encoder import read_width


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
        return read_oobleck(parts["vae"])

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


class StableAudio3Kind(FlowKind):
    """Stable Audio 3: flow matching, clips of any length, whose seconds are a condition."""

    grid = FlowGrid()
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

    def list_call_arguments(self, seconds: float) -> str:
        return f"duration={seconds:.6g}"
