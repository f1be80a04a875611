"""The codec that a `codec` section names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from presto_core.audio.codec import Codec, CodecError


def load_codec(kind: str, *, path: str | None = None, device: torch.device | str = "cpu") -> Codec:
    """The codec a `codec` section names.

    Args:
        kind: `mel_pca` (shipped weights, or a folder that `presto codec fit` made) or `oobleck`.
        path: local folder of the weights; None for those shipped with the package.
        device: where `oobleck` computes. Audio and latents may come from anywhere and return on the CPU, as those of
            `mel_pca`, which computes there only.

    Raises:
        CodecError: no such kind, its weights are missing or damaged, or there is no such device.
    """
    if kind not in CODECS:
        raise CodecError(f"codec.kind={kind} is not known; choose one of {', '.join(sorted(CODECS))}")
    return CODECS[kind](path, device)


def _load_mel_pca(path: str | None, device: torch.device | str) -> Codec:
    from presto_core.audio.mel_codec.mel_pca import MelPcaCodec

    return MelPcaCodec.load(path)


def _load_oobleck(path: str | None, device: torch.device | str) -> Codec:
    from presto_core.audio.oobleck import OobleckCodec

    return OobleckCodec.load(path, device=device)


CODECS: dict[str, Callable[[str | None, torch.device | str], Codec]] = {
    "mel_pca": _load_mel_pca,
    "oobleck": _load_oobleck,
}
