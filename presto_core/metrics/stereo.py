"""Mid and side of stereo audio: quality is measured on mid first, and on side where there is one."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from presto_core.errors import UserError

SILENT_SIDE_DBFS = -60.0  # RMS; below it, a codec's or dither's noise is all that a side signal holds

Audio = TypeVar("Audio", Tensor, npt.NDArray[np.floating])


def to_mid_side(audio: Audio) -> Audio:
    """Convert left and right [..., 2, N] to mid (L + R) / 2 and side (L - R) / 2, [..., 2, N].

    The mid signal is the mono mix, at its level. The inverse is L = M + S, R = M - S; powers obey
    L^2 + R^2 = 2 (M^2 + S^2).

    Raises:
        UserError: the audio does not have two channels.
    """
    if audio.ndim < 2 or audio.shape[-2] != 2:
        raise UserError(f"audio of shape {list(audio.shape)} has no mid and side; pass two channels, [..., 2, N]")
    left, right = audio[..., 0, :], audio[..., 1, :]
    if isinstance(audio, Tensor):
        return torch.stack([(left + right) / 2, (left - right) / 2], dim=-2)
    return np.stack([(left + right) / 2, (left - right) / 2], axis=-2)


def split_channels(audio: Audio) -> dict[str, Audio]:
    """Return the mono signals of clips [B, A, N] that quality is measured on, each [B, N], by name.

    Mono has `mid` alone. Stereo has `mid` and `side`, also if the side signal of some clips is silent, so that all
    batches of a system have the same signals; a side below `SILENT_SIDE_DBFS` in all clips is not compared.

    Raises:
        UserError: the audio is not [B, 1, N] or [B, 2, N].
    """
    if audio.ndim != 3 or audio.shape[1] not in (1, 2):
        raise UserError(f"audio of shape {list(audio.shape)} cannot be evaluated; pass mono or stereo, [B, 1 or 2, N]")
    if audio.shape[1] == 1:
        return {"mid": audio[:, 0]}
    mid_side = to_mid_side(audio)
    return {"mid": mid_side[:, 0], "side": mid_side[:, 1]}
