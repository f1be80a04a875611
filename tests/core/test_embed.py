"""The shipped musicnn against TensorFlow's outputs and its front end against a slow NumPy spectrogram."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from presto_core.config.evaluation import EmbedderConfig
from presto_core.metrics.embedders.embedder import EmbedderError
from presto_core.metrics.embedders.musicnn import HOP, PATCH_FRAMES, MusicnnEmbedder, pool_over_mel
from presto_core.metrics.embedders.table import load_embedder

RATE_HZ = 16000
FIXTURE = Path(__file__).parent / "data/musicnn_tensorflow.npz"
WEIGHTS = "musicnn_mtt.safetensors"
PATCH_SAMPLES = (PATCH_FRAMES - 1) * HOP  # the shortest audio with a full patch of frames


@pytest.fixture(scope="module")
def embedder() -> MusicnnEmbedder:
    return MusicnnEmbedder()


def music(seconds: float, *, seed: int = 0, level: float = 0.1) -> Tensor:
    """[1, N]: three tones that come and go, and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    tones = sum(np.sin(2 * np.pi * hz * time) * np.sin(2 * np.pi * hz / 400 * time) for hz in rng.uniform(80, 3000, 3))
    return torch.from_numpy(level * (tones + 0.2 * rng.standard_normal(len(time)))).float()[None]


def slaney_hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's Auditory Toolbox scale: linear below 1 kHz (15 mel), then 27 logarithmic steps for a factor of 6.4."""
    return np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def numpy_log_mel(samples: np.ndarray) -> np.ndarray:
    """Reference, [N] -> [frames, 96] in float64: one frame at a time, triangles of unit area point by point."""
    padded = np.pad(samples, 256)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = [padded[at : at + 512] * window for at in range(0, len(samples) + 1, 256)]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = slaney_hz(np.linspace(0, 15 + np.log(8) * 27 / np.log(6.4), 98))
    bins = np.arange(257) * RATE_HZ / 512
    filters = np.zeros((257, 96))
    for i, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:])):
        triangle = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
        filters[:, i] = np.maximum(triangle, 0) * 2 / (high - low)
    return np.log10(1 + 10000 * power @ filters)


def test_network_gives_tensorflows_outputs(embedder: MusicnnEmbedder) -> None:
    """The published checkpoint run by TensorFlow on two patches, to single precision."""
    expected = np.load(FIXTURE)
    with torch.inference_mode():
        tags, penultimate = embedder.net(torch.from_numpy(expected["logmel"]))
    np.testing.assert_allclose(tags, expected["MTT_musicnn_tags"], atol=5e-6)
    np.testing.assert_allclose(penultimate, expected["MTT_musicnn_penultimate"], atol=2e-5)
    # the tolerance distinguishes the other published checkpoint and the other patch
    assert np.abs(penultimate.numpy() - expected["MSD_musicnn_penultimate"]).max() > 0.1
    assert np.abs(penultimate.numpy()[::-1] - expected["MTT_musicnn_penultimate"]).max() > 0.1


def test_maps_pooled_before_relu_and_normalization_are_those_pooled_after(embedder: MusicnnEmbedder) -> None:
    maps = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 193, 96))).float()
    net = embedder.net
    norms = [norm for norm in net.bn_f if isinstance(norm, torch.nn.BatchNorm2d)]
    assert (norms[0].weight < 0).any()
    assert (norms[0].weight > 0).any()
    with torch.inference_mode():
        for conv, norm in zip((net.f74, net.f77, *net.s), norms, strict=True):
            assert isinstance(conv, torch.nn.Conv2d)
            expected = norm(torch.relu(conv(maps))).amax(3)
            torch.testing.assert_close(pool_over_mel(maps, conv, norm), expected, rtol=1e-5, atol=1e-5)


def test_front_end_equals_a_slow_spectrogram(embedder: MusicnnEmbedder) -> None:
    audio = music(0.5)
    np.testing.assert_allclose(embedder.mel(audio)[0], numpy_log_mel(audio[0].double().numpy()), atol=2e-4)


def test_embedding_is_the_networks_penultimate_layer_patch_by_patch(embedder: MusicnnEmbedder) -> None:
    audio = music(6.2)
    log_mel = torch.from_numpy(numpy_log_mel(audio[0].double().numpy())).float()
    with torch.inference_mode():
        expected = [embedder.net(log_mel[None, at : at + 187])[1] for at in (0, 187)]
    torch.testing.assert_close(embedder.embed(audio)[0], torch.cat(expected), atol=2e-3, rtol=0)


def test_a_clip_does_not_depend_on_its_batch(embedder: MusicnnEmbedder) -> None:
    clips = torch.cat([music(3, seed=seed) for seed in range(3)])
    together = embedder.embed(clips)
    alone = torch.cat([embedder.embed(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_one_vector_for_each_whole_patch(embedder: MusicnnEmbedder) -> None:
    assert embedder.embed(torch.zeros(1, PATCH_SAMPLES)).shape == (1, 1, 200)
    long = music(2 * PATCH_SAMPLES / RATE_HZ)  # one frame short of two patches
    assert embedder.embed(long).shape == (1, 1, 200)
    torch.testing.assert_close(embedder.embed(long[:, : PATCH_SAMPLES + 256]), embedder.embed(long), atol=1e-5, rtol=0)


def test_silence_and_overload_stay_finite(embedder: MusicnnEmbedder) -> None:
    wild = torch.cat([torch.zeros(1, PATCH_SAMPLES), music(PATCH_SAMPLES / RATE_HZ, level=1e4)])
    assert embedder.embed(wild).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((48000,), r"audio of shape \[48000\]: the embedding takes mono clips \[B, N\]"),
        ((1, 1, 48000), r"audio of shape \[1, 1, 48000\]"),
        ((0, 48000), r"audio of shape \[0, 48000\]"),
    ],
)
def test_audio_that_cannot_be_embedded_is_refused(embedder: MusicnnEmbedder, shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embedder.embed(torch.zeros(shape))


@pytest.mark.parametrize(("samples", "seconds"), [(PATCH_SAMPLES - 1, r"2\.98"), (0, r"0\.00")])
def test_audio_shorter_than_a_patch_is_a_users_error(embedder: MusicnnEmbedder, samples: int, seconds: str) -> None:
    with pytest.raises(EmbedderError, match=rf"{seconds} s of audio is shorter than the 3 s patch of embedder musicnn"):
        embedder.embed(torch.zeros(2, samples))


def test_digest_is_the_shipped_files_and_the_provenances(embedder: MusicnnEmbedder) -> None:
    folder = files("presto_core.metrics") / "weights"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["file"] == WEIGHTS
    assert embedder.digest == provenance["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def test_every_value_of_the_network_comes_from_the_file(embedder: MusicnnEmbedder) -> None:
    """Loading is not strict, so a value that is missing in the file would stay random."""
    stored = load_file(str(files("presto_core.metrics") / "weights" / WEIGHTS))
    state = {name: value for name, value in embedder.net.state_dict().items() if "num_batches_tracked" not in name}
    assert state.keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in state.items())
    assert sum(value.numel() for value in stored.values()) == 792_079


def test_the_name_stands_for_the_same_embedding(embedder: MusicnnEmbedder) -> None:
    named = load_embedder(EmbedderConfig())
    assert (named.name, named.digest, named.sample_rate_hz) == (embedder.name, embedder.digest, RATE_HZ)
    audio = music(3)
    assert torch.equal(named.embed(audio), embedder.embed(audio))
