"""Turn long audio down only where it is loud, part by part: a peak in the fifth minute leaves the first as it is.

A limiter that looks ahead: its gain falls before a peak and rises after it, both slowly, and is never above what a
sample allows. How the audio is cut into parts changes no bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from presto_core.audio.loudness import CEILING_DBFS

BLOCKS_PER_SECOND = 50
REACH = 50  # blocks over which the gain rests, and then rises or falls
LOOK_AHEAD_SECONDS = (2 * REACH + 1) / BLOCKS_PER_SECOND

Audio = npt.NDArray[np.float32]


class RunningLimiter:
    """Takes consecutive parts of audio [A, n] and gives them back limited, two seconds later.

    With r_k dB the most that block k may be raised (never above 0), q_k = min(r_(k-1), r_k) at the edge before it,
    m_k = min q over k - R ... k + R and w a Hann window that sums to 1, the gain at an edge is
    s_k = sum_j w_j m_(k+j) for j in -R ... R. All those m have seen q_k, so s_k <= q_k; within a block the gain goes
    from one edge to the next on a line, below r_k as both ends are.
    """

    def __init__(self, rate_hz: int, *, ceiling_dbfs: float = CEILING_DBFS) -> None:
        self._block, self._ceiling = max(1, rate_hz // BLOCKS_PER_SECOND), 10 ** (ceiling_dbfs / 20)
        window = np.hanning(2 * REACH + 3)[1:-1]
        self._weights = (window / window.sum()).tolist()
        self._waiting: list[Audio] = []  # samples that have no gain yet
        self._allowed: list[float] = []  # r of every block so far
        self._rests: dict[int, float] = {}  # m of edges
        self._given = 0  # blocks given back
        self._edge_db = 0.0  # gain at the end of what was given back
        self.lowest_db = 0.0

    def push(self, part: Audio) -> Audio:
        """Take the next part; return what is ready, which may be nothing."""
        self._waiting = [np.concatenate([*self._waiting, part], axis=1)]
        self._measure(whole_blocks=True)
        return self._give(len(self._allowed) - 2 * REACH - 1)

    def finish(self) -> Audio:
        """Return the rest."""
        self._measure(whole_blocks=False)
        return self._give(len(self._allowed))

    def _measure(self, *, whole_blocks: bool) -> None:
        held = self._waiting[0] if self._waiting else np.zeros((1, 0), np.float32)
        count = held.shape[1] / self._block
        last = self._given + (math.floor(count) if whole_blocks else math.ceil(count))
        for number in range(len(self._allowed), last):
            start = (number - self._given) * self._block
            peak = float(np.abs(held[:, start : start + self._block]).max(initial=0.0))
            self._allowed.append(20 * math.log10(self._ceiling / peak) if peak > self._ceiling else 0.0)

    def _give(self, upto: int) -> Audio:
        """Return the blocks before `upto` that were not given back."""
        if not self._waiting or upto <= self._given:
            return np.zeros((len(self._waiting[0]) if self._waiting else 1, 0), np.float32)
        if not self._given:
            self._edge_db = self._find_gain_db(0)
        edges = [self._edge_db, *(self._find_gain_db(edge) for edge in range(self._given + 1, upto + 1))]
        audio, self._waiting = self._cut((upto - self._given) * self._block)
        self._given, self._edge_db = upto, edges[-1]
        self.lowest_db = min(self.lowest_db, *edges)
        if not any(edges):
            return audio
        factors = 10 ** (np.array(edges) / 20)
        share = (np.arange(self._block) / self._block)[None]
        curve = factors[:-1, None] * (1 - share) + factors[1:, None] * share
        limited = (audio * curve.reshape(-1)[: audio.shape[1]]).astype(np.float32)
        return limited.clip(-self._ceiling, self._ceiling)  # rounding

    def _cut(self, samples: int) -> tuple[Audio, list[Audio]]:
        held = self._waiting[0]
        return held[:, :samples], [held[:, samples:]]

    def _find_gain_db(self, edge: int) -> float:
        """Return s of an edge; edges beyond the ends ask for nothing."""
        around = range(edge - REACH, edge + REACH + 1)
        if not any(self._allowed[max(0, edge - 2 * REACH - 1) : edge + 2 * REACH + 1]):
            return 0.0
        return math.fsum(weight * self._rest_db(at) for weight, at in zip(self._weights, around))

    def _rest_db(self, edge: int) -> float:
        """Return m of an edge: the least that the blocks beside the edges within reach allow."""
        if edge not in self._rests:
            blocks = self._allowed[max(0, edge - REACH - 1) : max(0, edge + REACH + 1)]
            self._rests[edge] = min(blocks, default=0.0)
        return self._rests[edge]


def limit_running(audio: Audio, *, rate_hz: int) -> tuple[Audio, float]:
    """Limit all of the audio [A, N] at once; return it and the lowest gain in dB."""
    limiter = RunningLimiter(rate_hz)
    return np.concatenate([limiter.push(audio), limiter.finish()], axis=1), limiter.lowest_db
