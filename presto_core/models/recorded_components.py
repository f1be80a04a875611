"""Load the codec and text encoder that an artifact records, from the package or from folders that the user names.

An artifact's record says which weights by their digest. A folder that it names is never opened: anyone may have written
the record, and a loader that reads the folder's files would do what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from presto_core.artifacts.store import StoreError
from presto_core.audio.codec import Codec
from presto_core.audio.load_codec import load_codec
from presto_core.config.sections import StorageConfig
from presto_core.text.encoder import ENCODERS, TextEncoder, load_text_encoder

MAX_TOKENS = 100_000


@dataclass(frozen=True)
class OwnFolders:
    """The user's copies of weights that are not in the package; empty if there are none.

    Attributes:
        codec: `storage.codec_folder`.
        text: `storage.text_folder`.
    """

    codec: str = ""
    text: str = ""

    @staticmethod
    def from_config(storage: StorageConfig) -> OwnFolders:
        return OwnFolders(storage.codec_folder, storage.text_folder)


def load_recorded_codec(
    record: object, folders: OwnFolders = OwnFolders(), *, device: torch.device | str = "cpu"
) -> Codec:
    """Load the codec that a data set or model records, to compute on a device.

    Raises:
        StoreError: the record is damaged; or the codec encodes differently from that of the record.
        UserError: its weights are in a folder of their own, and none is given.
    """
    fields = _check_record("codec", record)
    path = _choose_folder("codec", fields, folders.codec) or None
    codec = load_codec(fields["kind"], path=path, device=device)
    _check_digest("codec", fields, [codec.digest])
    return codec


def load_recorded_encoder(
    record: object,
    folders: OwnFolders = OwnFolders(),
    *,
    frames: int | None = None,
    device: torch.device | str = "cpu",
) -> TextEncoder:
    """Load the text encoder that a data set or model records; raises as `load_recorded_codec` does.

    Args:
        frames: latent frames of every clip, which the prompt of some teachers names.
    """
    fields = _check_record("text", record)
    max_tokens = fields.get("max_tokens")
    if type(max_tokens) is not int or not 0 < max_tokens <= MAX_TOKENS or fields["kind"] not in ENCODERS:
        raise _make_damaged_error("text", record)
    path = _choose_folder("text", fields, folders.text)
    encoder = load_text_encoder(fields["kind"], path=path, max_tokens=max_tokens, frames=frames, device=device)
    _check_digest("text", fields, [encoder.digest, encoder.former_digest])
    return encoder


def _check_record(component: str, record: object) -> Mapping[str, Any]:
    if not isinstance(record, Mapping) or not all(isinstance(record.get(key), str) for key in ("kind", "digest")):
        raise _make_damaged_error(component, record)
    return record


def _make_damaged_error(component: str, record: object) -> StoreError:
    return StoreError(f"the artifact's record of its {component} is damaged: {str(record)[:80]!r}; do not use it")


def _choose_folder(component: str, record: Mapping[str, Any], own: str) -> str:
    """The user's folder if the record has weights of its own; empty for those of the package."""
    if not record.get("path"):
        return ""
    if not own:
        raise StoreError(
            f"the artifact was made with {record['kind']} weights that are not in the package (digest "
            f"{record['digest'][:12]}, then in {str(record['path'])[:80]!r}); name your copy of that folder: "
            f"storage.{component}_folder=…"
        )
    return own


def _check_digest(component: str, record: Mapping[str, Any], digests: list[str]) -> None:
    if record["digest"] not in digests:
        name = "text encoder" if component == "text" else component
        raise StoreError(
            f"the {name} {record['kind']} (digest {digests[0][:12]}) is not the one that the artifact was made with "
            f"({record['digest'][:12]}); set storage.{component}_folder to that one, or ingest and train again"
        )
