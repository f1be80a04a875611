"""The device that a name stands for: `auto`, `cpu`, `cuda[:n]` or `mps`, with one message for each that cannot be used.

Every tensor of a call lives on one device: that of the model. A name is resolved once, where a command or a Python call
takes it; what is passed on is a `torch.device`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from presto_core.config.device_name import AUTO, check_device_name
from presto_core.errors import UserError

GIB = 2**30
_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+) (KiB|MiB|GiB)")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB}


class DeviceError(UserError):
    """A device is unknown, not there, or cannot do what is asked of it; the message has its name and the fix."""


def resolve_device(name: torch.device | str, *, setting: str = "device") -> torch.device:
    """Return the device that a setting names; `auto` is the first GPU if PyTorch finds one, else the CPU.

    `auto` does not choose `mps`, on which nothing has been measured: name it.

    Raises:
        DeviceError: the name is unknown, or this machine does not have the device.
    """
    text = str(name)
    if text == "meta":  # shapes without numbers, for counting
        return torch.device(text)
    try:
        check_device_name(text)
    except ValueError as error:
        raise DeviceError(f"{setting}={text}: {error}") from None
    if text == AUTO:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if text == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"{setting}=mps, but torch {torch.__version__} finds no Apple GPU; use auto or cpu")
    if text.startswith("cuda"):
        return _find_cuda(text, setting)
    return torch.device(text)


def _find_cuda(text: str, setting: str) -> torch.device:
    index = int(text.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = "no CUDA GPU" if torch.version.cuda else "no CUDA, since this build has none"
        raise DeviceError(
            f"{setting}={text}, but torch {torch.__version__} finds {built}; use auto or cpu, or install an NVIDIA "
            "driver and PyTorch's CUDA build (in a Ray worker, set cluster.gpus_per_worker too)"
        )
    if index >= count:
        raise DeviceError(
            f"{setting}={text}, but there are {count} GPUs, counted from 0; use cuda:0 to cuda:{count - 1}"
        )
    return torch.device("cuda", index)


def send(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Return values of the host, a tensor or whole numbers, on a device, without waiting for what a GPU still computes.

    CUDA takes the values from pageable memory before the call returns, so that they may change afterwards; on other
    devices the call waits for the copy.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.int64)
    return tensor.to(device, non_blocking=device.type == "cuda")


def check_autocast(device: torch.device, dtype: torch.dtype | None, *, setting: str = "loop.autocast") -> None:
    """Check that a device computes in a reduced precision.

    Raises:
        DeviceError: it does not; None, which is fp32, is always fine.
    """
    if dtype is None or device.type in ("cpu", "meta"):
        return
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise DeviceError(
            f"{setting}=bf16, but {name} ({device}) has no bfloat16 (NVIDIA Ampere and later do); use {setting}=none"
        )
    if device.type == "mps":
        raise DeviceError(f"{setting}=bf16 is not supported on device mps; use {setting}=none")


@contextmanager
def allow_tf32(enabled: bool) -> Iterator[None]:
    """Compute fp32 matrix products of CUDA devices in TF32 in the context, if enabled; the process's setting returns.

    Convolutions are not concerned: cuDNN may use TF32 by PyTorch's default. Nothing changes on other devices.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def explain_memory(device: torch.device, *, setting: str, value: float, least: float) -> Iterator[None]:
    """Turn a failed allocation in the context into one message with what would fit.

    Args:
        setting: what to lower, such as `evaluate.batch_size`.
        value: its present value; memory is taken to grow with it in proportion, beside what was in use before.
        least: its lowest value that makes sense.

    Raises:
        DeviceError: the device has too little memory.
    """
    used = torch.cuda.memory_allocated(device) if _is_cuda_started(device) else 0
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(_explain(str(error), device, used, setting=setting, value=value, least=least)) from None


def _explain(message: str, device: torch.device, used: int, *, setting: str, value: float, least: float) -> str:
    total, peak = 0, 0
    if _is_cuda_started(device):
        total = torch.cuda.mem_get_info(device)[1]
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
    fits = estimate_fit(message, value=value, used=used, peak=peak, total=total)
    size = f" of {total / GIB:.1f} GiB" if total else ""
    if fits < least:
        return f"{setting}={value:g} does not fit into the memory of {device}{size}, nor would {least:g}; use another"
    problem = f"{setting}={value:g} does not fit into the memory of {device}{size}"
    return f"{problem}; {setting}={fits:g} would by estimate, or use another device, such as cpu"


def estimate_fit(message: str, *, value: float, used: int, peak: int, total: int) -> float:
    """Return the value of a setting that would fit: at most half of the one that did not, rounded down.

    What was needed is at least `peak` and what the message says was tried, so what fits is at most in proportion.
    """
    found = _TRIED.search(message)
    needed = peak + (float(found[1]) * _UNITS[found[2]] if found else 0.0) - used
    share = 0.8 * (total - used) / needed if total and needed > 0 else 0.5  # 0.8: fragments, and other libraries
    fits = value * min(0.5, max(share, 0.0))
    return float(int(fits)) if fits >= 1 else round(fits, 2)


def _is_cuda_started(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_initialized()
