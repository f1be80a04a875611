"""Public-domain pieces of the default corpus: selection, arrangement and harmonisation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus.ensembles import TUNE_TEMPO_BPM
from pipelines.corpus.harmony import (
    FOLLOWS_WELL,
    HOME_BONUS,
    PLAIN_CHORDS,
    PLAINNESS,
    SUCCESSION_BONUS,
    Chord,
    harmonize,
)
from pipelines.corpus.index import find_corpus_folder, find_entries, find_entry, load_index
from pipelines.corpus.keys import Key, Mode, parse_key
from pipelines.corpus.orchestrate import ARRANGERS
from pipelines.corpus.repertoire import read_tune
from pipelines.corpus.score import Note, is_in_key
from tests.support.vetting import vet_chorale, vet_tune

CHORALES = ("bwv10.7.mxl", "bwv101.7.mxl", "bwv104.6.mxl", "bwv108.6.mxl")
TUNE = "WindThatShakesTheBarleyReel.abc"


# real pieces


def test_the_list_names_files_that_exist_and_none_with_reserved_rights() -> None:
    entries = load_index()
    assert len(find_entries("bach")) > 200
    assert len(find_entries("ryan")) > 400
    assert all((find_corpus_folder(e.collection) / e.file).is_file() for e in entries)
    assert {Path(e.file).suffix for e in entries} == {".mxl", ".abc"}
    assert {(e.beat_quarters, e.beats_per_bar) for e in find_entries("ryan")} <= TUNE_TEMPO_BPM.keys()
    with pytest.raises(ValueError, match=r"bwv277\.krn"):
        find_entry("bach", "bwv277.krn")


def test_the_list_is_what_the_installed_music21_gives() -> None:
    from music21.corpus.chorales import ChoraleListRKBWV

    titles = ChoraleListRKBWV().byBWV
    candidates = [vet_chorale(file, titles) for file in CHORALES] + [vet_tune(TUNE)]
    for candidate in candidates:
        assert candidate is not None
        listed = find_entry(candidate.entry.collection, candidate.entry.file)
        assert replace(candidate.entry, tune=listed.tune) == listed


def test_one_melody_is_one_composition() -> None:
    family = {find_entry("bach", file).tune for file in ("bwv360.mxl", "bwv154.3.mxl", "bwv55.5.mxl", "bwv359.mxl")}
    assert len(family) == 1  # Werde munter, mein Gemüte, also sung as Jesu, meiner Seelen Wonne


@pytest.mark.parametrize("file", CHORALES)
def test_music21_hears_a_transposed_chorale_in_the_stated_key(file: str) -> None:
    from music21 import note, stream

    piece = ARRANGERS["bach"](find_entry("bach", file), seed=11, seconds=60.0)
    score = stream.Stream()
    for one in (one for part in piece.parts for one in part.notes):
        sounding = note.Note(one.pitch)
        sounding.quarterLength = one.duration_beats
        score.insert(one.start_beats, sounding)
    assert parse_key(score.analyze("key").name.replace("-", "b")) == parse_key(piece.key)


def test_arrangements_are_seeded_and_stay_in_their_key() -> None:
    entry = find_entry("ryan", TUNE)
    pieces = [ARRANGERS["ryan"](entry, seed=seed, seconds=20.0) for seed in range(8)]
    assert pieces[3] == ARRANGERS["ryan"](entry, seed=3, seconds=20.0)
    assert len({piece.key for piece in pieces}) > 3
    assert len({piece.ensemble for piece in pieces}) > 3
    for piece in pieces:
        assert is_in_key([piece.parts[0].notes], parse_key(piece.key))
        assert min(n.start_beats for n in piece.parts[0].notes) < 0.1
        assert all(0 <= n.start_beats < 20 * piece.tempo_bpm / 60 + 0.1 for part in piece.parts for n in part.notes)


def chord_tone_share(notes: Sequence[Note], chords: Sequence[Chord], beats_per_bar: int) -> float:
    """Return the fraction of a tune's sounding time with a tone of the chord under it."""
    carried = [
        note.duration_beats * (note.pitch % 12 in chords[int(note.start_beats // beats_per_bar)].pitch_classes)
        for note in notes
    ]
    return sum(carried) / sum(note.duration_beats for note in notes)


def harmony_score(notes: Sequence[Note], chords: Sequence[Chord], beats_per_bar: int) -> float:
    """Reference for the objective that `harmonise` maximises, for notes that do not cross bar lines."""
    plainness = dict(zip(PLAIN_CHORDS[chords[0].key.mode], PLAINNESS, strict=False))
    score = HOME_BONUS * (chords[-1].degree == 0) + sum(plainness[chord.degree] for chord in chords)
    score += SUCCESSION_BONUS * sum((a.degree, b.degree) in FOLLOWS_WELL for a, b in itertools.pairwise(chords))
    for note in notes:
        chord = chords[int(note.start_beats // beats_per_bar)]
        weight = note.duration_beats * (1.5 if note.start_beats % beats_per_bar == 0 else 1.0)
        score += weight * (1.0 if note.pitch % 12 in chord.pitch_classes else -0.5)
    return score


@pytest.mark.parametrize("mode", ["major", "minor"])
def test_the_chords_found_are_the_best_of_all_sequences(mode: Mode) -> None:
    rng, key = random.Random(2), Key(9, mode)
    for _ in range(5):
        tune = [Note(k / 2, 0.5, key.pitch(rng.randint(0, 9)), 80) for k in range(16)]
        chords = [Chord(key, degree) for degree in PLAIN_CHORDS[mode]]
        best = max(harmony_score(tune, row, 2) for row in itertools.product(chords, repeat=4))
        found = harmonize(tune, key, beats_per_bar=2, bars=4)
        assert harmony_score(tune, found, 2) == pytest.approx(best)


def test_chords_found_for_tunes_carry_them_and_end_at_home() -> None:
    shares, plain_shares, ends = [], [], []
    for entry in find_entries("ryan")[:12]:
        tune, beats = read_tune(entry), entry.beats_per_bar
        chords = harmonize(tune.voices[0], tune.key, beats_per_bar=beats, bars=entry.bars)
        shares.append(chord_tone_share(tune.voices[0], chords, beats))
        plain_shares.append(chord_tone_share(tune.voices[0], [Chord(tune.key, 0)] * entry.bars, beats))
        ends.append(chords[-1].degree)
    assert np.mean(shares) > np.mean(plain_shares)
    assert np.mean(np.equal(ends, 0)) > 0.8  # a few reels end on an open cadence that leads back to their beginning
