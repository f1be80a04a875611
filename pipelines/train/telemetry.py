"""Metrics and log of a training worker: rank 0 sets Prometheus gauges for each row it reports, never inside a step.

Ray exports the gauges of each node as `ray_<name>` for Prometheus to scrape. All ranks log JSON lines to Ray's session
folder (`logs/train/ray-train-app-worker-*.log`); none reaches the user's console.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import psutil
import torch

from pipelines.cluster.shutdown import StoppedError
from pipelines.redaction import redact
from pipelines.train.device_specs import device_from_torch_name
from presto_core.errors import UserError
from presto_core.training.parallel import Parallel

PEAK_TFLOPS_VAR = (
    "PRESTO_PEAK_TFLOPS"  # of one device at the run's precision, if pipelines.train.device_specs does not list it
)

# name -> description; each has the tags TAGS, and those of EXTRA_TAGS
GAUGES = {
    "presto_step": "Steps done",
    "presto_total_steps": "Total steps of the run",
    "presto_samples_per_second": "Rows of the global batch per second",
    "presto_step_seconds": "Seconds per step, averaged since the last row, by phase",
    "presto_data_wait_seconds": "Seconds per step that a worker waits for data",
    "presto_mfu": "Model FLOP/s over the devices' peak FLOP/s, without recomputation",
    "presto_memory_bytes": "Peak bytes allocated on the GPU of rank 0, or its resident memory if it has none",
    "presto_checkpoint_timestamp_seconds": "Unix time of the last complete checkpoint, or of the run's start",
    "presto_loss": "Losses of the last row, by name",
    "presto_workers": "Workers of the run",
}
TAGS = ("run_id", "stage")
EXTRA_TAGS = {"presto_step_seconds": ("phase",), "presto_loss": ("loss",), "presto_memory_bytes": ("device",)}

log = logging.getLogger("presto")


@dataclass
class Telemetry:
    """Gauges and log of one worker of a run in a Ray session.

    Attributes:
        row_flops: model FLOPs per row of the batch, averaged over steps; 0 if unknown.
        bf16: whether networks run in bf16.
        tf32: whether fp32 matrix products may run in TF32.
    """

    run_id: str
    stage: str
    parallel: Parallel
    global_batch_size: int
    total_steps: int
    row_flops: float
    bf16: bool
    tf32: bool = False
    gauges: dict[str, Any] = field(default_factory=dict)
    peak_flops_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.parallel.rank == 0:
            from ray.util.metrics import Gauge

            tags = {name: (*TAGS, *EXTRA_TAGS.get(name, ())) for name in GAUGES}
            self.gauges = {name: Gauge(name, what, tag_keys=tags[name]) for name, what in GAUGES.items()}
            self.peak_flops_per_s = find_peak_flops(self.parallel.device, bf16=self.bf16, tf32=self.tf32)
            self._set_gauge("presto_checkpoint_timestamp_seconds", time.time())
        self.log("worker starts", values={"workers": self.parallel.world_size, "device": str(self.parallel.device)})

    def on_row(self, step: int, metrics: dict[str, float]) -> None:
        """Set the gauges from a row of rank 0; a row without metrics marks the start of the run."""
        self._set_gauge("presto_step", step)
        self._set_gauge("presto_total_steps", self.total_steps)
        self._set_gauge("presto_workers", self.parallel.world_size)
        self._set_gauge("presto_memory_bytes", *_measure_memory(self.parallel.device))
        for name, value in self._compute_rates(metrics).items():
            self._set_gauge(name, value)
        for name, value in metrics.items():
            if name.endswith("step_seconds"):
                self._set_gauge(
                    "presto_step_seconds", value, phase=name.removesuffix("step_seconds").rstrip("_") or "all"
                )
            elif name.endswith("_loss"):
                self._set_gauge("presto_loss", value, loss=name)
        self.log("row" if metrics else "starts", values={"step": step, **metrics})

    def _compute_rates(self, metrics: dict[str, float]) -> dict[str, float]:
        seconds = metrics.get("step_seconds", 0.0)
        if seconds <= 0:
            return {}
        rows = self.global_batch_size / seconds
        rates = {
            "presto_samples_per_second": rows,
            "presto_data_wait_seconds": metrics["data_wait_fraction"] * seconds,
        }
        if self.peak_flops_per_s and self.row_flops:
            rates["presto_mfu"] = rows * self.row_flops / (self.peak_flops_per_s * self.parallel.world_size)
        return rates

    def on_checkpoint(self, step: int) -> None:
        """Record that the checkpoint of a step is complete."""
        self._set_gauge("presto_checkpoint_timestamp_seconds", time.time())
        self.log("checkpoint", values={"step": step})

    @contextmanager
    def log_failures(self) -> Iterator[None]:
        """Log an exception that leaves the block; a requested stop is a warning, not an error."""
        try:
            yield
        except StoppedError as stop:
            self.log(str(stop), logging.WARNING)
            raise
        except Exception as error:
            self.log(f"{type(error).__name__}: {error}", logging.ERROR)
            raise

    def log(
        self, message: str, level: int = logging.INFO, *, values: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        """Write a record to the log of this worker."""
        context = {"run_id": self.run_id, "stage": self.stage, "rank": self.parallel.rank}
        log.log(
            level, redact(message), extra=context | {name.replace("/", "_"): value for name, value in values.items()}
        )

    def _set_gauge(self, name: str, value: float, device: str = "", **tags: str) -> None:
        if name in self.gauges:
            tag_values = {"run_id": self.run_id, "stage": self.stage} | ({"device": device} if device else {}) | tags
            self.gauges[name].set(value, tags=tag_values)


def find_peak_flops(device: torch.device, *, bf16: bool, tf32: bool = False) -> float:
    """Return the peak FLOP/s of a worker's device, from the environment or as published; 0 if unknown.

    Raises:
        UserError: `PRESTO_PEAK_TFLOPS` is not a number above zero.
    """
    text = os.environ.get(PEAK_TFLOPS_VAR, "")
    if text:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if value <= 0:
            raise UserError(f"{PEAK_TFLOPS_VAR}={text!r} is not a number of TFLOP/s above zero; fix it, or unset it")
        return value * 1e12
    if device.type != "cuda":
        return 0.0
    specs = device_from_torch_name(torch.cuda.get_device_name(device))
    return specs.peak_flops(bf16=bf16, tf32=tf32) if specs else 0.0


def _measure_memory(device: torch.device) -> tuple[float, str]:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)), "cuda"
    return float(psutil.Process().memory_info().rss), "cpu"
