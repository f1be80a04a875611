"""Instruments and genres that captions name, as tags of the shipped musicnn: expected tags, hits and divergence."""

from __future__ import annotations

import re
from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# MagnaTagATune's 50 most frequent tags, in the order of musicnn's outputs (musicnn 0.1.0, configuration.py)
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano", "ambient",
    "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals", "no vocals",
    "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop", "soft", "sitar", "solo", "man",
    "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal", "beats", "harp", "cello",
    "no voice", "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip

# tag -> words of captions that mean it. What a word would claim wrongly is left out: an electric piano is no piano to
# musicnn, steel drums are no drums, a chorale for organ is no choir, a cello's singing melody no
# vocal.
CAPTION_WORDS = {
    "ambient": r"ambient",
    "cello": r"cellos?|violoncellos?",
    "choir": r"choirs?|choral|voices|chorus",
    "country": r"country",
    "drums": r"(?<!steel )drums|drum (?:machine|kit|set)",
    "electronic": r"electronic|electronica|edm",
    "flute": r"flutes?|piccolos?",
    "guitar": r"guitars?",
    "harp": r"harps?",
    "harpsichord": r"harpsichords?",
    "indian": r"indian",
    "metal": r"heavy metal|metal",
    "opera": r"opera|operatic",
    "piano": r"(?<!electric )pianos?",
    "rock": r"rock",
    "sitar": r"sitars?",
    "strings": r"strings|string (?:quartet|quintet|trio|orchestra|ensemble|section)",
    "synth": r"synths?|synthesi[sz]ers?",
    "techno": r"techno",
    "violin": r"violins?|fiddles?",
    "vocal": r"vocals?|singers?|sung",
}
TOP_TAGS = 5
"""A tag is a hit among this many of the likeliest of `CAPTION_WORDS` (docs/adherence.md: how it was chosen)."""
FLOOR = 1e-4
"""Least probability, and distance from 1, that the divergence counts with: one sure tag weighs 9 nats at most."""

_PATTERNS = {tag: re.compile(rf"(?<!no )(?<!without )\b(?:{words})\b") for tag, words in CAPTION_WORDS.items()}
_NAMED = tuple(CAPTION_WORDS)
_COLUMNS = [TAGS.index(tag) for tag in _NAMED]


def find_tags(caption: str) -> set[str]:
    """Return the tags that a caption names; "no drums" and "without drums" name none."""
    return {tag for tag, pattern in _PATTERNS.items() if pattern.search(caption.lower())}


def count_tag_hits(tag_probabilities: NDArray[np.floating], expected: Set[str]) -> tuple[int, int]:
    """Return how many expected tags are among the `TOP_TAGS` likeliest nameable ones, and how many are expected.

    Args:
        tag_probabilities: [50] of one clip, the mean over its patches.

    Raises:
        ValueError: the probabilities are not [50], or an expected tag is none of `CAPTION_WORDS`.
    """
    hits = find_top_tags(np.asarray(tag_probabilities)[None])[0]
    return int(sum(hits[_NAMED.index(tag)] for tag in expected)), len(expected)


def find_top_tags(tag_probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which of the nameable tags are the likeliest of each clip: [N, 50] -> [N, nameable]."""
    if tag_probabilities.ndim != 2 or tag_probabilities.shape[1] != len(TAGS):
        raise ValueError(f"tag probabilities of shape {list(tag_probabilities.shape)} must be [N, {len(TAGS)}]")
    named = tag_probabilities[:, _COLUMNS]
    ranks = np.argsort(np.argsort(-named, axis=1, kind="stable"), axis=1)
    return ranks < TOP_TAGS


def make_tag_mask(captions: list[str]) -> NDArray[np.bool_]:
    """Return which of the nameable tags each caption names: [N, nameable]."""
    return np.array([[tag in tags for tag in _NAMED] for tags in map(find_tags, captions)]).reshape(-1, len(_NAMED))


def tag_kl(*, generated: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Return the divergence of two sets' mean tag probabilities, [N, 50] from [M, 50], in nats.

    KL(reference || generated), each tag an independent yes or no: 0 if both sets have the same tags as often. It does
    not see which clip has which tag; `divergence_matrix` does.

    Raises:
        ValueError: the sets are empty, or have other numbers of tags.
    """
    if not len(generated) or not len(reference) or generated.shape[1:] != reference.shape[1:]:
        raise ValueError(f"tag_kl compares [N, 50] with [M, 50], not {list(generated.shape)}, {list(reference.shape)}")
    return float(divergence_matrix(generated=generated.mean(0)[None], reference=reference.mean(0)[None])[0, 0])


def divergence_matrix(*, generated: NDArray[np.floating], reference: NDArray[np.floating]) -> Array:
    """Return KL(reference j || generated i) of all pairs of clips' tag probabilities in nats: [N, T], [M, T] -> [N, M].

    sum over tags of p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)) with p of the reference and q of the generated clip.
    """
    q, p = (np.clip(np.asarray(x, np.float64), FLOOR, 1 - FLOOR) for x in (generated, reference))
    entropy = (p * np.log(p) + (1 - p) * np.log1p(-p)).sum(1)
    return entropy - np.log(q) @ p.T - np.log1p(-q) @ (1 - p).T
