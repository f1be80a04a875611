"""Published figures of accelerators: `presto plan` computes with them, and utilization is relative to them.

Dense matrix products, without sparsity. fp32 is without TF32, PyTorch's default. `link_gb_s` is one direction of a
GPU's connection to the others of its node (NVLink, else PCIe). Prices are assumed USD per GPU-hour on demand in late
2025; they differ by provider, region and month: set yours with `--price`.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from presto_core.config.loader import ConfigError


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        marks: part of its CUDA device name.
        source: where the figures are published.
    """

    name: str
    marks: str
    bf16_tflops: float
    fp32_tflops: float
    memory_gb: float
    memory_gb_s: float
    link_gb_s: float
    price_usd: float
    source: str

    def peak_flops(self, *, bf16: bool, tf32: bool = False) -> float:
        """Return the peak FLOP/s in bf16, or in fp32 without or with TF32."""
        if bf16:
            return 1e12 * self.bf16_tflops
        return 1e12 * (self.bf16_tflops / 2 if tf32 else self.fp32_tflops)  # tensor cores: TF32 at half of bf16's rate


DEVICES = {
    device.name: device
    for device in (
        Device("b200", "B200", 2250, 75, 180, 8000, 900, 6.0, "NVIDIA DGX B200 data sheet, divided by eight"),
        Device("h200", "H200", 989, 67, 141, 4800, 450, 4.5, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        Device("h100", "H100", 989, 67, 80, 3350, 450, 4.0, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
        Device("a100", "A100", 312, 19.5, 80, 2039, 300, 2.5, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
        Device("a100-40gb", "A100-SXM4-40GB", 312, 19.5, 40, 1555, 300, 1.8, "NVIDIA A100 data sheet, 40 GB SXM"),
        Device("l40s", "L40S", 362, 91.6, 48, 864, 32, 1.9, "NVIDIA L40S data sheet"),
        Device("a10", "A10", 125, 31.2, 24, 600, 32, 1.0, "NVIDIA A10 Tensor Core GPU data sheet"),
        Device("l4", "L4", 121, 30.3, 24, 300, 32, 0.7, "NVIDIA L4 Tensor Core GPU data sheet"),
        Device("rtx-4090", "RTX 4090", 165, 82.6, 24, 1008, 32, 0.5, "NVIDIA Ada GPU architecture whitepaper"),
    )
}


def device_by_key(name: str) -> Device:
    """Return a device of the table.

    Raises:
        ConfigError: the device is unknown; the message names the closest match.
    """
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    matches = get_close_matches(name.lower(), [*DEVICES, "here"], n=1, cutoff=0.4)
    guess = f" (did you mean {matches[0]}?)" if matches else ""
    known_names = ", ".join(DEVICES)
    raise ConfigError(
        f"device {name!r} is unknown{guess}; use one of {known_names}, or here: this machine's CPU, measured"
    )


def device_from_torch_name(cuda_name: str) -> Device | None:
    """Return the device with a CUDA name: the longest `marks` that matches, or None."""
    words = cuda_name.replace("-", " ").split()
    candidates = [
        d for d in DEVICES.values() if d.marks in cuda_name and (d.marks in words or len(d.marks.split()) > 1)
    ]
    exact = [d for d in DEVICES.values() if d.marks in cuda_name and "-" in d.marks]
    return max([*candidates, *exact], key=lambda d: len(d.marks), default=None)
