"""Keys, scores, the composer, captions and rendering of the default corpus."""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import replace

import mido
import numpy as np
import pytest

from pipelines.corpus.captions import PHRASINGS, make_caption, tempo_word
from pipelines.corpus.composer import compose, make_melody, make_phrases
from pipelines.corpus.ensembles import CHORALE_SETTINGS, TUNE_SETTINGS
from pipelines.corpus.keys import Key, estimate_key, parse_key, pitch_class_weights
from pipelines.corpus.render import SAMPLE_RATE_HZ, TARGET_RMS_DBFS, normalize, render, soft_limit
from pipelines.corpus.score import (
    DRUM_CHANNEL,
    Note,
    Part,
    Piece,
    excerpt,
    is_in_key,
    to_midi,
    transpose,
    trim_overlaps,
)
from pipelines.corpus.styles import STYLES
from tests.support.vetting import count_sharps

TUNE = "WindThatShakesTheBarleyReel.abc"
ALL_KEYS = [Key(tonic, mode) for tonic in range(12) for mode in ("major", "minor")]


def toy_piece() -> Piece:
    scale = tuple(Note(float(k), 1.0, pitch, 80) for k, pitch in enumerate((60, 62, 64, 65, 67, 69, 71, 72)))
    drums = tuple(Note(float(k), 0.2, 36, 90) for k in range(8))
    return Piece(
        parts=(Part("piano", 0, scale), Part("drums", 0, drums, is_drums=True)),
        tempo_bpm=120,
        key="C major",
        beats_per_bar=4,
        genre="study",
        ensemble="piano and drums",
        texture="a scale",
        composition_id="toy/1",
        title="toy",
        composer="nobody",
        source="test",
        licence="none",
    )


# keys and scores


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.name)
def test_key_names_can_be_read_back(key: Key) -> None:
    assert parse_key(key.name) == key
    assert key.transpose(7).transpose(-7) == key


def test_key_signatures_known_from_theory() -> None:
    sharps = {"C major": 0, "G major": 1, "F major": -1, "E major": 4, "Eb major": -3, "A minor": 0, "C minor": -3}
    assert {name: count_sharps(parse_key(name)) for name in sharps} == sharps
    with pytest.raises(ValueError, match="H dorian"):
        parse_key("H dorian")


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.name)
def test_a_scale_that_dwells_on_its_triad_has_its_key_detected(key: Key) -> None:
    pitches = [key.pitch(step) for step in range(8)]
    durations = [2.0 if step in (0, 2, 4, 7) else 1.0 for step in range(8)]
    assert estimate_key(pitch_class_weights(pitches, durations)) == key


def test_transposition_moves_pitches_and_key_but_not_drums() -> None:
    piece = toy_piece()
    moved = transpose(piece, 3)
    assert moved.key == "Eb major"
    assert [n.pitch for n in moved.parts[0].notes] == [n.pitch + 3 for n in piece.parts[0].notes]
    assert moved.parts[1] == piece.parts[1]
    assert transpose(moved, -3) == piece


def test_an_excerpt_begins_on_its_bar_line_and_lasts_its_seconds() -> None:
    cut = excerpt(toy_piece(), start_bar=1, seconds=1.25)  # 2.5 beats at 120 bpm
    assert [(n.start_beats, n.duration_beats, n.pitch) for n in cut.parts[0].notes] == [
        (0.0, 1.0, 67),
        (1.0, 1.0, 69),
        (2.0, 0.5, 71),
    ]


def test_midi_holds_tempo_programs_and_every_note() -> None:
    file = mido.MidiFile(file=io.BytesIO(to_midi(toy_piece())))
    messages = list(file.tracks[0])
    strikes = Counter(m.channel for m in messages if m.type == "note_on")
    assert [m.tempo for m in messages if m.type == "set_tempo"] == [500_000]
    assert strikes == {0: 8, DRUM_CHANNEL: 8}
    assert file.length == pytest.approx(4.0)


def test_a_repeated_pitch_ends_the_note_before_it() -> None:
    notes = trim_overlaps([Note(0.0, 2.0, 60, 80), Note(1.0, 2.0, 60, 80), Note(0.5, 3.0, 64, 80)])
    assert [(n.start_beats, n.end_beats) for n in notes] == [(0.0, 1.0), (1.0, 3.0), (0.5, 3.5)]


# the composer


