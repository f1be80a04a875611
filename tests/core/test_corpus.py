"""The default corpus: composition, real pieces, captions, rendering, and a build that is cached, resumable, exact."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile

from presto_core.corpus.build import _check_disk, build_corpus, plan_corpus
from presto_core.corpus.captions import PHRASINGS, caption, tempo_word
from presto_core.corpus.clips import file_sha256, write_flac
from presto_core.corpus.composer import compose, make_melody, make_phrases
from presto_core.corpus.ensembles import CHORALE_SETTINGS, TUNE_SETTINGS, TUNE_TEMPO_BPM
from presto_core.corpus.folder import read_manifest
from presto_core.corpus.harmony import (
    FOLLOWS_WELL,
    HOME_BONUS,
    PLAIN_CHORDS,
    PLAINNESS,
    SUCCESSION_BONUS,
    Chord,
    harmonise,
)
from presto_core.corpus.index import corpus_folder, find_entries, find_entry, load_index
from presto_core.corpus.keys import Key, Mode, estimate_key, parse_key, pitch_class_weights
from presto_core.corpus.orchestrate import ARRANGE
from presto_core.corpus.plan import CorpusSettings, make_piece
from presto_core.corpus.render import SAMPLE_RATE_HZ, TARGET_RMS_DBFS, normalised, render, soft_limited
from presto_core.corpus.repertoire import read_tune
from presto_core.corpus.score import DRUM_CHANNEL, Note, Part, Piece, excerpt, is_in_key, to_midi, transpose, untangled
from presto_core.corpus.styles import STYLES
from presto_core.corpus.vetting import chorale_candidate, tune_candidate

SMALL = {"minutes": 1.0, "clip_seconds": 6.0, "held_out_fraction": 0.2, "seed": 3}
CHORALES = ("bwv10.7.mxl", "bwv101.7.mxl", "bwv104.6.mxl", "bwv108.6.mxl")
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
    assert key.transposed(7).transposed(-7) == key


def test_key_signatures_known_from_theory() -> None:
    sharps = {"C major": 0, "G major": 1, "F major": -1, "E major": 4, "Eb major": -3, "A minor": 0, "C minor": -3}
    assert {name: parse_key(name).sharps for name in sharps} == sharps
    with pytest.raises(ValueError, match="H dorian"):
        parse_key("H dorian")


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.name)
def test_a_scale_that_dwells_on_its_triad_is_heard_in_its_key(key: Key) -> None:
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
    notes = untangled([Note(0.0, 2.0, 60, 80), Note(1.0, 2.0, 60, 80), Note(0.5, 3.0, 64, 80)])
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


def test_composed_pieces_are_heard_in_their_key() -> None:
    pieces = [compose(seed=seed, style_name=name, seconds=30.0) for name in STYLES for seed in range(4)]
    for piece in pieces:
        assert is_in_key([part.notes for part in piece.parts if not part.is_drums], parse_key(piece.key)), piece.title


def test_phrases_return_as_the_form_says() -> None:
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


# real pieces


def test_the_list_names_files_that_exist_and_none_with_reserved_rights() -> None:
    entries = load_index()
    assert len(find_entries("bach")) > 200
    assert len(find_entries("ryan")) > 400
    assert all((corpus_folder(e.collection) / e.file).is_file() for e in entries)
    assert {Path(e.file).suffix for e in entries} == {".mxl", ".abc"}
    assert {(e.beat_quarters, e.beats_per_bar) for e in find_entries("ryan")} <= TUNE_TEMPO_BPM.keys()
    with pytest.raises(ValueError, match=r"bwv277\.krn"):
        find_entry("bach", "bwv277.krn")


def test_the_list_is_what_the_installed_music21_gives() -> None:
    from music21.corpus.chorales import ChoraleListRKBWV

    titles = ChoraleListRKBWV().byBWV
    candidates = [chorale_candidate(file, titles) for file in CHORALES] + [tune_candidate(TUNE)]
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

    piece = ARRANGE["bach"](find_entry("bach", file), seed=11, seconds=60.0)
    score = stream.Stream()
    for one in (one for part in piece.parts for one in part.notes):
        sounding = note.Note(one.pitch)
        sounding.quarterLength = one.duration_beats
        score.insert(one.start_beats, sounding)
    assert parse_key(score.analyze("key").name.replace("-", "b")) == parse_key(piece.key)


def test_arrangements_are_seeded_and_stay_in_their_key() -> None:
    entry = find_entry("ryan", TUNE)
    pieces = [ARRANGE["ryan"](entry, seed=seed, seconds=20.0) for seed in range(8)]
    assert pieces[3] == ARRANGE["ryan"](entry, seed=3, seconds=20.0)
    assert len({piece.key for piece in pieces}) > 3
    assert len({piece.ensemble for piece in pieces}) > 3
    for piece in pieces:
        assert is_in_key([piece.parts[0].notes], parse_key(piece.key))
        assert min(n.start_beats for n in piece.parts[0].notes) < 0.1
        assert all(0 <= n.start_beats < 20 * piece.tempo_bpm / 60 + 0.1 for part in piece.parts for n in part.notes)


def carried_share(notes: Sequence[Note], chords: Sequence[Chord], beats_per_bar: int) -> float:
    """Share of a tune's sounding time that is a tone of the chord under it."""
    carried = [
        note.duration_beats * (note.pitch % 12 in chords[int(note.start_beats // beats_per_bar)].pitch_classes)
        for note in notes
    ]
    return sum(carried) / sum(note.duration_beats for note in notes)


def harmony_score(notes: Sequence[Note], chords: Sequence[Chord], beats_per_bar: int) -> float:
    """What `harmonise` maximises, written out for notes that do not cross bar lines."""
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
        found = harmonise(tune, key, beats_per_bar=2, bars=4)
        assert harmony_score(tune, found, 2) == pytest.approx(best)


def test_chords_found_for_tunes_carry_them_and_end_at_home() -> None:
    shares, plain_shares, ends = [], [], []
    for entry in find_entries("ryan")[:12]:
        tune, beats = read_tune(entry), entry.beats_per_bar
        chords = harmonise(tune.voices[0], tune.key, beats_per_bar=beats, bars=entry.bars)
        shares.append(carried_share(tune.voices[0], chords, beats))
        plain_shares.append(carried_share(tune.voices[0], [Chord(tune.key, 0)] * entry.bars, beats))
        ends.append(chords[-1].degree)
    assert np.mean(shares) > np.mean(plain_shares)
    assert np.mean(np.equal(ends, 0)) > 0.8  # a few reels end open, leading back to their beginning


# captions


@pytest.mark.parametrize("style_name", ["piano", "rock", "flute_and_harp"])
def test_captions_name_instruments_texture_tempo_and_key(style_name: str) -> None:
    piece = compose(seed=1, style_name=style_name, seconds=10.0)
    captions = {caption(piece, seed=seed) for seed in range(40)}
    facts = (piece.ensemble, piece.genre, piece.texture, f"{piece.tempo_bpm} bpm", piece.key)
    assert len(captions) == len(PHRASINGS)
    for text in captions:
        assert all(fact.lower() in text.lower() for fact in (*facts, tempo_word(piece.tempo_bpm)))
    assert caption(piece, seed=2) == caption(piece, seed=2)


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
    limited = soft_limited(audio)
    assert np.array_equal(limited[np.abs(audio) < 0.6], audio[np.abs(audio) < 0.6])
    assert np.abs(limited).max() <= 1.0
    assert (np.diff(limited) >= 0).all()
    with pytest.raises(ValueError, match="silent"):
        normalised(np.zeros(100, dtype=np.float32))


# the plan


def test_the_plan_splits_by_composition_in_the_asked_share() -> None:
    specs = plan_corpus(minutes=240.0)
    sides = {split: {s.composition_id for s in specs if s.split == split} for split in ("train", "held_out")}
    assert len(specs) == 480
    assert not sides["train"] & sides["held_out"]
    assert np.mean([s.split == "held_out" for s in specs]) == pytest.approx(0.1, abs=0.005)
    assert Counter(s.collection for s in specs) == {"composed": 240, "bach": 120, "ryan": 120}
    styles = Counter(s.work for s in specs if s.collection == "composed")
    assert set(styles) == set(STYLES)
    assert max(styles.values()) - min(styles.values()) <= 2


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    assert plan_corpus(minutes=240.0)[:120] == plan_corpus(minutes=60.0)
    assert plan_corpus(minutes=10.0, seed=1) != plan_corpus(minutes=10.0)


def test_a_plan_longer_than_the_repertoire_repeats_it_differently() -> None:
    bach = [s for s in plan_corpus(minutes=600.0, real_fraction=1.0) if s.collection == "bach"]
    twice = next(work for work, times in Counter(s.work for s in bach).items() if times > 1)
    first, second = [make_piece(s) for s in bach if s.work == twice][:2]
    assert first.parts != second.parts


@pytest.mark.parametrize(
    "settings", [{"minutes": 0}, {"clip_seconds": 1.0}, {"held_out_fraction": 0.9}, {"real_fraction": 1.5}]
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CorpusSettings(**settings)


# the build


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "small"
    progress: list[tuple[int, int]] = []
    summary = build_corpus(folder, **SMALL, workers=1, on_progress=lambda done, total: progress.append((done, total)))
    assert (summary.clips, summary.made, summary.skipped, summary.is_cached) == (10, 10, 0, False)
    assert progress == [(done, 10) for done in range(11)]
    return folder


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def test_the_manifest_describes_every_clip(corpus: Path) -> None:
    rows = read_manifest(corpus)
    record = json.loads((corpus / "corpus.json").read_text())
    assert Counter(row["split"] for row in rows) == {"train": 8, "held_out": 2}
    assert record["totals"]["clips"] == len(rows) == 10
    assert "GPL-2" in record["licences"]["soundfont"]
    for row, spec in zip(rows, plan_corpus(**SMALL), strict=True):
        assert row["composition_id"] == spec.composition_id
        assert f"{row['tempo_bpm']} bpm" in row["caption"]
        assert row["key"] in row["caption"]
        assert all(row[name] for name in ("title", "composer", "source", "licence", "ensemble"))


def test_every_clip_is_sound(corpus: Path) -> None:
    for row in read_manifest(corpus):
        audio, rate = soundfile.read(corpus / row["file"], dtype="float32")
        info = soundfile.info(corpus / row["file"])
        assert (info.format, info.subtype, rate, audio.shape) == ("FLAC", "PCM_16", 44_100, (6 * 44_100,))
        assert np.isfinite(audio).all()
        assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(TARGET_RMS_DBFS, abs=1.5)
        assert np.abs(audio).max() < 0.999
        assert file_sha256(corpus / row["file"]) == row["sha256"]


def test_a_second_build_does_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    calls: list[int] = []
    summary = build_corpus(corpus, **{**SMALL, "minutes": 1}, on_progress=lambda done, total: calls.append(done))
    assert summary.is_cached
    assert (summary.made, summary.reused, calls) == (0, 10, [])
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_an_interrupted_build_resumes_to_the_same_bits(copy: Path) -> None:
    manifest = (copy / "manifest.jsonl").read_bytes()
    rows = read_manifest(copy)
    (copy / "manifest.jsonl").unlink()
    (copy / rows[0]["file"]).unlink()
    with (copy / rows[1]["file"]).open("r+b") as file:
        file.truncate(1000)
    (copy / "audio" / ".old.flac.1.partial").touch()
    summary = build_corpus(copy, **SMALL, workers=1)
    assert (summary.made, summary.reused) == (2, 8)
    assert (copy / "manifest.jsonl").read_bytes() == manifest
    assert not list(copy.glob("*/.*.partial"))


def test_processes_make_the_same_bits_as_one(corpus: Path, tmp_path: Path) -> None:
    build_corpus(tmp_path / "two", **SMALL, workers=2)
    assert (tmp_path / "two" / "manifest.jsonl").read_bytes() == (corpus / "manifest.jsonl").read_bytes()


def test_a_folder_with_something_else_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"settings\.seed=3 \(asked: 4\).*choose another folder"):
        build_corpus(copy, **{**SMALL, "seed": 4})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not a corpus"):
        build_corpus(tmp_path / "other", **SMALL)


def test_too_little_disk_is_refused_before_the_first_clip(tmp_path: Path) -> None:
    endless = replace(plan_corpus(**SMALL)[0], clip_seconds=1e12)
    with pytest.raises(OSError, match="needs about 60000000020 MB"):
        _check_disk(tmp_path, [endless])


def _write_beyond_the_limit(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000).astype(np.float32)
    try:
        write_flac(path, noise)
    except OSError as error:
        os._exit(7 if path.name in str(error) else 1)
    os._exit(0)


def test_a_write_that_fails_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_write_beyond_the_limit, args=(tmp_path / "clip.flac",)
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    assert not list(tmp_path.iterdir())
