"""How much of the machine ingest puts to use: `presto ingest` against decoding and encoding bare, times cores."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch

from pipelines.presets.resolve import PRESETS
from presto_core.audio.chunks import decode
from presto_core.audio.load_codec import load_codec
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage
from presto_core.text.encoder import load_text_encoder
from tests.bench.data.finding import Finding

RATE_HZ, CLIP_SECONDS = 44100, 180  # as long as music is
FEW, MANY, BARE = 4, 156, 24  # clips
ENCODE_BATCH = 16  # windows
WANTED = 0.8
REPOSITORY = Path(__file__).parents[3]


def measure(root: str, *, preset: str, rounds: int, scratch: Path) -> tuple[list[Finding], list[str]]:
    """Clips a second of the command, less what it takes for a few, against one process that does the bare work."""
    few, many = scratch / "few", scratch / "many"
    write_clips(few, FEW)
    write_clips(many, MANY)
    config = load_config(IngestStage, preset, [], preset_folder=PRESETS)
    ingest_seconds(f"{root}/first", few, preset=preset, scratch=scratch)  # a fresh installation's first start is slow
    starts, wholes, bares = [], [], []
    for i in range(rounds):
        starts.append(ingest_seconds(f"{root}/few-{i}", few, preset=preset, scratch=scratch))
        wholes.append(ingest_seconds(f"{root}/many-{i}", many, preset=preset, scratch=scratch))
        bares.append(bare_seconds(config, sorted(many.glob("*.wav"))[:BARE]))
    start, whole = median(starts), median(wholes)
    cores, hours = os.cpu_count() or 1, CLIP_SECONDS / 3600
    rate = (MANY - FEW) * hours / ((whole - start) / 3600) / cores
    bare = BARE * hours / (median(bares) / 3600)
    finding = Finding("ingest, all cores", rate, "h/core-h", "decode + encode, one process", bare, wanted=WANTED)
    note = (
        f"ingest: {rate:.0f} hours of audio a core-hour on {cores} cores; {MANY} clips of {CLIP_SECONDS} s "
        f"({whole:.0f} s) less {FEW} ({start:.0f} s), which leaves out the start of Ray and of its encoders; "
        f"medians of {rounds} rounds; bare reads the same files from disk"
    )
    return [finding], [note]


def write_clips(folder: Path, count: int) -> None:
    """Stereo clips of tones over soft noise, each with a caption beside it."""
    folder.mkdir(parents=True)
    seconds = np.arange(CLIP_SECONDS * RATE_HZ, dtype=np.float32) / RATE_HZ
    noise = 0.01 * np.random.default_rng(0).standard_normal((len(seconds), 2)).astype(np.float32)
    for i in range(count):
        tone = 0.3 * np.sin(2 * np.pi * (110 + 20 * i) * seconds, dtype=np.float32)
        soundfile.write(folder / f"clip-{i:04d}.wav", tone[:, None] + noise, RATE_HZ, subtype="PCM_16")
        (folder / f"clip-{i:04d}.txt").write_text(f"a lone tone of {110 + 20 * i} Hz in soft noise, take {i}")
    os.sync()  # else they are written to disk meanwhile


def ingest_seconds(root: str, source: Path, *, preset: str, scratch: Path) -> float:
    """Wall time of the command; its MLflow database lies in the scratch folder."""
    settings = [f"storage.root={root}", f"ingest.source={json.dumps([str(source)])}"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli.main", "ingest", preset, *settings],
        cwd=scratch,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"presto ingest failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - began


@torch.inference_mode()
def bare_seconds(config: IngestStage, files: list[Path]) -> float:
    """Decode, cut and encode sound and caption of each file, with nothing kept."""
    torch.set_num_threads(1)
    codec = load_codec(config.codec.kind, path=config.codec.path or None)
    text = load_text_encoder(config.text.kind, path=config.text.path, max_tokens=config.text.max_tokens)
    length = config.ingest.chunk_frames * codec.hop
    text.encode(["first use"])
    began = time.perf_counter()
    for file in files:
        samples = decode(io.BytesIO(file.read_bytes()), sample_rate_hz=codec.sample_rate_hz)
        windows = np.lib.stride_tricks.sliding_window_view(samples, length)[::length]
        cut = torch.from_numpy(np.array(windows))[:, None]
        for part in cut.split(ENCODE_BATCH):
            codec.encode(part)
        text.encode([file.with_suffix(".txt").read_text()])
    return time.perf_counter() - began
