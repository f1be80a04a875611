"""Does the music follow its prompt? Tempo of clicks, keys of cadences, composed clips against their own captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soxr
import torch

from pipelines.corpus.captions import make_caption
from pipelines.corpus.composer import compose
from pipelines.corpus.render import render
from pipelines.corpus.styles import STYLES
from presto_core.diffusion.conditioning import UNKNOWN_KEY, key_index
from presto_core.metrics.adherence.chroma import HOP as CHROMA_HOP
from presto_core.metrics.adherence.chroma import N_FFT, estimate_tuning, measure_chroma
from presto_core.metrics.adherence.key import estimate_key, key_similarity
from presto_core.metrics.adherence.onsets import HOP, measure_onsets
from presto_core.metrics.adherence.score import ClipMeasurements, PromptTargets, measure_adherence
from presto_core.metrics.adherence.tempo import estimate_tempo
from presto_core.metrics.adherence.waveform import ANALYSIS_RATE_HZ, compute_spectra, prepare_waveform
from presto_core.metrics.embedders.musicnn import MusicnnEmbedder

RATE_HZ = 44_100
Array = np.ndarray[Any, np.dtype[np.float32]]


def _make_clicks(tempo_bpm: float, *, seconds: float = 6.0) -> Array:
    """Return decaying 1 kHz clicks on every beat: [N]."""
    samples = np.arange(2000)
    click = np.exp(-samples / 200) * np.sin(2 * np.pi * 1000 * samples / RATE_HZ)
    audio = np.zeros(round(seconds * RATE_HZ) + len(click))
    for beat in range(int(seconds * tempo_bpm / 60) + 1):
        start = round(beat * 60 / tempo_bpm * RATE_HZ)
        audio[start : start + len(click)] += click[: len(audio) - start]
    return audio[: round(seconds * RATE_HZ)].astype(np.float32)


def _play_chord(pitches: list[int], *, seconds: float = 1.0, cents: float = 0.0) -> Array:
    """Return MIDI pitches as sums of four decaying harmonics: [N]."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    frequencies = [440 * 2 ** ((pitch - 69 + cents / 100) / 12) for pitch in pitches]
    tones = [np.sin(2 * np.pi * f * n * time) / n**2 for f in frequencies for n in range(1, 5)]
    return (0.1 * np.sum(tones, 0) * np.exp(-time)).astype(np.float32)


def _play_cadence(key: int, *, cents: float = 0.0) -> Array:
    """Return I IV V I, or i iv V i, of a key counted as `key_index`."""
    mode, tonic = divmod(key, 12)
    third = 3 if mode else 4
    chords = [(0, third, 7), (5, 5 + third, 12), (7, 11, 14), (0, third, 7)]
    return np.concatenate([_play_chord([48 + tonic + step for step in chord], cents=cents) for chord in chords])


def _make_waveforms() -> list[Array]:
    """Return clicks, cadences in and out of tune, noise and silence at the rate of analysis."""
    noise = np.random.default_rng(0).standard_normal(4 * RATE_HZ).astype(np.float32)
    clips = [_make_clicks(96), *(_play_cadence(5, cents=cents) for cents in (0.0, 17.0, -38.0)), 0.1 * noise]
    waveforms = [prepare_waveform(clip, rate_hz=RATE_HZ) for clip in (*clips, np.zeros(4 * RATE_HZ, np.float32))]
    return [waveform for waveform in waveforms if waveform is not None]


# librosa


# over 10 s: librosa compiles a part of itself in the first process that uses it
def test_onset_strength_tuning_and_chroma_are_librosas() -> None:
    import librosa  # here, since it takes seconds

    for waveform in _make_waveforms():
        onsets = librosa.onset.onset_strength(y=waveform, sr=ANALYSIS_RATE_HZ, hop_length=HOP)
        np.testing.assert_allclose(measure_onsets(waveform), onsets, rtol=1e-5, atol=1e-5 * onsets.max())
        spectra = compute_spectra(waveform, n_fft=N_FFT, hop=CHROMA_HOP).numpy()
        np.testing.assert_allclose(
            spectra, np.abs(librosa.stft(waveform, n_fft=N_FFT, hop_length=CHROMA_HOP)).T, atol=1e-3
        )
        if not waveform.any():
            assert estimate_tuning(spectra) == 0 == measure_chroma(waveform).max()
            continue
        tuning = librosa.estimate_tuning(S=spectra.T, sr=ANALYSIS_RATE_HZ, n_fft=N_FFT)
        assert estimate_tuning(spectra) == tuning
        settings: dict[str, Any] = {"norm": None, "tuning": tuning, "ctroct": 4.5, "octwidth": 1.5}
        chroma = librosa.feature.chroma_stft(S=spectra.T, sr=ANALYSIS_RATE_HZ, n_fft=N_FFT, **settings).sum(1)
        np.testing.assert_allclose(measure_chroma(waveform), chroma, rtol=1e-5, atol=1e-5 * chroma.max())


# tempo


