"""What a device may be called: refused here, in the configuration, before a model is loaded or PyTorch imported."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

AUTO = "auto"
DEVICE_NAMES = "auto, cpu, cuda, cuda:1 (the second GPU) or mps"
_NAME = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d{0,2}))?", re.ASCII)


def check_device_name(name: str) -> str:
    """Return the name of a device.

    Raises:
        ValueError: it is none; the message has the name and what to write.
    """
    if not _NAME.fullmatch(name):
        shortened = name if len(name) <= 60 else f"{name[:60]}…"
        raise ValueError(f"device {shortened!r} is unknown; use {DEVICE_NAMES}")
    return name


DeviceName = Annotated[str, AfterValidator(check_device_name)]
