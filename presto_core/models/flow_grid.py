"""The few noise levels at which diffusers samples a flow model, where its Euler scheduler does ping-pong steps.

With `stochastic_sampling`, FlowMatchEulerDiscreteScheduler steps from x0 to (1 - t) x0 + t eps, which is ping-pong at
sigma = t / (1 - t). StableAudio3Pipeline lays its times out evenly in log-SNR = -ln sigma, AceStepPipeline evenly in t
with a shift, LongCatAudioDiTPipeline evenly in t; all start at t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
START = 1e8  # stands for t = 1, where sigma is infinite: t is 1 in fp32, and so are the latents z
PLAIN = {
    "use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None, "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False,
}  # fmt: skip


@dataclass(frozen=True)
class FlowGrid:
    """Levels of StableAudio3Pipeline, with the defaults of its call.

    Attributes:
        logsnr_min, logsnr_max: log-SNR of the highest and of the lowest level.
        time_scale: what the network wants t multiplied by.
    """

    logsnr_min: float = -6.2
    logsnr_max: float = 2.0
    time_scale: float = 1.0

    @property
    def sigma_range(self) -> list[float]:
        """Lowest and highest noise level but for the start."""
        return [round(math.exp(-self.logsnr_max), 6), round(math.exp(-self.logsnr_min), 6)]

    def list_sigmas(self, steps: int) -> list[float]:
        """Return the noise levels that the pipeline visits in `steps` steps."""
        # in fp32 as the pipeline does: the network hears a time that differs in its last bit
        times = torch.linspace(1.0, 0.0, steps + 1)
        return _list_sigmas(torch.sigmoid(times * (self.logsnr_max - self.logsnr_min) - self.logsnr_max))

    def to_settings(self) -> dict[str, Any]:
        """Return scheduler_config.json."""
        return make_settings(self.time_scale)


@dataclass(frozen=True)
class ShiftedGrid:
    """Levels at even u: sigma = shift u / (1 - u). The defaults are those of AceStepPipeline's call.

    Attributes:
        shift: how many times the noise level is that of even times.
        time_scale: what the network wants t multiplied by.
        fine_steps: number of steps whose levels are the range.
        highest: end of the range in place of the second of these levels.
    """

    shift: float = 3.0
    time_scale: float = 1.0
    fine_steps: int = 50
    highest: float | None = None

    @property
    def sigma_range(self) -> list[float]:
        """Lowest and highest noise level but for the start, of a sampler with many steps."""
        odds = self.fine_steps - 1
        return [round(self.shift / odds, 6), round(self.highest or self.shift * odds, 6)]

    def list_sigmas(self, steps: int) -> list[float]:
        """Return the noise levels that the pipeline visits in `steps` steps."""
        times = torch.linspace(1.0, 0.0, steps + 1)  # in fp32 as the pipeline does
        return _list_sigmas(self.shift * times / (1 + (self.shift - 1) * times))

    def to_settings(self) -> dict[str, Any]:
        """Return scheduler_config.json."""
        return make_settings(self.time_scale)


def _list_sigmas(times: torch.Tensor) -> list[float]:
    """Return the noise levels of falling times t, of which the first is 1 and the last, 0, is left out."""
    return [START, *(t / (1 - t) for t in times.tolist()[1:-1])]


def make_settings(time_scale: float) -> dict[str, Any]:
    """Return scheduler_config.json of a scheduler that does ping-pong steps at the levels that a pipeline gives it."""
    return {
        "_class_name": SCHEDULER,
        "num_train_timesteps": int(time_scale),
        "shift": 1.0,
        "stochastic_sampling": True,
        **PLAIN,
    }


def check_ping_pong(settings: Mapping[str, Any]) -> None:
    """Refuse a scheduler that does other steps than ping-pong at these levels; raises ValueError, which says why."""
    check_plain(settings)
    for name, expected in (("stochastic_sampling", True), ("shift", 1.0)):
        if (found := settings.get(name, 1.0 if name == "shift" else False)) != expected:
            raise ValueError(f"{name}={found}, which must be {expected}")


def read_time_scale(settings: Mapping[str, Any]) -> float:
    """Return what the scheduler multiplies t by for the network; raises ValueError."""
    scale = settings.get("num_train_timesteps", 1000)
    if not isinstance(scale, int | float) or not 1 <= scale <= 1e6:
        raise ValueError(f"num_train_timesteps={scale}, which must be 1 to 1000000")
    return float(scale)


def check_plain(settings: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> None:
    """Refuse settings that move the levels elsewhere than the pipeline's, `but` for some; raises ValueError."""
    for name, expected in PLAIN.items():
        if name not in but and (found := settings.get(name, expected)) != expected:
            raise ValueError(f"{name}={found}, which must be {expected}")
    read_time_scale(settings)
