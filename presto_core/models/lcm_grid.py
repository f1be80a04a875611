"""The few noise levels that diffusers' LCMScheduler can visit, laid out so that its step is ping-pong sampling.

LCMScheduler steps from x0 to sqrt(abar) x0 + sqrt(1 - abar) eps, which is ping-pong, at K of N integer time steps. In
the cosine schedule abar_k = cos^2(pi t_k / 2); with even times t_k = k t_1 a network whose noise embedding is made of
frequencies takes the integer k, if t_1 is multiplied into its frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

SCHEDULER = "LCMScheduler"
SIZE = 256  # bf16 holds integers up to here
STEPS = tuple(range(1, 17))  # numbers of steps whose noise levels a model card has
TOLERANCE = 1e-4  # of a time between 0 and 1, of betas that are stored in fp32


@dataclass(frozen=True)
class LcmGrid:
    """N even times in the cosine schedule, from 0 to that of the highest noise level.

    Attributes:
        sigma_max: highest noise level, at which sampling starts.
        size: N.
    """

    sigma_max: float
    size: int = SIZE

    @property
    def time_step(self) -> float:
        """t_1, the time between two entries."""
        return math.atan(self.sigma_max) * 2 / math.pi / (self.size - 1)

    @property
    def sigma_range(self) -> list[float]:
        """Lowest and highest noise level."""
        return [self.sigma_at(1), round(self.sigma_max, 6)]

    def sigma_at(self, index: int) -> float:
        return math.tan(math.pi / 2 * self.time_step * index)

    def list_indices(self, steps: int) -> list[int]:
        """Return the entries that the scheduler visits in `steps` steps, as its `set_timesteps` chooses them."""
        down = np.floor(np.linspace(0, self.size, num=steps, endpoint=False)).astype(int)
        return [self.size - 1 - int(index) for index in down]

    def list_sigmas(self, steps: int) -> list[float]:
        """Return the noise levels that the scheduler visits in `steps` steps."""
        return [self.sigma_at(index) for index in self.list_indices(steps)]

    def to_settings(self) -> dict[str, Any]:
        """Return scheduler_config.json."""
        times = self.time_step * np.arange(self.size)
        kept = np.cos(np.pi / 2 * times) ** 2
        betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
        return {
            "_class_name": SCHEDULER,
            "num_train_timesteps": self.size,
            "original_inference_steps": self.size,
            "trained_betas": [float(beta) for beta in betas],
            "prediction_type": "v_prediction",
            "timestep_scaling": 1e6,  # no mixing of the noisy latents into x0
            "clip_sample": False,
            "thresholding": False,
            "rescale_betas_zero_snr": False,
            "set_alpha_to_one": True,
        }

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> LcmGrid:
        """Read a grid from scheduler_config.json.

        Raises:
            ValueError: the scheduler does other steps than ping-pong, or its times are not even; the message says what.
        """
        for name, expected in (
            ("prediction_type", "v_prediction"),
            ("clip_sample", False),
            ("thresholding", False),
            ("rescale_betas_zero_snr", False),
        ):
            if settings.get(name, expected) != expected:
                raise ValueError(f"{name}={settings[name]}, which must be {expected}")
        betas, size = settings.get("trained_betas"), settings.get("num_train_timesteps")
        if not isinstance(betas, list) or len(betas) != size or size < 2:
            raise ValueError("no trained_betas of even times in the cosine schedule")
        if settings.get("original_inference_steps") != size or not settings.get("timestep_scaling", 10) >= 1e5:
            raise ValueError(f"original_inference_steps other than {size}, or timestep_scaling below 1e5")
        kept = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
        if not (np.isfinite(kept).all() and 0 < kept[-1] < kept[0] <= 1):
            raise ValueError("trained_betas that are no schedule")
        times = np.arccos(np.sqrt(kept)) * 2 / math.pi
        if np.abs(times - np.linspace(0, times[-1], size)).max() > TOLERANCE:
            raise ValueError("trained_betas whose times in the cosine schedule are not even")
        return LcmGrid(float(math.tan(math.pi / 2 * times[-1])), size)


@torch.no_grad()
def scale_frequencies(transformer: nn.Module, factor: float) -> None:
    """Multiply the frequencies of the noise embedding, in fp64, so that it takes times divided by the factor."""
    weight = transformer.get_parameter("time_proj.weight")
    weight.copy_(weight.double() * factor)
