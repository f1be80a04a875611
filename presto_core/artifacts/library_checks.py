"""Check headers by the libraries that will read the files, once our own limits have passed them."""

from __future__ import annotations

import struct
import tempfile
from typing import BinaryIO

import soundfile

from presto_core.artifacts.retry import DamagedError
from presto_core.extras import MissingPackageError, import_extra


class UnsafeArtifactError(DamagedError):
    """An artifact contains something that is not allowed; the message names it and the reason.

    The one class in which all hostile content ends: other bytes than those written are damaged, whoever changed them.
    """


def check_with_safetensors(header: bytes, size: int) -> None:
    """Check that safetensors accepts a header in a file of `size` bytes; raises UnsafeArtifactError.

    The library reads files only, so it gets one with this header, and a hole where the tensors are.
    """
    from safetensors import SafetensorError, safe_open

    with tempfile.NamedTemporaryFile(prefix="presto-", suffix=".safetensors") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(size)
        file.flush()
        try:
            with safe_open(file.name, framework="numpy"):
                pass
        except SafetensorError as error:
            raise UnsafeArtifactError(f"safetensors cannot read its header: {_shorten(error)}") from None


def check_with_soundfile(stream: BinaryIO, size: int) -> None:
    """Check what libsndfile reads in the headers: samples that the file's bytes hold, as no compressed format does."""
    stream.seek(0)
    with soundfile.SoundFile(stream) as sound:
        if sound.subtype not in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
            raise UnsafeArtifactError(f"its samples are coded as {sound.subtype}; use PCM or float")
        if sound.frames * sound.channels > size:
            raise UnsafeArtifactError(f"it claims {sound.frames} samples in {size} bytes")


def check_with_pillow(stream: BinaryIO) -> None:
    """Check that Pillow accepts a PNG's header, where it is installed: nothing else here draws one.

    It decodes nothing; `formats.check_png` has counted what the compressed parts give.
    """
    try:
        image = import_extra("PIL.Image", "checking a picture")
    except MissingPackageError:
        return
    stream.seek(0)
    try:
        with image.open(stream, formats=["PNG"]):
            pass
    except (image.UnidentifiedImageError, SyntaxError, image.DecompressionBombError) as error:
        raise UnsafeArtifactError(f"Pillow cannot read its header: {_shorten(error)}") from None


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
