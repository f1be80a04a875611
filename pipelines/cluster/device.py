"""Where a worker computes: the device of the settings, as far as Ray has reserved one for it."""

from __future__ import annotations

import sys

import torch

from presto_core.config.device_name import AUTO
from presto_core.config.sections import ClusterConfig
from presto_core.device import DeviceError, resolve_device

SETTING = "cluster.device"


def select_worker_device(config: ClusterConfig) -> torch.device:
    """Return the device of an actor, or of this process if it maps items itself.

    `auto` is a GPU if there is one; with Ray, only if `gpus_per_worker` reserves one, since others may use it.

    Raises:
        DeviceError: the device is not there.
    """
    if config.device == AUTO and is_in_ray() and not config.gpus_per_worker:
        return torch.device("cpu")
    return resolve_device(config.device, setting=SETTING)


def check_reserved(config: ClusterConfig) -> None:
    """Check that workers of Ray will see the device that they are to compute on.

    Raises:
        DeviceError: no GPU is reserved for them, or Ray cannot hand out such a device.
    """
    if config.device == "mps":
        raise DeviceError(
            f"{SETTING}=mps works without Ray only; set cluster.num_workers=0 and cluster.data_workers=1, or use "
            f"{SETTING}=cpu"
        )
    if config.device.startswith("cuda") and not config.gpus_per_worker:
        raise DeviceError(
            f"{SETTING}={config.device}, but cluster.gpus_per_worker=0 reserves no GPU for Ray's workers; set it to 1, "
            "or to a part such as 0.5, or run without Ray: cluster.num_workers=0 cluster.data_workers=1"
        )


def is_in_ray() -> bool:
    """Whether this process has a Ray session or is part of one; does not import Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
