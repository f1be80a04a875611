"""Select usable corpus files: `python -m tests.support.vetting` writes repertoire.tsv in a few minutes.

A file is used if its voices and bar lines are regular, and the key signature, music21's analysis and our estimate
agree on the key. Files that share a melody get the same family name, which the split keeps together.
"""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.corpus.index import INDEX_FILE, RepertoireEntry, find_corpus_folder, parse_file
from pipelines.corpus.keys import Key, estimate_key, parse_key, pitch_class_weights

VOICES = ("Soprano", "Alto", "Tenor", "Bass")
# Quarter notes per tapped beat and beats per bar, by time signature.
METERS = {
    "4/4": (1.0, 4), "3/4": (1.0, 3), "2/4": (1.0, 2), "2/2": (2.0, 2),
    "6/8": (1.5, 2), "9/8": (1.5, 3), "12/8": (1.5, 4),
}  # fmt: skip
MIN_BARS = {"bach": 6, "ryan": 8}
# n-gram length, and the fraction of common n-grams from which two melodies count as one tune.
TUNE_GRAM = {"bach": (6, 0.5), "ryan": (7, 0.4)}
UNUSED_TITLES = ("coon", "gourd")  # minstrel-show titles that must not appear in a manifest


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry without its family, and the melody (semitone steps) that determines it."""

    entry: RepertoireEntry
    steps: tuple[int, ...]


def slugify(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _read_meter(part: Any) -> tuple[float, int, float, int] | None:
    """Return (quarters per beat, beats per bar, pickup in beats, bars); None if the bar lines are irregular."""
    signatures = {time.ratioString for time in part.recurse().getElementsByClass("TimeSignature")}
    if len(signatures) != 1 or (ratio := signatures.pop()) not in METERS:
        return None
    beat_quarters, beats = METERS[ratio]
    bar = beat_quarters * beats
    offsets = [float(measure.offset) for measure in part.getElementsByClass("Measure")]
    pickup = offsets[1] if len(offsets) > 1 and offsets[1] < bar - 1e-6 else 0.0
    on_grid = sum(abs((offset - pickup + 1e-6) % bar) < 1e-3 for offset in offsets[1:])
    total = float(part.duration.quarterLength)
    left_over = (total - pickup + 1e-6) % bar
    if on_grid < 0.8 * (len(offsets) - 1) or (left_over > 1e-3 and abs(left_over + pickup - bar) > 1e-3):
        return None
    return beat_quarters, beats, pickup / beat_quarters, int((total - pickup + bar - 1e-6) // bar)


def count_sharps(key: Key) -> int:
    """Return the number of sharps in the key signature (flats negative, -5 to 6)."""
    major_tonic = key.tonic if key.mode == "major" else (key.tonic + 3) % 12
    return (major_tonic * 7 + 5) % 12 - 5


def _read_sharps(score: Any) -> int | None:
    signatures = [key.sharps for key in score.recurse().getElementsByClass("KeySignature")]
    return signatures[0] if len(set(signatures)) == 1 else None


def _find_agreed_key(score: Any) -> str | None:
    """Return the key on which music21's analysis, our estimate and the key signature agree, otherwise None.

    A signature with one flat less is accepted for minor: old pieces use Dorian signatures.
    """
    notes = list(score.flatten().notes)
    pitches = [pitch.midi for note in notes for pitch in note.pitches]
    lengths = [float(note.quarterLength) for note in notes for _ in note.pitches]
    analyzed = parse_key(score.analyze("key").name.replace("-", "b"))
    sharps = _read_sharps(score)
    in_signature = count_sharps(analyzed)
    allowed = (in_signature,) if analyzed.mode == "major" else (in_signature, in_signature + 1)
    is_agreed = analyzed == estimate_key(pitch_class_weights(pitches, lengths)) and sharps in allowed
    return analyzed.name if is_agreed else None


def _read_melody(part: Any) -> list[int]:
    return [note.pitches[-1].midi for note in part.flatten().notes if note.quarterLength > 0]


def _ends_on_tonic(part: Any, key: str) -> bool:
    return _read_melody(part)[-1] % 12 == parse_key(key).tonic


def vet_chorale(file: str, titles: dict[str, dict[str, Any]]) -> Candidate | None:
    """Accept a four-part chorale whose bass ends on the tonic of the agreed key."""
    score = parse_file("bach", file)
    if tuple(part.partName for part in score.parts) != VOICES:
        return None
    key, meter = _find_agreed_key(score), _read_meter(score.parts[0])
    if key is None or meter is None or meter[3] < MIN_BARS["bach"] or not _ends_on_tonic(score.parts[3], key):
        return None
    number = file.removesuffix(".mxl").removeprefix("bwv")
    info = titles.get(number) or titles.get(number.partition("-")[0])
    name = info["title"].replace("AAch", "Ach").replace("’", "'") if info else ""
    title = f"{name} (BWV {number})" if name else f"Chorale (BWV {number})"
    entry = RepertoireEntry(
        "bach", file, slugify(name) if name else slugify(title), title, "Johann Sebastian Bach", key, *meter
    )
    return Candidate(entry, _melody_steps(_read_melody(score.parts[0]), keep_repeats=False))


def _read_abc_field(text: str, letter: str) -> str:
    match = re.search(rf"^{letter}:[ \t]*(.*?)[ \t]*(?:%.*)?$", text, re.MULTILINE)
    return match.group(1) if match else ""


def _clean_title(title: str) -> str:
    """Normalize a title: `BOSON RAT:TLERS' -- REEL.` → `Boson Rattlers' (reel)`."""
    name, _, kind = re.sub(r"[:\"]|\.$", "", title).partition("--")
    name, kind = name.strip().strip("."), kind.strip().strip(".").lower()
    if name.isupper():
        name = re.sub(r"'S\b", "'s", name.title().replace("'S ", "'s "))
    return f"{name} ({kind})" if kind else name


def vet_tune(file: str) -> Candidate | None:
    """Accept a fiddle tune of Ryan's collection whose major or minor key the analysis confirms."""
    text = (find_corpus_folder("ryan") / file).read_text(encoding="utf-8", errors="replace")
    key_match = re.fullmatch(r"([A-G][b#]?) ?(m|min|minor|M|maj|major)?", _read_abc_field(text, "K"), re.IGNORECASE)
    if key_match is None or "Ryan" not in _read_abc_field(text, "B") or len(re.findall(r"^K:", text, re.MULTILINE)) > 1:
        return None
    score = parse_file("ryan", file)
    mode = (
        "minor" if (key_match[2] or "").startswith(("m", "min")) and key_match[2] not in ("maj", "major") else "major"
    )
    key, meter = _find_agreed_key(score), _read_meter(score.parts[0])
    if (
        key is None
        or parse_key(key) != parse_key(f"{key_match[1]} {mode}")
        or meter is None
        or meter[3] < MIN_BARS["ryan"]
    ):
        return None
    title = _clean_title(_read_abc_field(text, "T"))
    if any(word in title.lower() for word in UNUSED_TITLES):
        return None
    composer = _read_abc_field(text, "C").strip(". ").title() or "traditional"
    entry = RepertoireEntry("ryan", file, slugify(title), title, composer, key, *meter)
    return Candidate(entry, _melody_steps(_read_melody(score.parts[0]), keep_repeats=True))


