"""Decoding by the mel codec, one thread: `python -m tests.bench.codec_decode [--against CHECKOUT]`.

It is compared with the Fourier transforms that it needs, which bound it from below, and with the codec of another
checkout of this repository, such as `git worktree add ../before COMMIT`; all are measured in turn, in CPU time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from pipelines.console import make_console
from presto_core.audio.mel_codec.griffin_lim import BLOCK_FRAMES
from presto_core.audio.mel_codec.mel_pca import MelPcaCodec
from presto_core.metrics.latency import describe_hardware


def load_codec_of(checkout: Path) -> Any:
    """Load the shipped codec with the code of another checkout, beside that of this one."""
    own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "presto_core"}
    sys.path.insert(0, str(checkout))
    try:
        module = import_module("presto_core.audio.mel_codec.mel_pca")
        if not Path(module.__file__ or "").is_relative_to(checkout):
            raise SystemExit(f"{checkout} has no presto_core; name a checkout of this repository")
        return module.MelPcaCodec.load()
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.partition(".")[0] == "presto_core"]:
            del sys.modules[name]
        sys.modules.update(own)


def make_transforms(codec: MelPcaCodec, latent_frames: int) -> Callable[[], object]:
    """Return a call of the transforms alone: one inverse, and one of each kind per iteration of Griffin-Lim."""
    mel, iterations = codec.settings, codec.decoder.settings.iterations
    blocks = range(0, latent_frames * mel.frames_per_latent + 1, BLOCK_FRAMES)
    samples, spectra = torch.randn(BLOCK_FRAMES, mel.n_fft), torch.randn(BLOCK_FRAMES, mel.bins, dtype=torch.complex64)

    def transform() -> None:
        for _ in blocks:
            for _ in range(iterations):
                torch.fft.rfft(samples)
            for _ in range(iterations + 1):
                torch.fft.irfft(spectra, n=mel.n_fft)

    return transform


def measure(calls: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return the median CPU milliseconds of each call; all are called once before, and then in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            began = time.thread_time()
            call()
            if number:
                times[name].append(1e3 * (time.thread_time() - began))
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of the clip")
    parser.add_argument("--rounds", type=int, default=25, help="measurements of each thing; their median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec = MelPcaCodec.load()
    frames = round(arguments.seconds * codec.sample_rate_hz / codec.hop)
    latents = torch.randn(1, codec.channels, frames, generator=torch.Generator().manual_seed(0))
    calls = {"decode": lambda: codec.decode(latents), "its Fourier transforms": make_transforms(codec, frames)}
    if arguments.against:
        other = load_codec_of(arguments.against.resolve())
        calls[f"decode of {arguments.against.name}"] = lambda: other.decode(latents)
        difference = (codec.decode(latents) - other.decode(latents)).abs().max()
    found = measure(calls, rounds=arguments.rounds)
    title = f"{arguments.seconds:g} s, {describe_hardware()['device']}, 1 thread, median of {arguments.rounds}"
    table = Table("what", "CPU ms", "decode / this", title=title)
    for name, ms in found.items():
        table.add_row(name, f"{ms:.1f}", f"{found['decode'] / ms:.2f}")
    console = make_console()
    console.print(table)
    if arguments.against:
        console.print(f"largest difference of a sample: {float(difference):g}")


if __name__ == "__main__":
    main()
