"""The codec's geometry, its closed-form fit against NumPy, and what survives a round trip."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from presto_core.audio.codec import CodecError, load_codec
from presto_core.audio.codec_fit import fit_linear_decoder, fit_mel_pca
from presto_core.audio.griffin_lim import griffin_lim, spectrum
from presto_core.audio.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_frames import MelSettings, log_mel, log_mel_blocks, power_frames
from presto_core.audio.mel_pca import DECODER_FILE, ENCODER_FILE, MelPcaCodec, MelPcaEncoder
from presto_core.audio.peak_phase import peak_phase
from presto_core.audio.tensor_file import TensorFile

RATE_HZ = 44100
ROUND_TRIP_DB = 4.0
SMALL = MelSettings(n_fft=256, frame_hop=64, mels=12, channels=6)


def tune(seconds: float, *, seed: int = 0) -> Tensor:
    """[1, 1, N]: decaying notes of five partials, one each quarter second, and a noise burst with every second note."""
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


def noise_clips(count: int = 4, seconds: float = 0.5) -> list[Tensor]:
    """Coloured noise whose level wanders: full-rank data to fit on."""
    generator = torch.Generator().manual_seed(3)
    clips = []
    for _ in range(count):
        white = torch.randn(int(seconds * RATE_HZ), generator=generator)
        level = torch.randn(20, generator=generator).exp().repeat_interleave(math.ceil(len(white) / 20))
        clips.append(0.1 * level[: len(white)] * (white + white.roll(1)))
    return clips


def log_mel_error_db(first: Tensor, second: Tensor) -> float:
    """Mean |difference| of the codec's own log-mel frames, in dB."""
    mel = MelSettings()
    levels = [
        log_mel(power_frames(audio[0, 0], mel), mel.filters(), power_floor=mel.power_floor) for audio in (first, second)
    ]
    return float((levels[0] - levels[1]).abs().mean() * 10 / math.log(10))


