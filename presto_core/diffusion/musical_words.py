"""Keys and tempi in words: `Dm`, `c sharp minor`, `B♭ major`, `120.5 bpm`; in a prompt, or alone in a setting."""

from __future__ import annotations

import re
import unicodedata

from presto_core.config.sampling import MAX_TEMPO_BPM, MIN_TEMPO_BPM

UNKNOWN_KEY = 24  # 0..11 major on C..B, 12..23 minor on C..B

_TONICS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_ACCIDENTALS = {"": 0, "♮": 0, "#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1}

# neither within a word nor beside the apostrophe of one: `I'd minor`
_BEFORE, _AFTER = r"(?<![\w#♯♭])(?<!\w['’])", r"(?![\w#♯♭])(?!['’]\w)"
_ACCIDENTAL = r"(?:\s?(?P<sign>[#♯♭♮])|(?P<letter>b)|[\s-]*(?P<word>sharp|flat))?"
_LONG = re.compile(
    rf"{_BEFORE}(?P<tonic>[a-g]){_ACCIDENTAL}(?P<gap>[\s-]*)(?:(?:harmonic|melodic|natural)\s+)?"
    rf"(?P<mode>major|minor|maj|min){_AFTER}",
    re.IGNORECASE,
)
# without its mode spelled out a key is a capital: `am`, `em` and `ebm` are other words
_SHORT = re.compile(rf"{_BEFORE}(?<!\bI )(?<!\d )(?P<tonic>[A-G])(?P<sign>[#♯♭b])?m{_AFTER}")
_SHORT_ALONE = re.compile(r"(?P<tonic>[A-Ga-g])(?P<sign>[#♯♭b])?m")
# "a minor, slow" and "in a minor with strings" name a key; "a minor melody" and "in a minor key" have an article
_AFTER_KEY = re.compile(r"\s*(?:$|[^\w\s]|(?:and|at|by|for|from|in|on|or|then|to|with)\b|\d)", re.IGNORECASE)

_NUMBER = r"(?<![\w.,])(?P<number>\d[\d.,]*)"
_TEMPI = (
    re.compile(rf"{_NUMBER}\s*-?\s*(?:bpm\b|beats?\s+(?:per|a)\s+minute\b)", re.IGNORECASE),
    re.compile(rf"(?:\bbpm|♩)\s*(?:of|[:=])?\s*{_NUMBER}", re.IGNORECASE),
)
_RANGE = re.compile(r"(?<![\w.,])(?P<low>\d[\d.,]*)\s*(?:[-–—]|to)\s*(?P<high>\d[\d.,]*)\s*-?\s*bpm\b", re.IGNORECASE)


def find_key(text: str) -> int | None:
    """Return the index of the key that a text names first (`parse_key`), or None.

    Case and spelling are free: "in d minor", "C sharp minor", "Bb-major", "F♯ min", "Dm".
    """
    text = unicodedata.normalize("NFKC", text)
    for match in _LONG.finditer(text):
        if not _is_article(match):
            return _index_of(match)
    short = _SHORT.search(text)
    return _index_of(short) if short else None


def parse_key(name: str) -> int:
    """Return the index of a key's name: 0..11 for major on C..B, 12..23 for minor on C..B.

    Raises:
        ValueError: the text is not a key and nothing else.
    """
    text = unicodedata.normalize("NFKC", name).strip()
    match = _LONG.fullmatch(text) or _SHORT_ALONE.fullmatch(text)
    if match is None:
        raise ValueError(f"key {name!r} is not a tonic and a mode; write it like 'C# minor', 'Eb major' or 'Dm'")
    return _index_of(match)


def find_tempo(text: str) -> float | None:
    """Return the tempo that a text names first, in beats per minute, or None; "90-100 bpm" is the mean, 95.

    Raises:
        ValueError: it is not from `MIN_TEMPO_BPM` to `MAX_TEMPO_BPM`.
    """
    text = unicodedata.normalize("NFKC", text)
    matches = [match for match in (pattern.search(text) for pattern in _TEMPI) if match]
    if not matches:
        return None
    if (span := _RANGE.search(text)) and span.end() == matches[0].end():
        return (check_tempo(_parse_number(span["low"])) + check_tempo(_parse_number(span["high"]))) / 2
    return check_tempo(_parse_number(matches[0]["number"]))


def check_tempo(tempo_bpm: float) -> float:
    """Return a tempo that music can have.

    Raises:
        ValueError: it is not from `MIN_TEMPO_BPM` to `MAX_TEMPO_BPM`, or not a number.
    """
    if not MIN_TEMPO_BPM <= tempo_bpm <= MAX_TEMPO_BPM:
        raise ValueError(
            f"{tempo_bpm:.10g} bpm is not a tempo from {MIN_TEMPO_BPM:g} to {MAX_TEMPO_BPM:g} bpm; write one in this "
            "range, such as '120 bpm'"
        )
    return tempo_bpm


def _is_article(match: re.Match[str]) -> bool:
    is_lone_a = match["tonic"] == "a" and match["gap"].isspace() and not _accidental_of(match)
    return is_lone_a and not _AFTER_KEY.match(match.string, match.end())


def _accidental_of(match: re.Match[str]) -> str:
    groups = match.groupdict()
    return (groups.get("sign") or groups.get("letter") or groups.get("word") or "").lower()


def _index_of(match: re.Match[str]) -> int:
    pitch_class = (_TONICS[match["tonic"].lower()] + _ACCIDENTALS[_accidental_of(match)]) % 12
    mode = match.groupdict().get("mode") or "minor"
    return pitch_class + (12 if mode.lower().startswith("min") else 0)


def _parse_number(text: str) -> float:
    """Parse '120', '120.5', '120,5' and '1,200'; what is no number is NaN."""
    text = text.rstrip(".,")
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return float("nan")
