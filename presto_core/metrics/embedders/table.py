"""The table of embedders by the `kind` in `evaluate.embedders`; the only list of them.

A new embedder needs one file that implements `Embedder` and one row here. A row imports its package only when it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from presto_core.config.evaluation import EmbedderConfig, EmbedderKind
from presto_core.metrics.embedders.embedder import Embedder, EmbedderError

Loader = Callable[[str, torch.device | str], Embedder]
"""Local folder or hub id of the weights, and the device that computes -> the embedder."""


def _load_musicnn(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.musicnn import MusicnnEmbedder

    return MusicnnEmbedder(device=device)


def _load_clap(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.clap import ClapEmbedder

    return ClapEmbedder(path, device=device)


def _load_vggish(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.vggish import VggishEmbedder

    return VggishEmbedder(path, device=device)


def _load_spectrogram_transformer(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.spectrogram_transformer import SpectrogramTransformerEmbedder

    return SpectrogramTransformerEmbedder(path, device=device)


def _load_encodec(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.codec_latents import EncodecEmbedder

    return EncodecEmbedder(path, device=device)


def _load_dac(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.codec_latents import DacEmbedder

    return DacEmbedder(path, device=device)


def _load_mert(path: str, device: torch.device | str) -> Embedder:
    from presto_core.metrics.embedders.mert import MertEmbedder

    return MertEmbedder(path, device=device)


EMBEDDERS: dict[EmbedderKind, Loader] = {
    "musicnn": _load_musicnn,
    "clap": _load_clap,
    "vggish": _load_vggish,
    "ast": _load_spectrogram_transformer,
    "encodec": _load_encodec,
    "dac": _load_dac,
    "mert": _load_mert,
}


def load_embedder(config: EmbedderConfig, *, device: torch.device | str = "cpu") -> Embedder:
    """Load the embedder of a config section; it computes on `device`.

    Raises:
        EmbedderError: its weights are missing, damaged, of another class, or pickled.
    """
    return EMBEDDERS[config.kind](config.path, device)


def load_embedders(configs: Sequence[EmbedderConfig], *, device: torch.device | str = "cpu") -> list[Embedder]:
    """Load several embedders, whose names are the keys of a report.

    Raises:
        EmbedderError: as `load_embedder`, or two of them have one name.
    """
    embedders = [load_embedder(config, device=device) for config in configs]
    names = [e.name for e in embedders]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise EmbedderError(f"two embedders are named {repeated[0]}; rename the folder of one, or leave one out")
    return embedders
