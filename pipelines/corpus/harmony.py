"""Chords of a key: progressions, voicings, and the best chord sequence under a given tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.corpus.keys import Key
from pipelines.corpus.patterns import Bar
from pipelines.corpus.score import Note

Progression = tuple[int, ...]

# Scale degrees of the chord roots (0 = tonic), one per bar, for the phrases of a form: `open` ends away from the
# tonic, `close` ends on it, `contrast` starts elsewhere, `loop` repeats as in popular music. The short kinds are
# two bars long, for slow music. Every loop emphasizes its tonic; otherwise one hears the relative key.
PROGRESSIONS: dict[str, dict[str, tuple[Progression, ...]]] = {
    "major": {
        "open": ((0, 4, 5, 3), (0, 3, 0, 4), (0, 5, 3, 4), (0, 2, 3, 4), (0, 3, 1, 4)),
        "close": ((0, 3, 4, 0), (5, 3, 4, 0), (0, 1, 4, 0), (0, 5, 4, 0)),
        "contrast": ((5, 2, 3, 4), (3, 0, 1, 4), (3, 4, 2, 5), (1, 4, 0, 4)),
        "loop": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 5, 4), (0, 3, 0, 4)),
        "short open": ((0, 3), (0, 5), (0, 4), (0, 1)),
        "short close": ((4, 0), (3, 0)),
        "short contrast": ((5, 3), (3, 0), (3, 4), (5, 1)),
    },
    "minor": {
        "open": ((0, 5, 2, 4), (0, 3, 0, 4), (0, 6, 5, 4), (0, 3, 2, 4)),
        "close": ((0, 3, 4, 0), (5, 3, 4, 0), (0, 4, 4, 0), (0, 5, 4, 0)),
        "contrast": ((2, 6, 0, 4), (5, 2, 3, 4), (3, 0, 3, 4), (2, 5, 3, 4)),
        "loop": ((0, 0, 5, 6), (0, 6, 5, 0), (0, 3, 0, 6), (0, 5, 3, 0), (0, 3, 6, 0)),
        "short open": ((0, 3), (0, 5), (0, 4), (0, 2)),
        "short close": ((4, 0), (3, 0)),
        "short contrast": ((5, 3), (3, 0), (2, 0), (5, 0)),
    },
}
FOLLOWS_WELL = {(3, 4), (4, 0), (1, 4), (5, 3), (0, 3), (0, 4), (3, 0), (5, 1), (0, 5), (6, 0), (2, 5), (5, 4)}
# Degrees that `harmonize` can choose, the plainest first, and the scores of plainness, succession and a tonic ending.
PLAIN_CHORDS = {"major": (0, 3, 4, 5, 1), "minor": (0, 3, 4, 5, 6, 2)}
PLAINNESS = (0.5, 0.3, 0.4, 0.0, -0.1, -0.2)
SUCCESSION_BONUS = 0.4
HOME_BONUS = 1.0


@dataclass(frozen=True, slots=True)
class Chord:
    """A chord on a scale degree of a key; in minor the dominant has the leading tone unless `is_modal`."""

    key: Key
    degree: int
    has_seventh: bool = False
    is_modal: bool = False

    @property
    def raises_seventh(self) -> bool:
        return self.key.mode == "minor" and self.degree == 4 and not self.is_modal

    def pitch_class(self, member: int) -> int:
        """Return the pitch class of the chord's root (0), third (1), fifth (2) or seventh (3)."""
        return self.key.pitch(self.degree + 2 * member, raise_seventh=self.raises_seventh) % 12

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        return tuple(self.pitch_class(member) for member in range(4 if self.has_seventh else 3))

    def scale(self, *, low: int, high: int) -> tuple[int, ...]:
        """Return the pitches in [low, high] of the scale that fits this chord (harmonic minor over the dominant)."""
        steps = [self.key.pitch(step, raise_seventh=self.raises_seventh) % 12 for step in range(7)]
        return tuple(pitch for pitch in range(low, high + 1) if pitch % 12 in steps)


