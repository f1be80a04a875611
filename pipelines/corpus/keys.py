"""Musical keys: names, scales and estimation from notes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["major", "minor"]

MAJOR_STEPS = (0, 2, 4, 5, 7, 9, 11)
MINOR_STEPS = (0, 2, 3, 5, 7, 8, 10)
LEADING_TONE = 11
MAJOR_TONICS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MINOR_TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
LETTER_PITCH = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

# Krumhansl and Kessler (1982), probe-tone ratings from tonic upwards.
MAJOR_PROFILE = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR_PROFILE = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


@dataclass(frozen=True, slots=True)
class Key:
    """A tonic pitch class (0 = C) and a mode; captions use `name`."""

    tonic: int
    mode: Mode

    @property
    def name(self) -> str:
        tonics = MAJOR_TONICS if self.mode == "major" else MINOR_TONICS
        return f"{tonics[self.tonic]} {self.mode}"

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the seven scale steps in semitones above the tonic (natural minor)."""
        return MAJOR_STEPS if self.mode == "major" else MINOR_STEPS

    def transpose(self, semitones: int) -> Key:
        return Key((self.tonic + semitones) % 12, self.mode)

    def pitch_classes(self) -> frozenset[int]:
        """Return the pitch classes of this key: the scale, and in minor the leading tone of V."""
        extra = (LEADING_TONE,) if self.mode == "minor" else ()
        return frozenset((self.tonic + step) % 12 for step in (*self.steps, *extra))

    def pitch(self, scale_step: int, *, base: int = 60, raise_seventh: bool = False) -> int:
        """Return the MIDI pitch of a scale step counted from the tonic above `base` (a C); steps can be negative."""
        octave, degree = divmod(scale_step, 7)
        raised = 1 if raise_seventh and self.mode == "minor" and degree == 6 else 0
        return base + self.tonic + 12 * octave + self.steps[degree] + raised


def parse_key(name: str) -> Key:
    """Parse `"C# minor"` to Key(1, "minor"), with flats as `b` or `-`; ValueError names the text."""
    tonic, _, mode = name.strip().partition(" ")
    if mode not in ("major", "minor") or tonic[:1].upper() not in LETTER_PITCH:
        raise ValueError(f"key {name!r} is invalid; write a tonic and a mode such as 'C# minor' or 'Eb major'")
    shift = tonic.count("#") - tonic.count("b") - tonic.count("-")
    return Key((LETTER_PITCH[tonic[0].upper()] + shift) % 12, "major" if mode == "major" else "minor")


def pitch_class_weights(pitches: Iterable[int], durations: Iterable[float]) -> np.ndarray:
    """Return the sounding time per pitch class, [12]."""
    weights = np.zeros(12)
    for pitch, duration in zip(pitches, durations, strict=True):
        weights[pitch % 12] += duration
    return weights


def estimate_key(weights: np.ndarray) -> Key:
    """Return the key whose Krumhansl-Kessler profile correlates best with pitch-class weights [12]."""
    if not weights.any():
        raise ValueError("cannot estimate the key of silence: every pitch-class weight is 0")
    modes: tuple[tuple[Mode, np.ndarray], ...] = (("major", MAJOR_PROFILE), ("minor", MINOR_PROFILE))
    scores = {
        Key(tonic, mode): float(np.corrcoef(np.roll(profile, tonic), weights)[0, 1])
        for mode, profile in modes
        for tonic in range(12)
    }
    return max(scores, key=lambda key: scores[key])