@pytest.mark.parametrize("style_name", STYLES)
def test_composing_twice_gives_one_piece_in_its_stated_key(style_name: str) -> None:
    for seed in range(4):
        piece = compose(seed=seed, style_name=style_name, seconds=20.0)
        assert piece == compose(seed=seed, style_name=style_name, seconds=20.0)
        low, high = STYLES[style_name].tempo_bpm
        assert low <= piece.tempo_bpm <= high
        sounded = {note.pitch % 12 for part in piece.parts if not part.is_drums for note in part.notes}
        assert sounded <= parse_key(piece.key).pitch_classes()
        assert 18.0 < piece.length_beats * 60 / piece.tempo_bpm < 20.5
    assert compose(seed=0, style_name=style_name, seconds=20.0) != compose(seed=1, style_name=style_name, seconds=20.0)


def test_the_key_of_composed_pieces_is_detected() -> None:
    pieces = [compose(seed=seed, style_name=name, seconds=30.0) for name in STYLES for seed in range(4)]
    for piece in pieces:
        assert is_in_key([part.notes for part in piece.parts if not part.is_drums], parse_key(piece.key)), piece.title


def test_phrases_return_as_the_form_states() -> None:
    style, key = STYLES["piano"], Key(2, "minor")
    phrases = make_phrases(random.Random(5), style, key, bpm=120, seconds=32.0)
    assert [name for name, _ in phrases] == ["A", "A'", "B", "A'"]
    assert style.lead is not None
    melody = make_melody(random.Random(5), style.lead, phrases, beats=4)
    phrase = [[(n.start_beats % 16, n.pitch) for n in melody if n.start_beats // 16 == k] for k in range(4)]
    assert phrase[1] == phrase[3]
    assert phrase[0] != phrase[1]
    assert phrase[2] != phrase[0]
    assert phrase[3][-1][1] % 12 == key.tonic


# captions


@pytest.mark.parametrize("style_name", ["piano", "rock", "flute_and_harp"])
def test_captions_name_instruments_texture_tempo_and_key(style_name: str) -> None:
    piece = compose(seed=1, style_name=style_name, seconds=10.0)
    captions = {make_caption(piece, seed=seed) for seed in range(40)}
    facts = (piece.ensemble, piece.genre, piece.texture, f"{piece.tempo_bpm} bpm", piece.key)
    assert len(captions) == len(PHRASINGS)
    for text in captions:
        assert all(fact.lower() in text.lower() for fact in (*facts, tempo_word(piece.tempo_bpm)))
    assert make_caption(piece, seed=2) == make_caption(piece, seed=2)


def test_tempo_words_at_their_limits() -> None:
    assert [tempo_word(bpm) for bpm in (65, 66, 84, 116, 146)] == [
        "very slow",
        "slow",
        "mid-tempo",
        "fast",
        "very fast",
    ]


def test_ensembles_name_the_instruments_that_play() -> None:
    synthetic = {"saw wave", "synth"}
    for setting in TUNE_SETTINGS:
        names = {setting.lead[0], *(layer.name for layer in setting.layers)} - synthetic
        assert all(name.split()[-1].rstrip("s") in setting.ensemble for name in names), setting.ensemble
    for chorale in CHORALE_SETTINGS:
        if len({name for name, _ in chorale.voices}) == 1:
            assert chorale.voices[0][0].split()[-1].rstrip("s") in chorale.ensemble


# rendering


@pytest.mark.parametrize("channels", [1, 2])
def test_rendered_audio_has_length_rate_and_loudness(channels: int) -> None:
    audio = render(compose(seed=0, style_name="marimba", seconds=5.0), seconds=5.0, channels=channels)
    assert audio.shape == ((5 * SAMPLE_RATE_HZ,) if channels == 1 else (5 * SAMPLE_RATE_HZ, 2))
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() < 1.0
    assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(TARGET_RMS_DBFS, abs=1.0)


def test_a_rendered_note_has_its_pitch() -> None:
    note = Part("flute", 73, (Note(0.0, 8.0, 69, 100),))
    audio = render(replace(toy_piece(), parts=(note,)), seconds=3.0)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert np.argmax(spectrum) / 3.0 == pytest.approx(440.0, rel=0.02)


def test_the_limiter_leaves_quiet_audio_alone_and_never_clips() -> None:
    audio = np.linspace(-4, 4, 1001, dtype=np.float32)
    limited = soft_limit(audio)
    assert np.array_equal(limited[np.abs(audio) < 0.6], audio[np.abs(audio) < 0.6])
    assert np.abs(limited).max() <= 1.0
    assert (np.diff(limited) >= 0).all()
    with pytest.raises(ValueError, match="silent"):
        normalize(np.zeros(100, dtype=np.float32))
