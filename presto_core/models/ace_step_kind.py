"""ACE-Step 1.5 as a teacher: its components, lengths and noise levels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from presto_core.models import flow_grid
from presto_core.models.flow_grid import ShiftedGrid
from presto_core.models.teacher_kind import Audio, FlowKind, Parts, Size, TeacherKind, list_components, read_oobleck
from presto_core.networks.ace_step_conditioner import SILENCE_FRAMES
from presto_core.text.ace_step_encoder import LYRICS, count_lyric_tokens
from presto_core.text.diffusers_encoder import read_width


class AceStepKind(FlowKind):
    """ACE-Step 1.5: flow matching, clips of any length, whose seconds the prompt names; music without voice."""

    grid = ShiftedGrid()
    components = list_components(
        "AceStepTransformer1DModel",
        ("condition_encoder", "ace_step", "AceStepConditionEncoder"),
        "AutoencoderOobleck",
        "Qwen3Model",
        (flow_grid.SCHEDULER,),
    )
    unused = ("audio_tokenizer", "audio_token_detokenizer")  # of covers
    projection = "condition_encoder"
    copied = (*TeacherKind.copied, "condition_encoder")
    student_settings = {"is_turbo": True}  # noqa: RUF012  the pipeline then guides nothing, whatever it is told
    default_seconds = 60.0  # of the pipeline's call

    def list_sizes(self, parts: Parts) -> tuple[Size, ...]:
        transformer, vae, encoder = parts["transformer"], parts["vae"], parts["condition_encoder"]
        latents, text = transformer["audio_acoustic_hidden_dim"], read_width(parts["text_encoder"])
        width = transformer.get("encoder_hidden_size") or transformer["hidden_size"]
        return (
            Size("latent channels", "vae", vae["decoder_input_channels"], "transformer", latents),
            Size("input channels", "transformer", transformer["in_channels"], "latents, silence and mask", 3 * latents),
            Size("text width", "text_encoder", text, "condition_encoder", encoder["text_hidden_dim"]),
            Size("timbre width", "condition_encoder", encoder["timbre_hidden_dim"], "transformer", latents),
            Size("conditioning width", "condition_encoder", encoder["hidden_size"], "transformer", width),
        )

    def read_audio(self, parts: Parts) -> Audio:
        return read_oobleck(parts["vae"])

    def count_frames(self, parts: Parts, seconds: float | None) -> int:
        rate_hz, hop, _ = self.read_audio(parts)
        rate = float(rate_hz) / float(hop)
        frames = math.ceil((seconds or self.default_seconds) * rate)
        # the pipeline converts to seconds and back, and fails where rounding gives it one frame more
        while any(math.ceil(length * rate) != frames for length in (frames / rate, frames * hop / float(rate_hz))):
            frames += 1
        return frames

    def read_longest(self, parts: Parts) -> float:
        rate_hz, hop, _ = self.read_audio(parts)
        return SILENCE_FRAMES * hop / rate_hz

    def read_conditioner(self, folder: Path, parts: Parts) -> dict[str, Any]:
        tokens = count_lyric_tokens(folder) + 1  # that of timbre
        return {**super().read_conditioner(folder, parts), "fixed_tokens": tokens}

    def check_teacher(self, parts: Parts) -> None:
        transformer = parts["transformer"]
        for name, turbo in (("is_turbo", True), ("model_version", "turbo")):
            if transformer.get(name) == turbo:
                raise ValueError(
                    f"{name}={json.dumps(turbo)}: guidance and few steps are trained into a turbo model, so that its "
                    "velocity is no teacher's; import the base or the SFT model"
                )

    def list_call_arguments(self, seconds: float) -> str:
        return f'audio_duration={seconds!r}, lyrics="{LYRICS}"'
