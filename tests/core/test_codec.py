"""The embedded codec: its geometry, round-trip error, Griffin-Lim and its initial phase, and invalid weights."""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.audio.codec import CodecError
from presto_core.audio.load_codec import load_codec
from presto_core.audio.mel_codec.banded_matrix import BandedMatrix, TallBandedMatrix
from presto_core.audio.mel_codec.griffin_lim import griffin_lim, spectrum
from presto_core.audio.mel_codec.mel_frames import MelSettings, log_mel, power_frames
from presto_core.audio.mel_codec.mel_pca import DECODER_FILE, ENCODER_FILE, MelPcaCodec
from presto_core.audio.mel_codec.peak_phase import peak_phase
from presto_core.audio.mel_codec.tensor_file import TensorFile

RATE_HZ = 44100
ROUND_TRIP_DB = 4.0
WEIGHTS = Path(str(files("presto_core.audio") / "weights"))


def tune(seconds: float, *, seed: int = 0) -> Tensor:
    """[1, 1, N]: decaying notes of five partials, one per quarter second, and a noise burst with every second note."""
    generator = np.random.default_rng(seed)
    samples = np.zeros(int(seconds * RATE_HZ))
    note = np.arange(RATE_HZ // 2) / RATE_HZ
    for index in range(int(seconds * 4)):
        hz = 110 * 2 ** (generator.integers(0, 36) / 12)
        sound = sum(np.sin(2 * np.pi * hz * k * note) / k**1.5 for k in range(1, 6)) * np.exp(-4 * note)
        if index % 2:
            sound = sound + 0.3 * generator.standard_normal(len(note)) * np.exp(-40 * note)
        start = index * RATE_HZ // 4
        room = samples[start : start + len(note)]
        room += sound[: len(room)]
    return torch.from_numpy(0.2 * samples / samples.std() / 2).float()[None, None]


def log_mel_error_db(first: Tensor, second: Tensor) -> float:
    """Return the mean absolute difference of the codec's own log-mel frames, in dB."""
    mel = MelSettings()
    levels = [
        log_mel(power_frames(audio[0, 0], mel), mel.make_filters(), power_floor=mel.power_floor)
        for audio in (first, second)
    ]
    return float((levels[0] - levels[1]).abs().mean() * 10 / math.log(10))


@pytest.fixture(scope="module")
def codec() -> MelPcaCodec:
    return MelPcaCodec.load()


def test_latents_have_the_geometry_of_stable_audio(codec: MelPcaCodec) -> None:
    assert (codec.channels, codec.hop, codec.sample_rate_hz, codec.audio_channels) == (64, 2048, 44100, 1)
    latents = codec.encode(torch.zeros(1, 1, 32 * RATE_HZ))
    assert latents.shape == (1, 64, 689)
    assert latents.dtype == torch.float32
    assert codec.decode(latents[..., :10]).shape == (1, 1, 10 * 2048)


@pytest.mark.parametrize("samples", [2048, 4095, 4096, 100_000])
def test_every_whole_hop_becomes_a_frame(codec: MelPcaCodec, samples: int) -> None:
    assert codec.encode(torch.zeros(1, 1, samples)).shape[2] == samples // 2048


def test_round_trip_keeps_the_tune(codec: MelPcaCodec) -> None:
    """On unseen audio: log-mel error below 4 dB (measured 3; another tune is over 8 away), level within 2.5 dB."""
    original = tune(6)[..., : 129 * 2048]
    back = codec.decode(codec.encode(original))
    assert log_mel_error_db(original, back) < ROUND_TRIP_DB
    assert log_mel_error_db(original, tune(6, seed=1)[..., : 129 * 2048]) > 2 * ROUND_TRIP_DB
    assert 10 * math.log10(back.square().mean() / original.square().mean()) == pytest.approx(0, abs=2.5)


def test_a_clip_does_not_depend_on_its_batch(codec: MelPcaCodec) -> None:
    audio = torch.cat([tune(1.5, seed=seed) for seed in range(3)])
    latents = codec.encode(audio)
    assert torch.equal(latents[1:2], codec.encode(audio[1:2]))
    assert torch.equal(codec.decode(latents)[1:2], codec.decode(latents[1:2]))


def test_decoding_repeats_and_leaves_the_random_state_alone(codec: MelPcaCodec) -> None:
    latents = torch.randn(1, 64, 20, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    first = codec.decode(latents)
    assert torch.equal(first, codec.decode(latents))
    assert torch.equal(before, torch.random.get_rng_state())


def test_wild_latents_decode_to_finite_audio(codec: MelPcaCodec) -> None:
    wild = 30 * torch.randn(1, 64, 20, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(codec.decode(wild)).all()


def test_products_without_the_zeros_of_mel_filters_are_those_with_them() -> None:
    filters, rows = MelSettings().make_filters(), torch.rand(7, 160)
    with_an_empty_column = torch.cat([filters.T, torch.zeros(160, 130)], dim=1)
    for matrix in (filters.T, with_an_empty_column):
        torch.testing.assert_close(BandedMatrix(matrix).apply_to(rows), rows @ matrix)


@pytest.mark.parametrize("rows", [1, 2, 7, 96, 500])
def test_mel_power_without_zeros_is_that_of_one_product(rows: int) -> None:
    filters = MelSettings().make_filters()
    power = torch.randn(rows, len(filters), generator=torch.Generator().manual_seed(rows)).exp()
    with_an_empty_group = torch.cat([filters, torch.zeros(400, 160)])
    for matrix, sums in ((filters, power), (with_an_empty_group, torch.cat([power, power[:, :400]], dim=1))):
        found = TallBandedMatrix(matrix).apply_to(sums).double()
        torch.testing.assert_close(found, sums.double() @ matrix.double(), rtol=1e-6, atol=0)


def test_magnitudes_end_with_their_last_frame_where_it_is_repeated(codec: MelPcaCodec) -> None:
    log_mel = codec.decoder.predict_log_mel(torch.randn(2, 64, 30, generator=torch.Generator().manual_seed(0)))
    plain, repeated = (codec.decoder.invert_log_mel(log_mel, repeat_last=repeat) for repeat in (False, True))
    assert torch.equal(repeated, torch.cat([plain, plain[:, -1:]], dim=1))


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_griffin_lim_in_blocks_is_fast_griffin_lim_as_written(iterations: int) -> None:
    """c_n = P(t_(n-1)), t_n = c_n + m (c_n - c_(n-1)) (Perraudin et al. 2013), in float64 and all frames at once."""
    samples = tune(1.5)[0, 0, : 110 * 512]
    magnitude = spectrum(samples, n_fft=2048, hop=512).abs() + 0.1
    phase = 6.28 * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    window, length = torch.hann_window(2048).double(), 110 * 512

    def to_signal(spectra: Tensor) -> Tensor:
        return torch.istft(spectra.T, 2048, 512, window=window, length=length)

    estimate, last = magnitude.double() * torch.exp(1j * phase.double()), torch.zeros(())
    for number in range(iterations):
        padded = F.pad(to_signal(estimate), (1024, 1024))
        consistent = torch.stft(padded, 2048, 512, window=window, center=False, return_complex=True).T
        moved = consistent + 0.99 * (consistent - last) if number else consistent
        estimate, last = magnitude * moved / moved.abs(), consistent
    found = griffin_lim(magnitude, phase, hop=512, iterations=iterations)
    inner = slice(4096 * (iterations + 1), -4096 * (iterations + 1))  # beyond, margins of the signal are handled apart
    torch.testing.assert_close(found[inner].double(), to_signal(estimate)[inner], atol=5e-6, rtol=0)


def test_griffin_lim_inverts_a_true_spectrum() -> None:
    samples = tune(0.5)[0, 0, : 40 * 512]
    true = spectrum(samples, n_fft=2048, hop=512)
    back = griffin_lim(true.abs(), true.angle(), hop=512, iterations=0)
    torch.testing.assert_close(back, samples, atol=1e-5, rtol=0)


def test_griffin_lim_brings_the_magnitude_closer() -> None:
    """Its cost, the distance of the signal's magnitude to the target, decreases (Griffin & Lim 1984, theorem 1)."""
    wanted = spectrum(tune(0.5)[0, 0, : 40 * 512], n_fft=2048, hop=512).abs()
    start = torch.zeros_like(wanted)
    costs = []
    for iterations in (0, 1, 4, 16):
        got = spectrum(griffin_lim(wanted, start, hop=512, iterations=iterations), n_fft=2048, hop=512).abs()
        costs.append(float((got - wanted)[3:-3].norm() / wanted.norm()))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.5 * costs[0]


def test_peak_phase_of_a_steady_tone_is_its_phase() -> None:
    """The phase of a stationary sinusoid advances by 2 pi f hop / rate per frame in every bin of its main lobe."""
    hz, hop = 987.7, 512
    tone = torch.sin(2 * torch.pi * hz * torch.arange(40 * hop) / RATE_HZ)
    magnitude = spectrum(tone, n_fft=2048, hop=hop).abs()
    phase = peak_phase(magnitude, hop=hop)[4:-4, 45:47]
    turned = torch.exp(1j * (phase.diff(dim=0) - 2 * math.pi * hz * hop / RATE_HZ)).angle()
    assert turned.abs().max() < 0.15


def test_digests_follow_weights_and_settings() -> None:
    weights = TensorFile.load(WEIGHTS / ENCODER_FILE)
    nudged = {**weights.tensors, "mean": weights.tensors["mean"] + 1e-3}
    other = {**weights.settings, "power_floor": 1e-3}
    digests = {
        weights.digest,
        TensorFile(weights.settings, nudged).digest,
        TensorFile(other, weights.tensors).digest,
    }
    assert len(digests) == 3


def test_another_decoder_leaves_the_latents_digest(tmp_path: Path) -> None:
    decoder = TensorFile.load(WEIGHTS / DECODER_FILE)
    TensorFile({**decoder.settings, "iterations": 9}, decoder.tensors).save(tmp_path / DECODER_FILE)
    TensorFile.load(WEIGHTS / ENCODER_FILE).save(tmp_path / ENCODER_FILE)
    first, second = MelPcaCodec.load(), load_codec("mel_pca", path=str(tmp_path))
    assert first.digest == second.digest
    assert first.decoder_digest != second.decoder_digest


def test_shipped_weights_are_those_of_the_provenance(codec: MelPcaCodec) -> None:
    provenance = json.loads((WEIGHTS / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["encoder"]["digest"] == codec.digest
    assert provenance["decoder"]["digest"] == codec.decoder_digest
    assert sum((WEIGHTS / name).stat().st_size for name in (ENCODER_FILE, DECODER_FILE)) <= 1_000_000


@pytest.mark.parametrize("name", [ENCODER_FILE, DECODER_FILE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_bad_weights_give_a_one_line_error(tmp_path: Path, name: str, damage: str) -> None:
    for kept in (ENCODER_FILE, DECODER_FILE):
        (tmp_path / kept).write_bytes((WEIGHTS / kept).read_bytes())
    if damage == "missing":
        (tmp_path / name).unlink()
    elif damage == "truncated":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    else:
        TensorFile({"iterations": 2}, {"x": torch.zeros(2)}).save(tmp_path / name)
    with pytest.raises(CodecError) as caught:
        load_codec("mel_pca", path=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert "codec" in str(caught.value)


def test_unknown_kind_and_wrong_shapes_are_refused(codec: MelPcaCodec) -> None:
    with pytest.raises(CodecError, match=r"codec\.kind=mp3 .*mel_pca, oobleck"):
        load_codec("mp3")
    with pytest.raises(CodecError, match=re.escape("[1, 2, 4096]")):
        codec.encode(torch.zeros(1, 2, 4096))
    with pytest.raises(CodecError, match=re.escape("[64, 10]")):
        codec.decode(torch.zeros(64, 10))
