"""CPU time of what an evaluation does to each clip, part by part: `python -m tests.bench.clip_costs`."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from rich.table import Table

from pipelines.console import make_console
from pipelines.evaluate.clip_measures import measure_clip
from presto_core.audio.load_codec import load_codec
from presto_core.metrics.adherence.key import estimate_key
from presto_core.metrics.adherence.tempo import estimate_tempo
from presto_core.metrics.embedders.embedder import prepare_audio
from presto_core.metrics.embedders.musicnn import MusicnnEmbedder
from presto_core.metrics.latency import describe_hardware

CLIPS, SECONDS, CALLS = 8, 6.04, 3


def measure() -> list[tuple[str, float, float]]:
    """Part, milliseconds of CPU per clip in the first call of the process, and in the fastest of the next ones."""
    codec, embedder = load_codec("mel_pca"), MusicnnEmbedder()
    rate_hz = codec.sample_rate_hz
    latents = codec.encode(make_notes(rate_hz))
    audio = codec.decode(latents)
    mono = audio[:, 0].numpy()
    parts: dict[str, Callable[[], object]] = {
        "decoding": lambda: codec.decode(latents),
        "embedding (musicnn)": lambda: embedder.embed_with_tags(prepare_audio(audio, rate_hz, embedder)),
        "tempo": lambda: [estimate_tempo(clip, rate_hz=rate_hz) for clip in mono],
        "key": lambda: [estimate_key(clip, rate_hz=rate_hz) for clip in mono],
        "all measurements of a clip": lambda: [measure_clip(clip, rate_hz=rate_hz) for clip in audio.numpy()],
    }
    return [(name, _time_call(part), min(_time_call(part) for _ in range(CALLS))) for name, part in parts.items()]


def make_notes(rate_hz: int) -> torch.Tensor:
    """[CLIPS, 1, N] notes at random pitches, two a second, with noise."""
    rng, time_s = np.random.default_rng(0), np.arange(round(SECONDS * rate_hz)) / rate_hz
    decay = np.exp(-6 * (time_s % 0.5))
    hz = 220 * 2 ** (rng.integers(0, 24, (CLIPS, 13)) / 12)[:, (2 * time_s).astype(int)]
    notes = 0.2 * decay * np.sin(2 * np.pi * hz * time_s) + 0.01 * rng.standard_normal(hz.shape)
    return torch.from_numpy(notes).float()[:, None]


def _time_call(part: Callable[[], object]) -> float:
    """Milliseconds of CPU per clip."""
    began = time.process_time()
    part()
    return (time.process_time() - began) * 1e3 / CLIPS


def main() -> None:
    torch.set_num_threads(1)
    table = Table(title=f"CPU time per {SECONDS:g} s clip, {describe_hardware()['device']}, 1 thread")
    for name in ("what", "first ms", "ms"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for what, first_ms, ms in measure():
        table.add_row(what, f"{first_ms:.1f}", f"{ms:.1f}")
    make_console().print(table)


if __name__ == "__main__":
    main()