def nearest_pitch(pitch_class: int, target: int) -> int:
    """Return the pitch of the class closest to `target`."""
    return target + (pitch_class - target + 6) % 12 - 6


def voice_chord(chord: Chord, *, center: int, previous: Sequence[int] | None = None) -> tuple[int, ...]:
    """Voice the chord in close position around `center`, in the inversion that moves least from `previous`."""
    lows = [low for low in range(center - 10, center + 2) if low % 12 in chord.pitch_classes]
    inversions = [tuple(sorted(low + (pc - low) % 12 for pc in chord.pitch_classes)) for low in lows]
    anchor = center if previous is None else (center + 2 * float(np.mean(previous))) / 3
    return min(inversions, key=lambda pitches: (abs(float(np.mean(pitches)) - anchor), pitches))


def make_bar(
    chord: Chord,
    following: Chord,
    *,
    index: int,
    beats: int,
    center: int,
    velocity: int,
    subdivision: int = 2,
    previous: Sequence[int] | None = None,
) -> Bar:
    """Make one bar of a layer with pitches around `center`."""
    pitches = voice_chord(chord, center=center, previous=previous)
    root = nearest_pitch(chord.pitch_class(0), center - 8)
    return Bar(
        index=index,
        start_beats=float(index * beats),
        beats=beats,
        chord=pitches,
        root=root,
        third=root + (chord.pitch_class(1) - root) % 12,
        fifth=root + (chord.pitch_class(2) - root) % 12,
        next_root=nearest_pitch(following.pitch_class(0), center - 8),
        scale=chord.scale(low=root - 12, high=root + 12),
        velocity=velocity,
        subdivision=subdivision,
    )


def make_layer_bars(
    chords: Sequence[Chord], *, beats: int, center: int, velocity: int, subdivision: int = 2
) -> list[Bar]:
    """Make one bar per chord, voiced with small movements from chord to chord."""
    bars: list[Bar] = []
    for index, chord in enumerate(chords):
        following = chords[(index + 1) % len(chords)]
        previous = bars[-1].chord if bars else None
        bars.append(
            make_bar(
                chord, following, index=index, beats=beats, center=center, velocity=velocity,
                subdivision=subdivision, previous=previous,
            )
        )  # fmt: skip
    return bars


def _fit_scores(notes: Sequence[Note], chords: Sequence[Chord], *, start: float, beats: int) -> np.ndarray:
    """Score each chord for a bar: sounding time of notes in the chord minus half of the time outside it."""
    scores = np.zeros(len(chords))
    for note in notes:
        inside = max(0.0, min(note.end_beats, start + beats) - max(note.start_beats, start))
        strong = 1.5 if abs(note.start_beats - start) < 1e-6 else 1.0
        weight = inside * strong
        scores += [weight if note.pitch % 12 in chord.pitch_classes else -0.5 * weight for chord in chords]
    return scores


def harmonize(notes: Sequence[Note], key: Key, *, beats_per_bar: int, bars: int) -> list[Chord]:
    """Find the best chord sequence under a tune, one chord per bar (Viterbi over fit, succession, tonic ending)."""
    chords = [Chord(key, degree) for degree in PLAIN_CHORDS[key.mode]]
    plain = np.array(PLAINNESS[: len(chords)])
    moves = np.array([[SUCCESSION_BONUS * ((a.degree, b.degree) in FOLLOWS_WELL) for b in chords] for a in chords])
    fits = np.stack(
        [_fit_scores(notes, chords, start=bar * beats_per_bar, beats=beats_per_bar) + plain for bar in range(bars)]
    )
    fits[-1, 0] += HOME_BONUS
    best, back = fits[0], []
    for row in fits[1:]:
        scores = best[:, None] + moves
        back.append(scores.argmax(0))
        best = scores.max(0) + row
    path = [int(best.argmax())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return [chords[state] for state in reversed(path)]
