"""Keys and tempi in the words of prompts: every usual spelling is understood, and an impossible tempo is refused."""

from __future__ import annotations

import pytest

from presto_core.diffusion.conditioning import key_index, key_name
from presto_core.diffusion.musical_words import find_key, find_tempo, parse_key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("string quartet, in A minor", "A minor"),
        ("in d minor", "D minor"),
        ("D MINOR", "D minor"),
        ("techno in Dm, dark", "D minor"),
        ("C sharp minor", "C# minor"),
        ("c-sharp minor, slow", "C# minor"),
        ("C♯ minor", "C# minor"),
        ("c# min", "C# minor"),
        ("C#m", "C# minor"),
        ("B♭ major", "Bb major"),
        ("bb major waltz", "Bb major"),
        ("e flat maj", "Eb major"),
        ("Bb-major", "Bb major"),
        ("a-flat major", "Ab major"),
        ("D harmonic minor", "D minor"),
        ("solo piano in a minor, slow", "A minor"),
        ("in a minor", "A minor"),
        ("in a minor with strings", "A minor"),
        ("in a major 90 bpm", "A major"),
        ("a song in 'a minor'", "A minor"),
        ("key=Bm", "B minor"),
        ("Ｄ ｍｉｎｏｒ", "D minor"),
        ("first G major, then E minor", "G major"),
    ],
)
def test_a_key_in_a_prompt_is_understood_in_any_case_and_spelling(text: str, key: str):
    index = find_key(text)
    assert index is not None
    assert key_name(index) == key


@pytest.mark.parametrize(
    "text",
    [
        "", "solo piano", "in a minor key", "a major hit", "a minor melody", "I Am the walrus", "i am", "ebm, dark",
        "Cmaj7 chords", "Eminem", "vitamin", "I'd minor in it", "recorded at 9 Am", "the band major", "minor",
        "FM radio", "C",
    ],
)  # fmt: skip
def test_words_that_only_look_like_a_key_are_none(text: str):
    assert find_key(text) is None


@pytest.mark.parametrize(
    ("name", "index"),
    [("Am", 21), ("am", 21), ("a minor", 21), ("A Minor", 21), ("C♯ minor", 13), (" eb major ", 3), ("F#m", 18)],
)
def test_a_key_of_a_setting_or_a_manifest_is_understood_in_any_spelling(name: str, index: int):
    assert key_index(name) == parse_key(name) == index


@pytest.mark.parametrize("name", ["H dur", "A", "DM", "A minor, slow", "in A minor", "C ## minor", "Xm"])
def test_what_is_more_or_less_than_a_key_is_refused_by_name(name: str):
    with pytest.raises(ValueError, match="is not a tonic and a mode") as caught:
        parse_key(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "tempo"),
    [
        ("piano, 120 bpm", 120.0),
        ("120.5 bpm", 120.5),
        ("120,5 BPM", 120.5),
        ("120.5bpm.", 120.5),
        ("a 90-bpm groove", 90.0),
        ("bpm: 174", 174.0),
        ("BPM 99", 99.0),
        ("66 beats per minute", 66.0),
        ("♩ = 96.5", 96.5),
        ("90-100 bpm", 95.0),
        ("from 90 to 100 bpm", 95.0),
        ("１２０ ｂｐｍ", 120.0),
        ("opus 12, 120 bpm", 120.0),
        ("80 bpm, later 90 bpm", 80.0),
        ("808 drums", None),
        ("bpm", None),
    ],
)
def test_a_tempo_in_a_prompt_is_understood_whole(text: str, tempo: float | None):
    assert find_tempo(text) == tempo


@pytest.mark.parametrize(
    ("text", "number"),
    [("1200 bpm", "1200 bpm"), ("1,200 bpm", "1200 bpm"), ("0 bpm", "0 bpm"), ("19.5 bpm", "19.5 bpm"),
     ("90-1000 bpm", "1000 bpm"), ("bpm 4000", "4000 bpm"), ("1.2.3 bpm", "nan bpm")],
)  # fmt: skip
def test_a_tempo_out_of_range_is_refused_with_its_number_and_the_range(text: str, number: str):
    with pytest.raises(ValueError, match="from 20 to 400 bpm") as caught:
        find_tempo(text)
    assert str(caught.value).startswith(number)