@pytest.fixture(scope="module")
def codec() -> MelPcaCodec:
    return MelPcaCodec.load()


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of small settings fitted on `noise_clips`, as `presto codec fit` leaves it."""
    folder = tmp_path_factory.mktemp("codec")
    encoder = fit_mel_pca(noise_clips(), SMALL)
    encoder.save(folder / ENCODER_FILE)
    fit_linear_decoder(noise_clips(), MelPcaEncoder(encoder)).save(folder / DECODER_FILE)
    return folder


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
    """On sounds it never saw: log-mel within 4 dB (measured 3; another tune is over 8 away), level within 2.5."""
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


def test_latents_of_the_fit_corpus_are_white() -> None:
    """Zero mean, unit variance, no correlation between channels: the definition of PCA whitening."""
    encoder = MelPcaEncoder(fit_mel_pca(noise_clips(), SMALL))
    latents = torch.cat([encoder.encode(clip) for clip in noise_clips()], dim=1).double()
    assert latents.mean(1).abs().max() < 1e-3
    torch.testing.assert_close(torch.cov(latents, correction=0), torch.eye(6).double(), atol=2e-3, rtol=0)


def test_fit_equals_numpys_singular_values() -> None:
    """An independent route: singular value decomposition of the centred data instead of a streamed covariance."""
    fitted = fit_mel_pca(noise_clips(), SMALL).tensors
    data = torch.cat([log_mel_blocks(clip, SMALL, SMALL.filters()) for clip in noise_clips()]).double().numpy()
    _, singular, axes = np.linalg.svd(data - data.mean(0), full_matrices=False)
    np.testing.assert_allclose(fitted["mean"], data.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted["scale"], singular[:6] / math.sqrt(len(data)), rtol=1e-4)
    np.testing.assert_allclose(np.abs(axes[:6] @ fitted["basis"].numpy()), np.eye(6), atol=1e-3)
    assert (fitted["basis"].gather(0, fitted["basis"].abs().argmax(0, keepdim=True)) > 0).all()


def test_linear_decoder_equals_numpys_least_squares(small_folder: Path) -> None:
    encoder = MelPcaEncoder(TensorFile.load(small_folder / ENCODER_FILE))
    decoder = MagnitudeDecoder.from_file(TensorFile.load(small_folder / DECODER_FILE), SMALL)
    rows, targets = [], []
    for clip in noise_clips():
        padded = np.pad(encoder.encode(clip).double().numpy(), ((0, 0), (2, 2)), mode="edge")
        rows += [padded[:, at : at + 5].reshape(-1) for at in range(padded.shape[1] - 4)]
        targets.append((log_mel_blocks(clip, SMALL, encoder.filters) - encoder.mean).double().numpy())
    kernel = np.linalg.lstsq(np.array(rows), np.concatenate(targets), rcond=None)[0]
    np.testing.assert_allclose(decoder.linear.weight.detach().reshape(48, 30), kernel.T, atol=2e-3)


def test_too_little_audio_to_fit_is_refused() -> None:
    with pytest.raises(CodecError, match=r"fit needs more than 30 s of audio, the corpus has 10 latent frames"):
        fit_mel_pca([torch.zeros(10 * 2048)])


def test_griffin_lim_inverts_a_true_spectrum() -> None:
    samples = tune(0.5)[0, 0, : 40 * 512]
    true = spectrum(samples, n_fft=2048, hop=512)
    back = griffin_lim(true.abs(), true.angle(), hop=512, iterations=0)
    torch.testing.assert_close(back, samples, atol=1e-5, rtol=0)


def test_griffin_lim_brings_the_magnitude_closer() -> None:
    """Its cost, the distance of the signal's magnitude from the wanted one, falls (Griffin & Lim 1984, theorem 1)."""
    wanted = spectrum(tune(0.5)[0, 0, : 40 * 512], n_fft=2048, hop=512).abs()
    start = torch.zeros_like(wanted)
    costs = []
    for iterations in (0, 1, 4, 16):
        got = spectrum(griffin_lim(wanted, start, hop=512, iterations=iterations), n_fft=2048, hop=512).abs()
        costs.append(float((got - wanted)[3:-3].norm() / wanted.norm()))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.5 * costs[0]


def test_peak_phase_of_a_steady_tone_is_its_phase() -> None:
    """A stationary sinusoid's phase turns by 2 pi f hop / rate a frame, in every bin of its main lobe."""
    hz, hop = 987.7, 512
    tone = torch.sin(2 * torch.pi * hz * torch.arange(40 * hop) / RATE_HZ)
    magnitude = spectrum(tone, n_fft=2048, hop=hop).abs()
    phase = peak_phase(magnitude, hop=hop)[4:-4, 45:47]
    turned = torch.exp(1j * (phase.diff(dim=0) - 2 * math.pi * hz * hop / RATE_HZ)).angle()
    assert turned.abs().max() < 0.15


def test_digests_follow_weights_and_settings(small_folder: Path) -> None:
    weights = TensorFile.load(small_folder / ENCODER_FILE)
    nudged = {**weights.tensors, "mean": weights.tensors["mean"] + 1e-3}
    other = {**weights.settings, "power_floor": 1e-3}
    digests = {
        weights.digest,
        TensorFile(weights.settings, nudged).digest,
        TensorFile(other, weights.tensors).digest,
    }
    assert len(digests) == 3


def test_another_decoder_leaves_the_latents_digest(small_folder: Path, tmp_path: Path) -> None:
    decoder = TensorFile.load(small_folder / DECODER_FILE)
    TensorFile({**decoder.settings, "iterations": 9}, decoder.tensors).save(tmp_path / DECODER_FILE)
    TensorFile.load(small_folder / ENCODER_FILE).save(tmp_path / ENCODER_FILE)
    first, second = MelPcaCodec.load(small_folder), load_codec("mel_pca", path=str(tmp_path))
    assert first.digest == second.digest
    assert first.decoder_digest != second.decoder_digest


