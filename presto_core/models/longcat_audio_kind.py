"""LongCat-Audio as a teacher: its components, and how they fit together."""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from presto_core.audio.longcat_vae import list_strides
from presto_core.models import flow_grid
from presto_core.models.flow_grid import ShiftedGrid
from presto_core.models.teacher_kind import Audio, FlowKind, Grid, Parts, Settings, Size, list_components
from presto_core.networks.longcat_audio import reverse_time
from presto_core.text.diffusers_encoder import read_width


class LongCatAudioKind(FlowKind):
    """LongCat-Audio: flow matching, by default with time reversed; clips of any length, which is no condition."""

    grid = ShiftedGrid(shift=1.0, fine_steps=16, highest=999.0)  # the steps of its pipeline, and t = 0.999 for t = 1
    components = list_components(
        "LongCatAudioDiTTransformer", None, "LongCatAudioDiTVae", "UMT5EncoderModel", (flow_grid.SCHEDULER,)
    )
    # its pipeline does not save its scheduler, and makes this one if it is given none
    components["scheduler"] = replace(components["scheduler"], default={"shift": 1.0, "invert_sigmas": True})
    given_scheduler = flow_grid.SCHEDULER
    projection = None
    default_seconds = 10.0  # its pipeline guesses the time that it takes to speak the prompt

    def list_sizes(self, parts: Parts) -> tuple[Size, ...]:
        transformer, vae, text = parts["transformer"], parts["vae"], read_width(parts["text_encoder"])
        channels, hop = vae["latent_dim"], prod(list_strides(vae))
        return (
            Size("latent channels", "vae", channels, "transformer", transformer["latent_dim"]),
            Size("encoder channels", "vae", vae["encoder_latent_dim"], "mean and scale of its latents", 2 * channels),
            Size("samples per frame", "vae", vae["downsampling_ratio"], "its strides", hop),
            Size("text width", "text_encoder", text, "transformer", transformer["dit_text_dim"]),
        )

    def read_audio(self, parts: Parts) -> Audio:
        vae = parts["vae"]
        return Audio(vae["sample_rate"], vae["downsampling_ratio"], vae["in_channels"])

    def count_frames(self, parts: Parts, seconds: float | None) -> int:
        rate_hz, hop, _ = self.read_audio(parts)
        return max(1, int(round((seconds or self.default_seconds) * rate_hz, 6) // hop))

    def read_longest(self, parts: Parts) -> float:
        return 30.0  # max_wav_duration of its pipeline

    def read_conditioner(self, folder: Path, parts: Parts) -> dict[str, Any]:
        return {"text_dim": read_width(parts["text_encoder"])}

    def check_scheduler(self, kind: str, settings: dict[str, Any]) -> None:
        flow_grid.check_plain(settings, but=("invert_sigmas",))
        if (found := settings.get("invert_sigmas", False)) not in (True, False):
            raise ValueError(f"invert_sigmas={found}, which must be true or false")
        if settings.get("stochastic_sampling"):
            flow_grid.check_ping_pong(settings)

    def read_precondition(self, settings: Settings) -> dict[str, Any]:
        # the pipeline divides by the number of time steps, so that t is 0 to 1
        return {"kind": "flow_reversed" if settings.get("invert_sigmas") else "flow", "time_scale": 1.0}

    def convert_to_grid(self, transformer: Any, *, precondition: Settings, grid: Grid) -> None:
        if precondition["kind"] == "flow_reversed":  # a stochastic step with inverted sigmas is not ping-pong
            reverse_time(transformer)

    def list_call_arguments(self, seconds: float) -> str:
        # up to the next millisecond, since the pipeline rounds frames down
        return f"guidance_scale=1.0, audio_duration_s={math.floor(seconds * 1000 + 1) / 1000:g}"
