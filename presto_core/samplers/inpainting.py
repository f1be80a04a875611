"""Start from given latents, and keep some of them: what turns any sampler of this room into an editor.

Both are plain functions of the denoiser and of the noise, so the few-step sampler and the ODE samplers edit alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget, Denoiser


def shift_noise(noise: Tensor, *, start: Tensor, sigma: float) -> Tensor:
    """Return the noise from which a sampler that begins with x = sigma z begins with x = start + sigma z.

    Audio to audio (SDEdit, Meng et al. 2022): sampling from noisy given latents keeps what is coarser than the noise.
    """
    # x = sigma (z + start / sigma)
    return noise + start / sigma


def make_inpainting_denoiser(denoise: Denoiser, known: Tensor, made: Tensor) -> Denoiser:
    """Return D'(x) = made D(x) + (1 - made) known, with which every sampler makes the frames of `made` alone.

    That is re-noising of the known frames at every level (RePaint, Lugmayr et al. 2022, eq. 8), for all samplers here:

    - ping-pong adds sigma_(i+1) eps to x0, and so to `known`: x_known = known + sigma_(i+1) eps, eps fresh;
    - Euler: x + (s' - s)(x - x0) / s = x0 + (s' / s)(x - x0). From x = known + s z and x0 = known it goes to
      known + s' z: the noise stays z. Heun's slope and DPM-Solver++'s combinations of x0 keep it as well.

    Begin with x = known + sigma z in the known frames (`shift_noise`).

    Args:
        known: [B, C, T] latents; any finite values where `made` is 1.
        made: [T] in 0 ... 1; 1 for frames to make anew, 0 for those to keep, between them for a blend.
    """

    def denoise_unknown(x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        weight = made.to(x)
        return weight * denoise(x, sigma, cond, budget) + (1 - weight) * known

    return denoise_unknown


def mask_frames(frames: int, spans: list[tuple[int, int]]) -> Tensor:
    """Return [frames] fp32: 1 in the spans (first frame, frame after the last), 0 elsewhere."""
    made = torch.zeros(frames)
    for first, stop in spans:
        made[max(first, 0) : max(stop, 0)] = 1.0
    return made