def test_shipped_weights_are_those_of_the_provenance(codec: MelPcaCodec) -> None:
    weights = files("presto_core.audio") / "weights"
    told = json.loads((weights / "provenance.json").read_text(encoding="utf-8"))
    assert told["encoder"]["digest"] == codec.digest
    assert told["decoder"]["digest"] == codec.decoder_digest
    assert sum(len((weights / name).read_bytes()) for name in (ENCODER_FILE, DECODER_FILE)) <= 8_000_000


@pytest.mark.parametrize("name", [ENCODER_FILE, DECODER_FILE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_bad_weights_are_one_sentence(small_folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    for kept in (ENCODER_FILE, DECODER_FILE):
        (tmp_path / kept).write_bytes((small_folder / kept).read_bytes())
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


@pytest.fixture(scope="module")
def oobleck_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderOobleck with random weights: mono, hop 64, 8 latent channels."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=16, downsampling_ratios=[4, 4, 4], channel_multiples=[1, 2, 2], decoder_channels=8,
        decoder_input_channels=8, audio_channels=1, sampling_rate=16000,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("oobleck")
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def test_oobleck_round_trip(oobleck_folder: Path) -> None:
    codec = load_codec("oobleck", path=str(oobleck_folder))
    assert (codec.channels, codec.hop, codec.sample_rate_hz, codec.audio_channels) == (8, 64, 16000, 1)
    audio = tune(0.25)[..., : 64 * 20 + 63]
    latents = codec.encode(audio)
    assert latents.shape == (1, 8, 20)
    assert codec.decode(latents).shape == (1, 1, 64 * 20)
    assert torch.equal(latents, load_codec("oobleck", path=str(oobleck_folder)).encode(audio))


def test_oobleck_digest_follows_the_weights(oobleck_folder: Path, tmp_path: Path) -> None:
    import diffusers

    model = diffusers.AutoencoderOobleck.from_pretrained(oobleck_folder)
    model.save_pretrained(tmp_path / "same")
    next(iter(model.parameters())).data.add_(1e-3)
    model.save_pretrained(tmp_path / "other")
    first, same, other = (
        load_codec("oobleck", path=str(folder)).digest
        for folder in (oobleck_folder, tmp_path / "same", tmp_path / "other")
    )
    assert first == same
    assert first != other


def test_oobleck_that_cannot_be_loaded_is_one_sentence(oobleck_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"needs codec.path, the local folder"):
        load_codec("oobleck")
    with pytest.raises(CodecError, match=r"has no config.json; set codec.path"):
        load_codec("oobleck", path=str(tmp_path))
    for file in oobleck_folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:-50] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(CodecError, match=r"cannot be loaded") as caught:
        load_codec("oobleck", path=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"downsampling_ratios": [4, 4, 3]}, "must be even"), ({"encoder_hidden_size": 8}, "must be 2 x")],
)
def test_oobleck_layouts_that_fail_later_are_refused_at_once(
    oobleck_folder: Path, tmp_path: Path, setting: dict[str, object], said: str
) -> None:
    import diffusers

    config = json.loads((oobleck_folder / "config.json").read_text())
    shape = {name: value for name, value in config.items() if not name.startswith("_")} | setting
    diffusers.AutoencoderOobleck(**shape).save_pretrained(tmp_path)
    with pytest.raises(CodecError, match=said):
        load_codec("oobleck", path=str(tmp_path))


def test_unknown_kind_and_wrong_shapes_are_refused(codec: MelPcaCodec) -> None:
    with pytest.raises(CodecError, match=r"codec.kind=mp3 is not known; choose one of mel_pca, oobleck"):
        load_codec("mp3")
    with pytest.raises(CodecError, match=r"audio of shape \[1, 2, 4096\]"):
        codec.encode(torch.zeros(1, 2, 4096))
    with pytest.raises(CodecError, match=r"latents of shape \[64, 10\]"):
        codec.decode(torch.zeros(64, 10))
