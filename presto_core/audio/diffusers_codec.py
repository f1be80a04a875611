"""A teacher's own codec: vae/ of a diffusers folder, by the class its settings name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from presto_core.audio.codec import Codec, CodecError
from presto_core.audio.longcat_vae import LongCatCodec
from presto_core.audio.oobleck import CONFIG_FILE, OobleckCodec
from presto_core.audio.same import SameCodec

AUTOENCODERS: dict[str, Callable[[Path], OobleckCodec]] = {
    "AutoencoderOobleck": OobleckCodec,
    "AutoencoderSAME": SameCodec,
    "LongCatAudioDiTVae": LongCatCodec,
}


def load_diffusers_codec(path: str | None, *, device: torch.device | str = "cpu") -> Codec:
    """Load the autoencoder in a teacher's folder, or in its vae/.

    Raises:
        CodecError: the path is empty, or holds no autoencoder of a known class.
    """
    if not path:
        raise CodecError("codec.path is empty with codec.kind=diffusers; set it to the folder of the teacher")
    folder = Path(path)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    name = _read_class(folder)
    if name not in AUTOENCODERS:
        raise CodecError(f"codec in {folder} is a {name}; use a teacher with one of {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[name](folder).to(device)


def _read_class(folder: Path) -> str:
    try:
        settings = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CodecError(f"{folder / CONFIG_FILE} cannot be read ({error}); set codec.path to a teacher") from None
    return str(settings.get("_class_name")) if isinstance(settings, dict) else "file that is no JSON object"
