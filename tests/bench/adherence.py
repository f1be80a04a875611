"""How often real music has the tempo, key and instruments of its own caption, and of captions of other tracks.

`OMP_NUM_THREADS=1 python -m tests.bench.adherence <folder>`, made by `presto corpus build` with clips of 30 s.
Tracks are halved: settings of the estimators were chosen on the development half of such a corpus.
"""

from __future__ import annotations

import argparse
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines.corpus.folder import read_manifest
from presto_core.diffusion.conditioning import key_index
from presto_core.metrics.adherence.key import estimate_key
from presto_core.metrics.adherence.score import (
    ClipMeasurements,
    PromptTargets,
    estimate_adherence_intervals,
    measure_adherence,
)
from presto_core.metrics.adherence.tempo import estimate_tempo
from presto_core.metrics.embedders.musicnn import MusicnnEmbedder

STARTS_S, LENGTHS_S = (3, 12, 22), (6.04, 27.0)
NAMES = ("tempo_hits", "tempo_octave_errors", "key_hits", "key_score", "tag_hits")
Audio = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    folder = parser.parse_args().corpus
    torch.set_num_threads(1)
    rows = read_manifest(folder)
    halves = np.array([zlib.crc32(row["composition_id"].encode()) % 2 for row in rows])
    for seconds in LENGTHS_S:
        starts = STARTS_S if seconds < 8 else STARTS_S[:1]
        for half, label in ((0, "development"), (1, "test")):
            chosen = [row for row, of in zip(rows, halves) if of == half]
            _print(f"{label} half, {seconds:g} s", *_measure(folder, chosen, starts, seconds))


def _measure(
    folder: Path, rows: list[dict[str, Any]], starts: tuple[int, ...], seconds: float
) -> tuple[ClipMeasurements, PromptTargets, NDArray[np.floating]]:
    """Estimates of windows of each piece, their captions, and the tempi of librosa's own beat tracker."""
    embedder = MusicnnEmbedder()
    tempi, keys, tags, tracked, spent_s = [], [], [], [], 0.0
    for row in rows:
        audio, rate_hz = soundfile.read(folder / row["file"], dtype="float32")
        for start in starts:
            clip = audio[start * rate_hz :][: round(seconds * rate_hz)]
            begin = time.process_time()
            tempi.append(estimate_tempo(clip, rate_hz=rate_hz))
            keys.append(estimate_key(clip, rate_hz=rate_hz))
            spent_s += time.process_time() - begin
            low = torch.from_numpy(soxr.resample(clip, rate_hz, embedder.sample_rate_hz))
            tags.append(embedder.embed_with_tags(low[None])[1].mean(1)[0].numpy())
            tracked.append(_track_beats(clip, rate_hz))
    print(f"{spent_s / len(tempi) * 1e3:.0f} ms of CPU per clip of {seconds:g} s for tempo and key")
    repeated = [row for row in rows for _ in starts]
    prompts = PromptTargets(
        captions=[row["caption"] for row in repeated],
        tempo_bpm=np.array([row["tempo_bpm"] for row in repeated], dtype=float),
        key=np.array([key_index(row["key"]) for row in repeated]),
        groups=np.unique([row["composition_id"] for row in repeated], return_inverse=True)[1],
    )
    found = ClipMeasurements(np.array(tempi, dtype=float), np.array(keys, dtype=float), np.stack(tags))
    return found, prompts, np.array(tracked)


def _track_beats(clip: Audio, rate_hz: int) -> float:
    """Tempo in beats per minute by librosa's beat tracker as it comes."""
    import librosa

    waveform = soxr.resample(clip, rate_hz, 22_050)
    return float(np.ravel(librosa.beat.beat_track(y=waveform, sr=22_050)[0])[0])


def _print(title: str, clips: ClipMeasurements, prompts: PromptTargets, tracked: NDArray[np.floating]) -> None:
    values = measure_adherence(clips, prompts)
    ends = estimate_adherence_intervals(clips, prompts, confidence=0.95)
    plain = measure_adherence(ClipMeasurements(tracked, clips.key), prompts)
    table = Table(title=f"{title}: {len(prompts.captions)} clips of {len(set(prompts.groups))} tracks")
    for column in ("share", "own caption", "95 %", "captions of other tracks"):
        table.add_column(column)
    for name in NAMES:
        low, high = ends[name]
        table.add_row(name, f"{values[name]:.3f}", f"{low:.3f} to {high:.3f}", f"{values[f'{name}_shuffled']:.3f}")
    for name in NAMES[:2]:
        table.add_row(f"{name}, librosa", f"{plain[name]:.3f}", "", f"{plain[f'{name}_shuffled']:.3f}")
    Console(width=100).print(table)
    print({name: int(value) for name, value in values.items() if name.endswith(("_prompts", "_unclear"))})


if __name__ == "__main__":
    main()
