"""Plan the clips of a corpus: settings → picklable specs with source, seed and split.

Clips of test and validation come first, then `minutes` of training clips, so with otherwise equal settings, a longer
corpus starts with the clips of the shorter one. No composition is in two splits.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

from pipelines.corpus.index import RepertoireEntry, find_entries, find_entry
from pipelines.corpus.score import Piece
from pipelines.corpus.styles import STYLES

Split = Literal["train", "validation", "test"]
HeldOutSplit = Literal["test", "validation"]
HELD_OUT_SPLITS: tuple[HeldOutSplit, ...] = get_args(HeldOutSplit)
REAL_COLLECTIONS = ("bach", "ryan")
# Largest share of a collection's tunes that a split keeps from training; a split with more clips arranges a tune again.
MAX_TUNE_SHARE: dict[HeldOutSplit, float] = {"test": 0.3, "validation": 0.1}
# Split of composed pieces whose name hashes below a bound; the shipped codec was fitted to none of the test pieces.
COMPOSED_BELOW: dict[HeldOutSplit, float] = {"test": 0.1, "validation": 0.2}
SEED_OFFSET: dict[Split, int] = {"train": 0, "validation": 800_000, "test": 900_000}
POSITIONS = 3  # a shorter clip is the beginning, the middle or the end of its piece


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSettings:
    """The settings that determine the content of a corpus; ValueError for a value out of range.

    Attributes:
        minutes: music of the train split, in clips of `clip_seconds`.
        validation_tracks, test_tracks: clips of these splits, of `test_seconds` each.
    """

    minutes: float = 60.0
    seed: int = 0
    validation_tracks: int = 60
    test_tracks: int = 300
    real_fraction: float = 0.5
    clip_seconds: float = 30.0
    test_seconds: float = 12.5

    def __post_init__(self) -> None:
        for name in ("minutes", "real_fraction", "clip_seconds", "test_seconds"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 240 and 240.0 give the same corpus
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes} must be greater than 0")
        for name in ("clip_seconds", "test_seconds"):
            if not 5.0 <= (seconds := getattr(self, name)) <= 120.0:
                raise ValueError(f"{name}={seconds} must be between 5 and 120")
        for name in ("validation_tracks", "test_tracks"):
            if not 0 <= (tracks := getattr(self, name)) < 100_000:
                raise ValueError(f"{name}={tracks} must be between 0 and 99999")
        if not 0.0 <= self.real_fraction <= 1.0:
            raise ValueError(f"real_fraction={self.real_fraction} must be between 0 and 1")

    def count_clips(self, split: Split) -> int:
        """Return the number of clips of a split."""
        if split == "train":
            return math.ceil(round(self.minutes * 60 / self.clip_seconds, 6))
        return self.validation_tracks if split == "validation" else self.test_tracks


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceSpec:
    """One clip to make; `work` is a file of a real collection or a style of the composer.

    The clip is `clip_seconds` of the piece, which has `piece_seconds`, from `start_seconds` on. Clips of validation and
    test are cut from pieces as long as training clips, so that their windows begin and end as those of training do.
    """

    piece_id: str
    collection: str
    work: str
    composition_id: str
    seed: int
    split: Split
    piece_seconds: float
    start_seconds: float
    clip_seconds: float


def _unit_hash(text: str) -> float:
    """Hash a text to a number in [0, 1), equal on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_tunes(entries: tuple[RepertoireEntry, ...], clips: dict[HeldOutSplit, int]) -> dict[str, Split]:
    """Return the split of each melody family of a collection.

    Test takes the first families in hash order and validation the next ones, as many as they have clips, but at most
    MAX_TUNE_SHARE of all; train takes the rest.
    """
    tunes = sorted({f"{entry.collection}/{entry.tune}" for entry in entries}, key=_unit_hash)
    splits: dict[str, Split] = dict.fromkeys(tunes, "train")
    first = 0
    for split in HELD_OUT_SPLITS:
        taken = min(clips[split], int(MAX_TUNE_SHARE[split] * len(tunes)))
        splits.update(dict.fromkeys(tunes[first : first + taken], split))
        first += taken
    return splits


