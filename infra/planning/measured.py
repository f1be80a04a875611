"""Read what `presto benchmark --json` measured of a device, for `presto plan --measured`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.train.device_specs import DEVICES, Device, device_from_torch_name
from presto_core.errors import UserError

LAUNCH_BOUND = 2.0  # network time over that of its launches, below which products do not decide it


@dataclass(frozen=True)
class MeasuredDevice:
    """Measured constants of a device.

    Attributes:
        path: the file they are from.
        device: name of the GPU or processor.
        is_gpu: whether it is a GPU; `threads` are those of a CPU.
        matmul_flops: FLOP/s of a large matrix product, by whether it is in bf16.
        copy_bytes_s: bytes/s that a copy in memory reads and writes.
        launch_s: seconds from one small operation to the next.
        network_share: fraction of a large product's FLOP/s that products in the network reached; None if launches
            decided its time, or if it was an imported one.
    """

    path: str
    device: str
    is_gpu: bool
    threads: int
    matmul_flops: dict[bool, float]
    copy_bytes_s: float
    launch_s: float
    network_share: float | None


def read_measured_device(path: str, *, traffic: float) -> MeasuredDevice:
    """Read a file that `presto benchmark --json` wrote.

    Args:
        traffic: times that activations pass through memory in a forward pass, an assumption of the plan.

    Raises:
        UserError: there is no such file, or it is not one of `presto benchmark --json`.
    """
    body = _read_json(path)
    launch_s = 1e-6 * _positive(body, path, "launch_us")
    copy_bytes_s = 1e9 * _positive(body, path, "copy_gb_per_s")
    peak = 1e9 * _positive(body, path, "matmul_peak_gflops")
    return MeasuredDevice(
        path=path,
        device=str(_find(body, path, "hardware.device")),
        is_gpu=_find(body, path, "device_type") != "cpu",
        threads=int(_positive(body, path, "hardware.threads")),
        matmul_flops={False: peak, True: 1e9 * _positive(body, path, "matmul_bf16_peak_gflops")},
        copy_bytes_s=copy_bytes_s,
        launch_s=launch_s,
        network_share=_find_network_share(body, path, peak, copy_bytes_s / traffic, launch_s),
    )


def check_measured_device(measured: MeasuredDevice, device: Device | None, *, threads: int) -> None:
    """Check that measurements are of the device to plan for (None: a CPU), with as many threads.

    Raises:
        UserError: they are not. A GPU that no data sheet is known of fits any, which then gives memory and links.
    """
    wanted, fitting = device.name if device else "here", "here"
    if measured.is_gpu:
        known = device_from_torch_name(measured.device)
        fitting = known.name if known else (device.name if device else f"of similar memory: {', '.join(DEVICES)}")
    if wanted != fitting:
        raise UserError(f"--measured {measured.path} was made on {measured.device}; plan it with --device {fitting}")
    if not measured.is_gpu and measured.threads != threads:
        raise UserError(
            f"--measured {measured.path} was made with {measured.threads} threads and cluster.torch_threads={threads}; "
            f"set cluster.torch_threads={measured.threads}, or run presto benchmark --threads {threads}"
        )


def _find_network_share(
    body: dict[str, Any], path: str, peak: float, activation_bytes_s: float, launch_s: float
) -> float | None:
    """Return the share of `peak` at which the network's products fit its measured time."""
    network_s = 1e-3 * _positive(body, path, "ms.network.p50")
    if not _find(body, path, "cost_model") or network_s < LAUNCH_BOUND * launch_s * _positive(body, path, "launches"):
        return None
    # network_s = FLOPs / (share peak) + bytes / activation_bytes_s, as a plan composes it
    flops, kept = (_positive(body, path, f"cost_model.{name}") for name in ("flops", "activation_bytes"))
    products_s = network_s - kept / activation_bytes_s
    return min(1.0, flops / (peak * products_s)) if products_s > 0 else 1.0


def _read_json(path: str) -> dict[str, Any]:
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--measured {path} cannot be read: {error.strerror}") from None
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UserError(f"--measured {path} is not JSON of presto benchmark; run presto benchmark --json > {path}")
    return body


def _find(body: dict[str, Any], path: str, key: str) -> Any:
    """Return the value of a dotted key; raises UserError if there is none."""
    value: Any = body
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"--measured {path} has no {key}; make it again with presto benchmark --json > {path}")
        value = value[part]
    return value


def _positive(body: dict[str, Any], path: str, key: str) -> float:
    value = _find(body, path, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(
            f"--measured {path} has {key}={value!r}, which is not a positive number; "
            f"make it again with presto benchmark --json > {path}"
        )
    return float(value)
