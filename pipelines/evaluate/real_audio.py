"""The audio of real music in an evaluation: recordings, the codec's output, and what the fitness test makes of that."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.data.shards import FullRows
from pipelines.evaluate.originals import Originals
from pipelines.evaluate.systems import Treatment
from presto_core.audio.codec import Codec

NOISE_SNR_DB = 10.0


@torch.inference_mode()
def make_real_audio(
    rows: FullRows, treatment: Treatment, codec: Codec, *, generator: torch.Generator, originals: Originals | None
) -> Tensor:
    """Return the audio of rows of a data set, [B, A, N], on the codec's device.

    Args:
        treatment: see `EvaluatedSystem`.
        generator: lives on the codec's device.
        originals: the recordings, for the treatment `original`.

    Raises:
        UserError: a recording has changed.
    """
    if treatment == "original":
        assert originals is not None
        recorded = torch.from_numpy(originals.read(rows.track.tolist(), rows.start_seconds.tolist())).to(codec.device)
        # a codec of two channels takes mono music too
        return recorded.expand(-1, codec.audio_channels, -1) if recorded.shape[1] == 1 else recorded
    latents = torch.tensor(np.asarray(rows.latents, dtype=np.float32)).to(codec.device)
    if treatment == "shuffle":
        latents = latents[:, :, torch.randperm(latents.shape[2], generator=generator, device=codec.device)]
    audio = codec.decode(latents)
    if treatment == "codec":
        audio = codec.decode(codec.encode(audio))
    if treatment == "noise":
        level = audio.square().mean(dim=(1, 2), keepdim=True).sqrt() * 10 ** (-NOISE_SNR_DB / 20)
        audio = audio + level * torch.randn(audio.shape, generator=generator, device=codec.device)
    return audio
