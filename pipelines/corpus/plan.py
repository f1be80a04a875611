"""Plan the clips of a corpus: settings → picklable specs with source, seed and split.

With otherwise equal settings, a longer corpus starts with the clips of the shorter one.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from pipelines.corpus.index import RepertoireEntry, find_entries, find_entry
from pipelines.corpus.score import Piece
from pipelines.corpus.styles import STYLES

Split = Literal["train", "held_out"]
REAL_COLLECTIONS = ("bach", "ryan")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSettings:
    """The settings that determine the content of a corpus; ValueError for a value out of range."""

    minutes: float = 60.0
    seed: int = 0
    held_out_fraction: float = 0.1
    real_fraction: float = 0.5
    clip_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("minutes", "held_out_fraction", "real_fraction", "clip_seconds"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 240 and 240.0 give the same corpus
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes} must be greater than 0")
        if not 5.0 <= self.clip_seconds <= 120.0:
            raise ValueError(f"clip_seconds={self.clip_seconds} must be between 5 and 120")
        if not 0.0 <= self.held_out_fraction <= 0.5:
            raise ValueError(f"held_out_fraction={self.held_out_fraction} must be between 0 and 0.5")
        if not 0.0 <= self.real_fraction <= 1.0:
            raise ValueError(f"real_fraction={self.real_fraction} must be between 0 and 1")

    @property
    def num_clips(self) -> int:
        return math.ceil(round(self.minutes * 60 / self.clip_seconds, 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceSpec:
    """One clip to make; `work` is a file of a real collection or a style of the composer."""

    piece_id: str
    collection: str
    work: str
    composition_id: str
    seed: int
    split: Split
    clip_seconds: float


def _unit_hash(text: str) -> float:
    """Hash a text to a number in [0, 1), equal on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def choose_held_out_tunes(entries: tuple[RepertoireEntry, ...], fraction: float) -> frozenset[str]:
    """Return the melody families of the held-out split: the first `fraction` in hash order, at least one."""
    tunes = sorted({f"{entry.collection}/{entry.tune}" for entry in entries}, key=_unit_hash)
    return frozenset(tunes[: max(1, round(fraction * len(tunes)))] if fraction > 0 else ())


def _iter_real_works(collection: str, settings: CorpusSettings, split: Split) -> Iterator[tuple[str, str]]:
    """Yield (file, composition id) of one split, reshuffled on every pass through the collection."""
    entries = find_entries(collection)
    held_out = choose_held_out_tunes(entries, settings.held_out_fraction)
    pool = [e for e in entries if (f"{collection}/{e.tune}" in held_out) == (split == "held_out")]
    for turn in count():
        order = random.Random(f"{settings.seed}/{collection}/{split}/{turn}").sample(pool, len(pool))
        yield from ((entry.file, f"{collection}/{entry.tune}") for entry in order)


def _iter_composed_works(settings: CorpusSettings, split: Split) -> Iterator[tuple[str, str]]:
    """Yield (style, composition id): every style once per round, with the next number that hashes into the split."""
    numbers = {style: count(settings.seed * 1_000_000) for style in STYLES}
    for turn in count():
        styles = random.Random(f"{settings.seed}/styles/{split}/{turn}").sample(list(STYLES), len(STYLES))
        for style in styles:
            ids = (f"composed/{style}/{number}" for number in numbers[style])
            is_held_out = split == "held_out"
            yield style, next(i for i in ids if (_unit_hash(i) < settings.held_out_fraction) == is_held_out)


def _is_turn(index: int, fraction: float) -> bool:
    """Return whether item `index` is in an evenly spread fraction f: of the first n items, round(n·f) are."""
    return math.floor(round((index + 1) * fraction + 0.5, 9)) > math.floor(round(index * fraction + 0.5, 9))


def _choose_collection(index: int, settings: CorpusSettings, seen: Counter[str]) -> str:
    if not _is_turn(index, settings.real_fraction):
        return "composed"
    return min(REAL_COLLECTIONS, key=lambda name: seen[name])


def plan_clips(settings: CorpusSettings) -> list[PieceSpec]:
    """List the clips, alternating between composed and real ones; every collection contributes held-out clips."""
    splits: tuple[Split, Split] = ("train", "held_out")
    works = {("composed", split): _iter_composed_works(settings, split) for split in splits}
    works |= {(name, split): _iter_real_works(name, settings, split) for name in REAL_COLLECTIONS for split in splits}
    seen: Counter[str] = Counter()
    specs = []
    for index in range(settings.num_clips):
        collection = _choose_collection(index, settings, seen)
        split: Split = "held_out" if _is_turn(seen[collection], settings.held_out_fraction) else "train"
        work, composition_id = next(works[collection, split])
        specs.append(
            PieceSpec(
                piece_id=f"{collection}-{index:05d}",
                collection=collection,
                work=work,
                composition_id=composition_id,
                seed=settings.seed * 1_000_000 + index,
                split=split,
                clip_seconds=settings.clip_seconds,
            )
        )
        seen[collection] += 1
    return specs


def make_piece(spec: PieceSpec) -> Piece:
    """Make the music of a spec; errors of single real files propagate, and `make_clip` skips these files."""
    from pipelines.corpus.composer import compose
    from pipelines.corpus.orchestrate import ARRANGERS

    if spec.collection == "composed":
        number = int(spec.composition_id.rsplit("/", 1)[1])
        return compose(seed=number, style_name=spec.work, seconds=spec.clip_seconds)
    entry = find_entry(spec.collection, spec.work)
    return ARRANGERS[spec.collection](entry, seed=spec.seed, seconds=spec.clip_seconds)