def _iter_real_works(collection: str, settings: CorpusSettings, split: Split) -> Iterator[tuple[str, str]]:
    """Yield (file, composition id) of one split, reshuffled on every pass through the collection."""
    entries = find_entries(collection)
    splits = split_tunes(
        entries, {side: _choose_collections(settings, side).count(collection) for side in HELD_OUT_SPLITS}
    )
    pool = [entry for entry in entries if splits[f"{collection}/{entry.tune}"] == split]
    for turn in count():
        order = random.Random(f"{settings.seed}/{collection}/{split}/{turn}").sample(pool, len(pool))
        yield from ((entry.file, f"{collection}/{entry.tune}") for entry in order)


def _split_composed(composition_id: str) -> Split:
    """Return the split of a composed piece, which depends on nothing but its name."""
    position = _unit_hash(composition_id)
    return next((split for split, bound in COMPOSED_BELOW.items() if position < bound), "train")


def _iter_composed_works(settings: CorpusSettings, split: Split) -> Iterator[tuple[str, str]]:
    """Yield (style, composition id): every style once per round, with the next number that hashes into the split."""
    numbers = {style: count(settings.seed * 1_000_000) for style in STYLES}
    for turn in count():
        styles = random.Random(f"{settings.seed}/styles/{split}/{turn}").sample(list(STYLES), len(STYLES))
        for style in styles:
            ids = (f"composed/{style}/{number}" for number in numbers[style])
            yield style, next(i for i in ids if _split_composed(i) == split)


def _is_turn(index: int, fraction: float) -> bool:
    """Return whether item `index` is in an evenly spread fraction f: of the first n items, round(n·f) are."""
    return math.floor(round((index + 1) * fraction + 0.5, 9)) > math.floor(round(index * fraction + 0.5, 9))


def _choose_collections(settings: CorpusSettings, split: Split) -> list[str]:
    """List the collection of each clip of a split."""
    seen: Counter[str] = Counter()
    chosen = []
    for index in range(settings.count_clips(split)):
        is_real = _is_turn(index, settings.real_fraction)
        chosen.append(min(REAL_COLLECTIONS, key=lambda name: seen[name]) if is_real else "composed")
        seen[chosen[-1]] += 1
    return chosen


def plan_clips(settings: CorpusSettings) -> list[PieceSpec]:
    """List the clips: test, validation, then train; each alternates between composed and real ones."""
    splits: tuple[Split, ...] = (*HELD_OUT_SPLITS, "train")
    return [spec for split in splits for spec in _plan_split(settings, split)]


def _plan_split(settings: CorpusSettings, split: Split) -> Iterator[PieceSpec]:
    works = {"composed": _iter_composed_works(settings, split)}
    works |= {name: _iter_real_works(name, settings, split) for name in REAL_COLLECTIONS}
    prefix, clip_seconds = ("", settings.clip_seconds) if split == "train" else (f"{split}-", settings.test_seconds)
    for index, collection in enumerate(_choose_collections(settings, split)):
        work, composition_id = next(works[collection])
        piece_seconds = max(settings.clip_seconds, clip_seconds)
        yield PieceSpec(
            piece_id=f"{prefix}{collection}-{index:05d}",
            collection=collection,
            work=work,
            composition_id=composition_id,
            seed=settings.seed * 1_000_000 + SEED_OFFSET[split] + index,
            split=split,
            piece_seconds=piece_seconds,
            start_seconds=(index % POSITIONS) * (piece_seconds - clip_seconds) / (POSITIONS - 1),
            clip_seconds=clip_seconds,
        )


def make_piece(spec: PieceSpec) -> Piece:
    """Make the music of a spec; errors of single real files propagate, and `make_clip` skips these files."""
    from pipelines.corpus.composer import compose
    from pipelines.corpus.orchestrate import ARRANGERS

    if spec.collection == "composed":
        number = int(spec.composition_id.rsplit("/", 1)[1])
        return compose(seed=number, style_name=spec.work, seconds=spec.piece_seconds)
    entry = find_entry(spec.collection, spec.work)
    return ARRANGERS[spec.collection](entry, seed=spec.seed, seconds=spec.piece_seconds)
