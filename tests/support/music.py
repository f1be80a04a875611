"""Sound files for tests: notes of random pitch, and unusual or broken files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ, HOP, FRAMES = 44100, 2048, 8
WINDOW = FRAMES * HOP  # 0.37 s


def notes(windows: float, *, seed: int, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Return half-second notes of random pitch."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(windows * WINDOW * rate_hz / RATE_HZ)) / rate_hz
    hz = 110 * 2 ** (rng.integers(0, 36, 1 + int(2 * time[-1])) / 12)
    return 0.3 * np.sin(2 * np.pi * hz[(2 * time).astype(int)] * time)


def write_music(folder: Path) -> None:
    """Write eight files in several formats: five with music, three unusable."""
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "bright.wav", notes(4.5, seed=1), RATE_HZ)
    sidecar = {"caption": "bright notes", "tempo_bpm": 120, "key": "A minor", "licence": "CC BY 4.0"}
    (folder / "bright.json").write_text(json.dumps(sidecar))
    stereo = np.stack([notes(3.5, seed=2, rate_hz=22050), notes(3.5, seed=3, rate_hz=22050)], axis=1)
    soundfile.write(folder / "b.flac", stereo, 22050)
    soundfile.write(folder / "sub/waltz.wav", notes(2.1, seed=4), RATE_HZ, subtype="FLOAT")
    (folder / "sub/waltz.txt").write_text("a slow waltz\n")
    soundfile.write(folder / "half.wav", np.concatenate([notes(2, seed=5), np.zeros(2 * WINDOW)]), RATE_HZ)
    soundfile.write(folder / "the_end-2.wav", notes(5, seed=6), RATE_HZ)
    (folder / "broken.wav").write_bytes(b"no music " * 100)
    soundfile.write(folder / "short.wav", notes(0.5, seed=7), RATE_HZ)
    soundfile.write(folder / "silent.wav", np.zeros(3 * WINDOW), RATE_HZ)


def write_awkward_but_good(folder: Path) -> dict[str, int]:
    """Write unusual but valid files; return name -> windows in each."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, int] = {}

    def write(name: str, windows: float, *, rate_hz: int = RATE_HZ, channels: int = 1, **how: str) -> None:
        audio = notes(windows, seed=len(made), rate_hz=rate_hz)
        soundfile.write(folder / name, np.stack([audio] * channels, axis=1), rate_hz, **how)
        made[name] = int(windows)

    write("eight bits.wav", 3.5, subtype="PCM_U8")
    write("floats.wav", 3.5, subtype="FLOAT")
    write("doubles.wav", 2.5, subtype="DOUBLE")
    write("seven.wav", 3.5, channels=7)
    write("old.wav", 4.5, rate_hz=11025)
    write("studio.flac", 2.5, rate_hz=192_000)
    write("vorbis.ogg", 2.5)
    write("opus.opus", 2.5, rate_hz=48_000, format="OGG", subtype="OPUS")
    write("layer3.mp3", 2.5)
    write("Žluťoučký kůň 馬 🎵.wav", 2.5)
    write("two\nlines\t.wav", 2.5)
    write("really a flac.wav", 2.5, format="FLAC")
    return made


def write_bad(folder: Path) -> dict[str, tuple[str, str]]:
    """Write unusable files; return name -> the phase they fail in, and a part of the error message."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "whole.flac", notes(3, seed=50), RATE_HZ)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "whole.flac").unlink()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.mp3").write_text("this is no music at all\n" * 40)
    spoiled = notes(3, seed=51)
    spoiled[WINDOW:] = np.nan
    soundfile.write(folder / "nan.wav", spoiled, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "silence.wav", np.zeros(3 * WINDOW), RATE_HZ)
    soundfile.write(folder / "short.wav", notes(0.5, seed=52), RATE_HZ)
    soundfile.write(folder / "bad sidecar.wav", notes(2, seed=53), RATE_HZ)
    (folder / "bad sidecar.json").write_text('{"key": "H sharp"}')
    return {
        "cut.flac": ("decode", ""),
        "empty.wav": ("decode", "zero bytes"),
        "text.mp3": ("decode", "not readable as audio"),
        "nan.wav": ("decode", "NaN or infinite"),
        "silence.wav": ("decode", "holds silence only"),
        "short.wav": ("decode", "shorter than one window"),
        "bad sidecar.wav": ("describe", "key 'H sharp'"),
    }