def _melody_steps(pitches: Sequence[int], *, keep_repeats: bool) -> tuple[int, ...]:
    steps = (later - earlier for earlier, later in itertools.pairwise(pitches))
    return tuple(step for step in steps if keep_repeats or step)


def _ngrams(steps: Sequence[int], size: int) -> frozenset[tuple[int, ...]]:
    return frozenset(tuple(steps[k : k + size]) for k in range(len(steps) - size + 1))


def _is_same_tune(first: Candidate, second: Candidate, grams: dict[str, frozenset[tuple[int, ...]]]) -> bool:
    if first.entry.tune == second.entry.tune or first.steps[:8] == second.steps[:8]:
        return True
    a, b = grams[first.entry.file], grams[second.entry.file]
    return len(a & b) >= TUNE_GRAM[first.entry.collection][1] * min(len(a), len(b))


def assign_families(candidates: Sequence[Candidate]) -> list[RepertoireEntry]:
    """Give the same `tune` to all files that share a title, an opening or much of a melody."""
    grams = {one.entry.file: _ngrams(one.steps, TUNE_GRAM[one.entry.collection][0]) for one in candidates}
    family = list(range(len(candidates)))
    for i, first in enumerate(candidates):
        for j in range(i):
            if family[i] != family[j] and _is_same_tune(first, candidates[j], grams):
                old, new = family[i], family[j]
                family = [new if member == old else member for member in family]
    names = [candidates[member].entry.tune for member in family]
    return [replace(one.entry, tune=name) for one, name in zip(candidates, names, strict=True)]


def scan(files: Iterable[Path], collection: str) -> list[Candidate]:
    """Return the candidates of a collection; files that fail or are rejected are counted and dropped."""
    from music21.corpus.chorales import ChoraleListRKBWV

    titles = ChoraleListRKBWV().byBWV
    candidates, outcome = [], Counter[str]()
    for path in sorted(files):
        try:
            candidate = vet_chorale(path.name, titles) if collection == "bach" else vet_tune(path.name)
        except Exception as error:  # music21 raises many classes; one bad file must not end the scan
            outcome[type(error).__name__] += 1
            continue
        outcome["used" if candidate else "refused"] += 1
        if candidate:
            candidates.append(candidate)
    print(collection, dict(outcome), file=sys.stderr)
    return candidates


def main() -> None:
    """Write the index, without Bach's .krn files, whose encoder reserves derivative formats."""
    chorales = assign_families(scan(find_corpus_folder("bach").glob("bwv*.mxl"), "bach"))
    tunes = assign_families(scan(find_corpus_folder("ryan").glob("*.abc"), "ryan"))
    rows = ["\t".join(field.name for field in fields(RepertoireEntry))]
    rows += ["\t".join(str(cell) for cell in astuple(entry)) for entry in (*chorales, *tunes)]
    INDEX_FILE.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows) - 1} pieces", file=sys.stderr)


if __name__ == "__main__":
    main()
