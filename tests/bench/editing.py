"""Are seams of edits heard, and does music that goes on keep its tempo? On held-out music, beside floors and controls.

`OMP_NUM_THREADS=1 python -m tests.bench.editing <folder>`, made by `presto corpus build` with clips of 12 s or more:
the first 6 s of clips of the test split are edited, and what follows in the recording is the ceiling.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from rich.table import Table

from pipelines.console import make_console
from pipelines.corpus.folder import read_manifest
from pipelines.inference.generator import Generator, Sound, load_generator
from presto_core.audio.seam import Seam, measure_floor, measure_seam
from presto_core.audio.splice import SEAM_SECONDS, insert
from presto_core.metrics.adherence.score import TEMPO_TOLERANCE
from presto_core.metrics.adherence.tempo import estimate_tempo

SOURCE_SECONDS, ADDED_SECONDS, REGION = 6.0, 5.0, (2.0, 4.0)
FLOOR_MOMENTS = 8  # per clip
Audio = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default="presto-tiny-s")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = load_generator(arguments.model, device="cpu")
    rows = _choose_rows(arguments.corpus, arguments.clips)
    seams, tempi, begin = defaultdict[str, list[Seam]](list), defaultdict[str, list[float]](list), time.process_time()
    for number, row in enumerate(rows):
        measured = _edit_one(generator, arguments.corpus / row["file"], row, arguments.steps, arguments.seed + number)
        for name, found in measured[0]:
            seams[name] += found
        for name, audio in measured[1]:
            rate_hz = generator.model.codec.sample_rate_hz
            tempi[name].append(estimate_tempo(audio.mean(axis=0), rate_hz=rate_hz) or np.nan)
        print(f"{number + 1} of {len(rows)} clips, {time.process_time() - begin:.0f} s of CPU", flush=True)
    title = f"{arguments.model}, {arguments.steps} steps, {len(rows)} clips, seed {arguments.seed}"
    _print_seams(title, seams)
    _print_tempi(title, tempi, np.array([row["tempo_bpm"] for row in rows], dtype=float))


def _choose_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Clips of the test split that are long enough, each of another composition."""
    least = SOURCE_SECONDS + ADDED_SECONDS
    rows = [row for row in read_manifest(folder) if row["split"] == "test" and row["duration_seconds"] >= least]
    return list({row["composition_id"]: row for row in rows}.values())[:count]


def _edit_one(
    generator: Generator, file: Path, row: dict[str, Any], steps: int, seed: int
) -> tuple[list[tuple[str, list[Seam]]], list[tuple[str, Audio]]]:
    """Seams by what they are of, and the parts whose tempi count."""
    rate_hz = generator.model.codec.sample_rate_hz
    audio, file_rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    assert file_rate_hz == rate_hz, f"{file} has {file_rate_hz} Hz"
    mono = audio.mean(axis=1, dtype=np.float32)[None]
    cut = round(SOURCE_SECONDS * rate_hz)
    source = Sound(np.ascontiguousarray(mono[:, :cut]), rate_hz)
    true_rest = mono[:, cut : cut + round(ADDED_SECONDS * rate_hz)]
    prompt, plain = row["caption"], f"{row['genre']} for {row['ensemble']}"
    how: dict[str, Any] = {"steps": steps, "seed": seed}
    extended = generator.extend(source, prompt, seconds=ADDED_SECONDS, **how)
    untimed = generator.extend(source, plain, seconds=ADDED_SECONDS, **how)
    region = generator.edit(source, prompt, regions=[REGION], **how)
    (free,) = generator.generate(prompt, seconds=ADDED_SECONDS, **how)
    (free_untimed,) = generator.generate(plain, seconds=ADDED_SECONDS, **how)
    loop = generator.make_loop(prompt, seconds=ADDED_SECONDS, **how)
    decoded_rest = _decode_rest(generator, mono, cut)
    free_audio = _without_fades(free.audio, rate_hz)
    seams = [
        ("music, random moments (floor)", measure_floor(mono, rate_hz=rate_hz, count=FLOOR_MOMENTS, **_fade(rate_hz))),
        ("the recording by the codec, cross-faded in (ceiling)", _splice(source, decoded_rest, rate_hz)),
        ("extend", list(extended.seams)),
        ("extend, no tempo in the prompt", list(untimed.seams)),
        ("region, both ends", list(region.seams)),
        ("free clip, cross-faded in (control)", _splice(source, free_audio, rate_hz)),
        ("free clip, hard cut (control)", _splice(source, free_audio, rate_hz, faded=False)),
        ("loops, random moments (floor)", measure_floor(loop.audio, rate_hz=rate_hz, count=FLOOR_MOMENTS)),
        ("loop, end to start", [_measure_turn(loop.audio, rate_hz)]),
        ("clip that is no loop, end to start (control)", [_measure_turn(free_audio, rate_hz)]),
    ]
    parts = [
        ("the recording itself (ceiling)", true_rest),
        ("extend, caption", extended.audio[:, cut:]),
        ("free clip, caption", free.audio),
        ("extend, no tempo in the prompt", untimed.audio[:, cut:]),
        ("free clip, no tempo in the prompt", free_untimed.audio),
    ]
    return seams, parts


