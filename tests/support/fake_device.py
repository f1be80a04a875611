"""A CUDA device without a GPU: shapes and devices are computed, numbers are not; every wait of the host is recorded.

Under `FakeTensorMode`, an operation on tensors of two devices raises. What would make the host wait for the device is
recorded with the place that calls it, and answered with a stand-in, so that a whole training step runs: reads
(`.item()`, `.tolist()`, `.cpu()`, `bool(tensor)`, `.nonzero()`), and copies to the device that are not `non_blocking`
(`.to(device)`, `torch.tensor(…, device=…)`, an index on the host), which PyTorch ends with a wait for the stream. A
mask as an index raises. There is no autograd for such tensors: `backward` is recorded only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda", 0)
SCALARS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: 0.0 if t.dtype.is_floating_point else 0,
    "__bool__": lambda t: False,
    "__int__": lambda t: 0,
    "__float__": lambda t: 0.0,
    "__index__": lambda t: 0,
}
DRAWS = ("rand", "randn", "randint", "randperm")
COPIES = ("tensor", "as_tensor", "new_tensor")  # of numbers of the host
INDEXING = ("__getitem__", "__setitem__", "index_put", "index_put_")


class CudaGenerator(torch.Generator):
    """A generator that names the device it was made for; a real one of CUDA needs a GPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> CudaGenerator:
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.named = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.named


@dataclass
class HostSyncs(TorchFunctionMode):
    """Records waits of the host for the device as `file.py:function method`, and backward passes."""

    syncs: Counter[str] = field(default_factory=Counter)
    backward_passes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "backward" or func is torch.autograd.grad:
            self.backward_passes += 1
            inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
            return None if name == "backward" else tuple(map(torch.zeros_like, _as_tuple(inputs)))
        if name in DRAWS and "generator" in kwargs:
            _check_generator(kwargs.pop("generator"), kwargs.get("device"))
        if name == "numpy" and first is not None:
            return np.zeros(tuple(first.shape), np.float32)
        if name == "pin_memory":  # of the host too, but it needs a driver
            return first
        if not any(map(_is_on_device, tree_leaves((args, kwargs)))):
            with unset_fake_temporarily():  # numbers of the host stay numbers
                return func(*args, **kwargs)
        if name in COPIES and not isinstance(args[0 if first is None else -1], FakeTensor):
            self._record("copy")
        if first is None or first.device.type != "cuda":
            to_device = name == "to" and any(map(_is_on_device, (*args[1:], kwargs.get("device"))))
            if to_device and not kwargs.get("non_blocking"):
                self._record("copy")
            return func(*args, **kwargs)
        if name in INDEXING:
            self._record_index(args[1])
        if name in SCALARS:
            self._record(name)
            return SCALARS[name](first)
        if name == "nonzero":
            self._record(name)
            return torch.zeros(1, first.ndim, dtype=torch.int64, device=first.device)
        if name == "cpu" or (name == "to" and any(_is_cpu(a) for a in (*args[1:], kwargs.get("device")))):
            self._record("cpu")
        return func(*args, **kwargs)

    def read_list(self, tensor: Tensor) -> Any:
        """Stands in for `tensor.tolist()`: one wait, where a fake tensor's own method reads element by element."""
        if tensor.device.type == "cuda":
            self._record("tolist")
        return _make_list(tensor)

    def _record_index(self, index: Any) -> None:
        for leaf in tree_leaves(index):
            if isinstance(leaf, Tensor) and leaf.ndim and leaf.device.type == "cpu":
                self._record("copy")

    def _record(self, name: str) -> None:
        self.syncs[f"{_find_caller()} {name}"] += 1


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostSyncs]:
    """Compute on a fake CUDA device in the context: real tensors become fake ones where they meet it."""
    monkeypatch.setattr(torch, "Generator", CudaGenerator)
    with FakeTensorMode(allow_non_fake_inputs=True), HostSyncs() as syncs:
        monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: syncs.read_list(tensor))
        yield syncs


def move_to_cuda(module: nn.Module) -> Any:
    """Replace the real weights of a module by fake ones on the device; inside `fake_cuda`."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(value.detach().to(CUDA), requires_grad=value.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(CUDA)
    return module


def _check_generator(generator: torch.Generator, device: Any) -> None:
    wanted = torch.device(device or "cpu").type
    assert generator.device.type == wanted, f"a generator of {generator.device} draws for {wanted}"


def _is_on_device(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return isinstance(leaf, FakeTensor)
    return isinstance(leaf, torch.device) and leaf.type == "cuda"


def _as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _is_cpu(argument: Any) -> bool:
    return isinstance(argument, str | torch.device) and torch.device(argument).type == "cpu"


def _make_list(tensor: Tensor) -> Any:
    """Zeros, and of integers 1, 2, 1, 2, … as budgets of blocks."""
    shape = tuple(tensor.shape)
    if tensor.dtype.is_floating_point:
        return np.zeros(shape).tolist()
    return (np.arange(tensor.numel()).reshape(shape) % 2 + 1).tolist()


def _find_caller() -> str:
    frame: Any = sys._getframe(2)
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("presto_core", "pipelines"):
            return f"{path.name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
