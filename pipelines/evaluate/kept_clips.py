"""The clips that a report keeps: loudness-matched audio and a spectrogram each, of the same prompts for all systems."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import soundfile

from pipelines.data.parquet_tensors import Array
from pipelines.evaluate import plots
from pipelines.evaluate.quality import Compared
from pipelines.evaluate.rows import Prompts
from presto_core.audio.loudness import choose_target, match_loudness
from presto_core.diffusion.conditioning import key_name

SLUG_LENGTH = 80  # file systems allow 255 bytes per name


@dataclass(frozen=True)
class KeptClips:
    """Audio and pictures by file name, and what report.json holds about them."""

    files: dict[str, bytes]
    clips: list[dict[str, Any]]
    prompts: list[dict[str, Any]]
    target_lufs: float


def keep_clips(compared: Sequence[Compared], *, count: int, rate_hz: int, seed: int) -> KeptClips:
    """Match the loudness of the first `count` clips of every system and encode them.

    Args:
        compared: systems on one split, so that clip number i follows the same prompt everywhere.
    """
    kept = [(one, number, prompt) for one in compared for number, prompt in _number_clips(one, count)]
    measured = [(one.samples.clips["loudness_lufs"][n], one.samples.clips["peak"][n]) for one, n, _ in kept]
    target = choose_target([float(lufs) for lufs, _ in measured], [float(peak) for _, peak in measured])
    slugs = make_slugs([one.system.name for one in compared])
    files: dict[str, bytes] = {}
    clips = []
    for one, number, prompt in kept:
        match = match_loudness(one.samples.audio[number], rate_hz=rate_hz, target_lufs=target)
        stem = f"{slugs[one.system.name]}-{prompt}"
        audio, picture = f"audio/{stem}.wav", f"spectrograms/{stem}.png"
        files[audio] = encode_wav(match.audio, rate_hz)
        files[picture] = plots.plot_spectrogram(match.audio.mean(axis=0), rate_hz)
        clips.append(
            {
                "system": one.system.name,
                "prompt": prompt,
                "audio": audio,
                "spectrogram": picture,
                "loudness_lufs": _finite_or_none(one.samples.clips["loudness_lufs"][number]),
                "gain_db": match.gain_db,
                "limited": match.limited,
                "tempo_bpm": _finite_or_none(one.samples.clips["tempo_bpm"][number]),
                "key": _key_or_none(one.samples.clips["key"][number]),
            }
        )
    prompts = [
        describe_prompt(compared[0].prompts, n) | {"seed": seed}
        for n in range(min(count, len(compared[0].samples.audio)))
    ]
    return KeptClips(files, clips, prompts, target)


def _number_clips(one: Compared, count: int) -> list[tuple[int, int]]:
    """Clip and prompt number of each clip whose prompt is among the first `count`."""
    numbers = one.numbers or tuple(range(len(one.samples)))
    kept = enumerate(numbers[: len(one.samples.audio)])
    return [(clip, prompt) for clip, prompt in kept if prompt is not None and prompt < count]


def encode_prompts(prompts: Prompts) -> bytes:
    """All prompts as JSON lines, so that another system can make clips of them (evaluate.folders)."""
    lines = [json.dumps(describe_prompt(prompts, number), ensure_ascii=False) for number in range(len(prompts))]
    return ("\n".join(lines) + "\n").encode()


def describe_prompt(prompts: Prompts, number: int) -> dict[str, Any]:
    """Caption, tempo, key and track of one prompt; None for what it does not state."""
    key = prompts.keys[number]
    return {
        "caption": str(prompts.caption[number]),
        "tempo_bpm": prompts.tempi[number],
        "key": None if key is None else key_name(key),
        "track": str(prompts.track[number]),
    }


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _key_or_none(value: float) -> str | None:
    return key_name(int(value)) if np.isfinite(value) else None


def make_slugs(names: Sequence[str]) -> dict[str, str]:
    """Names of systems as parts of names of files: different for all, where case counts and where not."""
    slugs: dict[str, str] = {}
    for name in names:
        stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:SLUG_LENGTH].strip("-") or "system"
        taken = {slug.lower() for slug in slugs.values()}
        slugs[name] = next(slug for slug in _iterate_slugs(stem) if slug.lower() not in taken)
    return slugs


def _iterate_slugs(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}--{number}" for number in count(2))


def encode_wav(samples: Array, rate_hz: int) -> bytes:
    """Encode [A, N] in [-1, 1] as 16 bit WAV; a value beyond is a bug of the caller, who limits it."""
    stream = io.BytesIO()
    soundfile.write(stream, samples.T, rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()