@pytest.mark.parametrize("tempo_bpm", [41, 50, 63, 75, 88.5, 97, 105, 118, 124.3, 133, 145])
def test_the_tempo_of_clicks_is_exact_to_one_percent(tempo_bpm: float) -> None:
    assert estimate_tempo(_make_clicks(tempo_bpm), rate_hz=RATE_HZ) == pytest.approx(tempo_bpm, rel=0.01)


@pytest.mark.parametrize("tempo_bpm", [160, 175, 200])
def test_clicks_without_accents_faster_than_the_prior_are_felt_at_half_their_tempo(tempo_bpm: float) -> None:
    assert estimate_tempo(_make_clicks(tempo_bpm), rate_hz=RATE_HZ) == pytest.approx(tempo_bpm / 2, rel=0.01)


def test_the_tempo_does_not_depend_on_sample_rate_or_level() -> None:
    clicks = _make_clicks(96)
    for rate_hz, gain in ((48_000, 0.1), (22_050, 1.0), (32_000, 0.01)):
        audio = gain * soxr.resample(clicks, RATE_HZ, rate_hz)
        assert estimate_tempo(audio, rate_hz=rate_hz) == pytest.approx(96, rel=0.01)


def test_noise_a_tone_and_silence_have_no_tempo() -> None:
    rng, time = np.random.default_rng(0), np.arange(6 * RATE_HZ) / RATE_HZ
    noises = [0.1 * rng.standard_normal(len(time)).astype(np.float32) for _ in range(8)]
    for audio in (*noises, 0.1 * np.sin(2 * np.pi * 220 * time), np.zeros(len(time))):
        assert estimate_tempo(audio, rate_hz=RATE_HZ) is None


# key


@pytest.mark.parametrize("cents", [0.0, 30.0])
def test_the_keys_of_cadences_are_exact_in_all_24_keys_even_out_of_tune(cents: float) -> None:
    assert [estimate_key(_play_cadence(key, cents=cents), rate_hz=RATE_HZ) for key in range(24)] == list(range(24))


def test_noise_and_silence_have_no_key() -> None:
    noise = np.random.default_rng(0).standard_normal(6 * RATE_HZ)
    assert estimate_key(noise, rate_hz=RATE_HZ) is None
    assert estimate_key(np.zeros(6 * RATE_HZ), rate_hz=RATE_HZ) is None


def test_key_similarity_has_the_weights_of_mirex() -> None:
    c_major, a_minor = key_index("C major"), key_index("A minor")
    weights = {"C major": 1.0, "G major": 0.5, "F major": 0.0, "A minor": 0.3, "C minor": 0.2, "E minor": 0.0}
    assert {name: key_similarity(key_index(name), c_major) for name in weights} == weights
    weights = {"A minor": 1.0, "E minor": 0.5, "C major": 0.3, "A major": 0.2, "D minor": 0.0}
    assert {name: key_similarity(key_index(name), a_minor) for name in weights} == weights
    assert key_similarity(None, c_major) == key_similarity(UNKNOWN_KEY, c_major) == 0


@pytest.mark.parametrize("estimate", [estimate_tempo, estimate_key])
def test_broken_audio_is_refused_and_a_short_clip_has_no_estimate(estimate: Any) -> None:
    clicks = _make_clicks(100)
    assert estimate(clicks[:RATE_HZ], rate_hz=RATE_HZ) is None
    with pytest.raises(ValueError, match=r"\[2, 132300\]"):
        estimate(clicks.reshape(2, -1), rate_hz=RATE_HZ)
    clicks[7] = np.nan
    with pytest.raises(ValueError, match="1 of 264600"):
        estimate(clicks, rate_hz=RATE_HZ)


# music


def test_composed_clips_follow_their_own_captions_much_more_often_than_others() -> None:
    pieces = [compose(seed=3, style_name=style, seconds=6.0) for style in STYLES]
    clips = [render(piece, seconds=6.0) for piece in pieces]
    low = torch.from_numpy(np.stack([soxr.resample(clip, RATE_HZ, 16_000) for clip in clips]))
    tempi = [estimate_tempo(clip, rate_hz=RATE_HZ) for clip in clips]
    keys = [estimate_key(clip, rate_hz=RATE_HZ) for clip in clips]
    measured = ClipMeasurements(
        np.array(tempi, dtype=float),
        np.array(keys, dtype=float),
        MusicnnEmbedder().embed_with_tags(low)[1].mean(1).numpy(),
    )
    prompts = PromptTargets(
        captions=[make_caption(piece, seed=0) for piece in pieces],
        tempo_bpm=np.array([piece.tempo_bpm for piece in pieces]),
        key=np.array([key_index(piece.key) for piece in pieces]),
        groups=np.arange(len(pieces)),
    )
    found = measure_adherence(measured, prompts)
    assert found["tempo_hits"] > found["tempo_hits_shuffled"] + 0.45
    assert found["key_hits"] > found["key_hits_shuffled"] + 0.5
    assert found["tag_hits"] > found["tag_hits_shuffled"] + 0.5
