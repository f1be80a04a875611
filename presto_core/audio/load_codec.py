"""Load the codec that a `codec` config section names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from presto_core.audio.codec import Codec, CodecError
from presto_core.device import resolve_device


def load_codec(kind: str, *, path: str | None = None, device: torch.device | str = "cpu") -> Codec:
    """Load the codec that a `codec` config section names.

    Args:
        kind: `mel_pca` (shipped weights, or a folder written by `presto codec fit`), `oobleck`, or `diffusers`
            (the folder of a teacher, or its vae/).
        path: local folder of the weights; None for those shipped with the package.
        device: where it computes; inputs may be on any device, results are on this one.

    Raises:
        CodecError: the kind is unknown, or its weights are missing or damaged.
        DeviceError: the device is unknown or not there.
    """
    if kind not in CODECS:
        raise CodecError(f"codec.kind={kind} is unknown; choose one of {', '.join(sorted(CODECS))}")
    return CODECS[kind](path, device if isinstance(device, torch.device) else resolve_device(device))


def _load_mel_pca(path: str | None, device: torch.device) -> Codec:
    from presto_core.audio.mel_codec.mel_pca import MelPcaCodec

    return MelPcaCodec.load(path).to(device)


def _load_oobleck(path: str | None, device: torch.device) -> Codec:
    from presto_core.audio.oobleck import OobleckCodec

    return OobleckCodec.load(path).to(device)


def _load_diffusers(path: str | None, device: torch.device) -> Codec:
    from presto_core.audio.diffusers_codec import load_diffusers_codec

    return load_diffusers_codec(path, device=device)


CODECS: dict[str, Callable[[str | None, torch.device], Codec]] = {
    "mel_pca": _load_mel_pca,
    "oobleck": _load_oobleck,
    "diffusers": _load_diffusers,
}
