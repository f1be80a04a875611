"""A small report folder in the format of `presto evaluate`: synthesised clips, real pictures, made-up numbers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipelines.evaluate import plots

RATE_HZ = 44100
SECONDS = 2.5
HOSTILE_CAPTION = "<script>alert(1)</script> & \"quotes\" 'single' <img src=x onerror=alert(2)>"
HOSTILE_NAME = 'musicgen "large" <b>'
PROMPTS: list[dict[str, Any]] = [
    {"caption": "calm piano with soft strings, slow and warm", "tempo_bpm": 72.0, "key": "A minor", "track": "t-0017"},
    {
        "caption": "driving rock with electric guitar, bass and drums",
        "tempo_bpm": 140.0,
        "key": "E major",
        "track": "t-2",
    },
    {"caption": HOSTILE_CAPTION, "tempo_bpm": 96.0, "key": "C major", "track": 'x" onload="alert(3)'},
    {
        "caption": "an unusually long caption: " + "a slow waltz for clarinet, accordion and upright bass, " * 4,
        "tempo_bpm": None,
        "key": None,
        "track": "t-9",
    },
]
# name, label, role, steps, sampler, chosen, mmd, precision, latency of one clip in ms
SYSTEMS: list[tuple[str, str, str, int, str, bool, float, float, float]] = [
    ("teacher heun 18", "teacher", "teacher", 18, "heun", True, 0.0121, 0.412, 980.0),
    ("teacher euler 4", "teacher", "teacher", 4, "euler", False, 0.0954, 0.087, 112.0),
    ("L heun 18", "L", "layers", 18, "heun", True, 0.0139, 0.391, 720.0),
    ("S 4", "S", "generator", 4, "ping_pong", True, 0.0152, 0.377, 110.0),
    ("LS 4", "LS", "generator", 4, "ping_pong", True, 0.0164, 0.365, 83.0),
    ("LS 1", "LS", "generator", 1, "ping_pong", False, 0.0417, 0.212, 21.0),
    (HOSTILE_NAME, HOSTILE_NAME, "folder", 0, "", True, 0.0388, 0.154, 0.0),
]
MODELS = {"teacher": "teacher", "L": "layers", "S": "compared_0", "LS": "generator"}
REAL = "real music"


def make_report_folder(folder: Path, *, seconds: float = SECONDS) -> Path:
    """Write a report of format 2 (without embeddings) into a folder, and return it."""
    result = make_result()
    for number, clip in enumerate(result["clips"]):
        samples = synthesize(midi=48 + 7 * clip["prompt"] + 2 * (number % 7), seconds=seconds, seed=number)
        (folder / clip["audio"]).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / clip["audio"], samples, RATE_HZ, subtype="PCM_16")
        (folder / clip["spectrogram"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / clip["spectrogram"]).write_bytes(plots.plot_spectrogram(samples, RATE_HZ))
    for name, png in draw_plots().items():
        (folder / name).write_bytes(png)
    (folder / "report.json").write_text(json.dumps(result, indent=2))
    return folder


def make_result() -> dict[str, Any]:
    """The content of report.json."""
    embedders = [
        {"kind": "musicnn", "name": "musicnn-mtt-penultimate", "digest": "ebb341494c65ee10d3bc", "dim": 200},
        {"kind": "clap", "name": "clap-laion", "digest": "0123456789abcdef0123", "dim": 512},
    ]
    systems = [make_row(*system) for system in SYSTEMS]
    return {
        "format": 2,
        "split": "held_out",
        "notes": [
            "data set has no test split: its held-out rows choose and report",
            "fd: 96 clips for 200 dimensions; the covariance is singular <b>below 2 D</b>",
        ],
        "samples": 96,
        "seed": 7,
        "clip_seconds": SECONDS,
        "sample_rate_hz": RATE_HZ,
        "embedders": embedders,
        "embedding": embedders[0],
        "embeddings": {"generated": 192, "reference": 1200},
        "decoder_digest": "0a1b2c3d4e5f60718293",
        "hardware": {"device": "a <small> machine", "torch": "2.9", "threads": 1},
        "parents": {"teacher": "1" * 16, "layers": "2" * 16, "generator": "3" * 16, "dataset": "4" * 16,
                    "compared_0": "5" * 16},
        "models": {
            "teacher": {"label": "teacher", "artifact": "1" * 16, "version": "presto-teacher@v1", "version_url": "",
                        "run_url": "http://127.0.0.1:5000/#/experiments/1/runs/abc"},
            "layers": {"label": "L", "artifact": "2" * 16, "version": "", "version_url": "", "run_url": ""},
            "compared_0": {"label": "S", "artifact": "5" * 16, "version": "", "version_url": "", "run_url": ""},
            "generator": {"label": "LS", "artifact": "3" * 16, "version": "presto-generator@v3",
                          "version_url": "http://127.0.0.1:5000/#/models/presto-generator/versions/3",
                          "run_url": "javascript:alert(4)"},
        },
        "systems": systems,
        "controls": [make_control()],
        "floor": {"mmd": 0.0009, "fd": 1.9, "precision": 0.44, "recall": 0.47, "density": 0.9, "coverage": 0.8},
        "prompts": [{**prompt, "seed": seed} for seed, prompt in enumerate(PROMPTS)],
        "clips": [make_clip(name, i) for name in (REAL, *(s[0] for s in SYSTEMS)) for i in range(len(PROMPTS))],
        "fitness": {"musicnn-mtt-penultimate": {"fd": {"fit": False, "reason": "shrinking improves it"}}},
        "budgets": {"L": {"kept": [6, 5, 4]}},
        "hidden_variance": {"teacher": VARIANCES, "L": VARIANCES},
    }  # fmt: skip


def make_row(
    name: str, label: str, role: str, steps: int, sampler: str, chosen: bool, mmd: float, precision: float, ms: float
) -> dict[str, Any]:
    """One row of the table: quality on two embedders, adherence, health, and costs where it was run."""
    quality = {"mmd": mmd, "fd": 500 * mmd, "precision": precision, "recall": 0.3, "density": 2 * precision,
               "coverage": 0.4 + precision / 2}  # fmt: skip
    costs = (
        {"nfe": steps, "blocks_run": 6 * steps, "latency_ms": ms, "total_ms": ms + 55, "speed_up": 980 / ms}
        if ms
        else {}
    )
    other = {key: value * 0.8 for key, value in quality.items()}
    return {
        "name": name, "label": f"{label} heun" if label in ("teacher", "L") else label, "role": role,
        "model": MODELS.get(label, f"folder {name}"), "steps": steps, "sampler": sampler,
        "guidance_scale": 1.0, "chosen": chosen, **quality, **costs,
        "tempo_hits": 0.61, "key_hits": 0.44, "clipped": 0.0, "silence": 0.01, "loudness_lufs": -17.5,
        "intervals": {"mmd": [mmd - 0.002, mmd + 0.002], "fd": [490 * mmd, 512 * mmd],
                      "precision": [precision - 0.03, precision + 0.03]},
        "by_embedder": {"musicnn-mtt-penultimate": quality, "clap-laion": other},
        "validation": {"mmd": mmd * 1.02},
    }  # fmt: skip


def make_control() -> dict[str, Any]:
    """Real music of the training split: the floor."""
    row = make_row("real music, train", REAL, "real", 0, "", True, 0.0009, 0.44, 0.0)
    return row | {"tempo_hits": 0.83, "key_hits": 0.71}


def make_clip(system: str, prompt: int) -> dict[str, Any]:
    slug = "".join(c if c.isalnum() else "-" for c in system).strip("-")
    true_bpm = PROMPTS[prompt]["tempo_bpm"] or 100.0
    return {
        "system": system,
        "prompt": prompt,
        "audio": f"audio/{slug}-{prompt}.wav",
        "spectrogram": f"spectrograms/{slug}-{prompt}.png",
        "loudness_lufs": -18.2,
        "gain_db": 2.3 - prompt,
        "limited": prompt == 1,
        "tempo_bpm": true_bpm * (2.0 if system == "LS 1" else 1.01),
        "key": "A minor" if system != "LS 1" else "C major",
    }


VARIANCES = [{"sigma": s, "variance": {str(b): (1 + b) * (1 + s) for b in range(6)}} for s in (0.1, 1.0, 10.0)]


@lru_cache(maxsize=1)
def draw_plots() -> dict[str, bytes]:
    result = make_result()
    return {
        "quality_vs_blocks.png": plots.plot_quality_vs_blocks(result),
        "quality_vs_time.png": plots.plot_quality_vs_time(result),
        "hidden_variance.png": plots.plot_hidden_variance(result["hidden_variance"]),
    }


def synthesize(*, midi: int, seconds: float, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A plucked chord every half second over quiet noise, [seconds x RATE_HZ], peak 0.5."""
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    decay = np.exp(-4 * (time_s % 0.5))
    tones = sum(np.sin(2 * np.pi * 440 * 2 ** ((midi + step - 69) / 12) * time_s) for step in (0, 4, 7, 12))
    noise = np.random.default_rng(seed).normal(0, 0.004, len(time_s))
    samples = decay * tones / 8 + noise
    return samples.astype(np.float32)