def _fade(rate_hz: int) -> dict[str, int]:
    return {"crossfade": round(SEAM_SECONDS * rate_hz)}


def _decode_rest(generator: Generator, mono: Audio, cut: int) -> Audio:
    """What follows in the recording, as the codec gives it back: no model can be nearer."""
    model = generator.model
    return model.decode(model.encode(torch.from_numpy(mono)[None]))[0].numpy()[:, cut:]


def _splice(source: Sound, made: Audio, rate_hz: int, *, faded: bool = True) -> list[Seam]:
    cut = source.audio.shape[1]
    padded = np.pad(source.audio, ((0, 0), (0, made.shape[1])))
    joined = insert(padded, made, start=cut, rate_hz=rate_hz) if faded else np.concatenate([source.audio, made], axis=1)
    return [measure_seam(joined, cut, rate_hz=rate_hz, **_fade(rate_hz))]


def _without_fades(audio: Audio, rate_hz: int) -> Audio:
    edge = round(0.006 * rate_hz)
    return audio[:, edge:-edge]


def _measure_turn(audio: Audio, rate_hz: int) -> Seam:
    half = audio.shape[1] // 2
    return measure_seam(np.roll(audio, half, axis=1), half, rate_hz=rate_hz)


def _print_seams(title: str, seams: dict[str, list[Seam]]) -> None:
    table = Table(title=f"seams: {title}")
    for name in ("where", "moments", "change dB, median", "90 %", "click dB, median", "90 %"):
        table.add_column(name, justify="left" if name == "where" else "right")
    for name, found in seams.items():
        values = [*_quantiles([s.change_db for s in found]), *_quantiles([s.click_db for s in found])]
        table.add_row(name, str(len(found)), *(f"{value:.2f}" for value in values))
    make_console().print(table)


def _quantiles(values: Sequence[float]) -> Iterator[float]:
    return (float(np.quantile(values, share)) for share in (0.5, 0.9))


def _print_tempi(title: str, tempi: dict[str, list[float]], expected: NDArray[np.floating]) -> None:
    """Share of clips within 4 % of the recording's tempo; chance is the share against the tempi of other recordings."""
    table = Table(title=f"tempo of the recording kept: {title}")
    for name in ("what", "hits", "octaves allowed", "chance", "octaves allowed", "no beat"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, found in tempi.items():
        shares = [f"{value:.2f}" for value in _score(np.array(found), expected)]
        table.add_row(name, *shares, str(int(np.isnan(found).sum())))
    make_console().print(table)


def _score(found: NDArray[np.floating], expected: NDArray[np.floating]) -> list[float]:
    shares = []
    others = ~np.eye(len(found), dtype=bool)
    checks: list[Callable[[NDArray[Any]], NDArray[Any]]] = [_is_hit, _is_any_hit]
    for check in checks:
        hits = check(found[:, None] / expected[None, :])
        shares.append((float(hits.diagonal().mean()), float(hits[others].mean())))
    return [shares[0][0], shares[1][0], shares[0][1], shares[1][1]]


def _is_hit(ratio: NDArray[Any]) -> NDArray[Any]:
    return np.abs(ratio - 1) <= TEMPO_TOLERANCE


def _is_any_hit(ratio: NDArray[Any]) -> NDArray[Any]:
    return np.logical_or.reduce([_is_hit(ratio * factor) for factor in (1.0, 2.0, 3.0, 1 / 2, 1 / 3)])


if __name__ == "__main__":
    main()
