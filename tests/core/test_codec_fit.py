"""The codec's closed-form fit against NumPy, and `presto codec fit` from a folder of audio to a codec that loads."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from infra.cli import main as cli
from presto_core.audio.codec import CodecError
from presto_core.audio.load_codec import load_codec
from presto_core.audio.mel_codec.codec_fit import fit_linear_decoder, fit_mel_pca
from presto_core.audio.mel_codec.codec_folder import OUTPUT_FILES, FitCorpus
from presto_core.audio.mel_codec.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_codec.mel_frames import MelSettings, log_mel_blocks
from presto_core.audio.mel_codec.mel_pca import MelPcaEncoder

RATE_HZ = 44100
SMALL = MelSettings(n_fft=256, frame_hop=64, mels=12, channels=6)


def noise_clips(count: int = 4, seconds: float = 0.5) -> list[Tensor]:
    """Coloured noise of varying level: full-rank data to fit on."""
    generator = torch.Generator().manual_seed(3)
    clips = []
    for _ in range(count):
        white = torch.randn(int(seconds * RATE_HZ), generator=generator)
        level = torch.randn(20, generator=generator).exp().repeat_interleave(math.ceil(len(white) / 20))
        clips.append(0.1 * level[: len(white)] * (white + white.roll(1)))
    return clips


def test_latents_of_the_fit_corpus_are_half_white() -> None:
    """Zero mean, no correlation between channels, variances the square roots of the originals, with mean one."""
    encoder = MelPcaEncoder(fit_mel_pca(noise_clips(), SMALL))
    latents = torch.cat([encoder.encode(clip) for clip in noise_clips()], dim=1).double()
    assert latents.mean(1).abs().max() < 1e-3
    covariance = torch.cov(latents, correction=0)
    variance = covariance.diag()
    torch.testing.assert_close(covariance, variance.diag(), atol=2e-3, rtol=0)
    axes = variance * encoder.scale.double().square()  # variances before scaling
    torch.testing.assert_close(variance / variance[0], (axes / axes[0]).sqrt(), atol=0, rtol=2e-3)
    assert variance.mean().item() == pytest.approx(1, abs=2e-3)


def test_fit_equals_numpys_singular_values() -> None:
    """Independent reference: singular value decomposition of the centred data instead of a streamed covariance."""
    fitted = fit_mel_pca(noise_clips(), SMALL).tensors
    data = torch.cat([log_mel_blocks(clip, SMALL, SMALL.make_filters()) for clip in noise_clips()]).double().numpy()
    _, singular, axes = np.linalg.svd(data - data.mean(0), full_matrices=False)
    np.testing.assert_allclose(fitted["mean"], data.mean(0), rtol=1e-5)
    spread = singular[:6] / math.sqrt(len(data))
    np.testing.assert_allclose(fitted["scale"], np.sqrt(spread * spread.mean()), rtol=1e-4)
    np.testing.assert_allclose(np.abs(axes[:6] @ fitted["basis"].numpy()), np.eye(6), atol=1e-3)
    assert (fitted["basis"].gather(0, fitted["basis"].abs().argmax(0, keepdim=True)) > 0).all()


def test_linear_decoder_equals_numpys_least_squares() -> None:
    encoder = MelPcaEncoder(fit_mel_pca(noise_clips(), SMALL))
    decoder = MagnitudeDecoder(fit_linear_decoder(noise_clips(), encoder), SMALL)
    rows, targets = [], []
    for clip in noise_clips():
        padded = np.pad(encoder.encode(clip).double().numpy(), ((0, 0), (2, 2)), mode="edge")
        rows += [padded[:, at : at + 5].reshape(-1) for at in range(padded.shape[1] - 4)]
        targets.append((log_mel_blocks(clip, SMALL, encoder.filters) - encoder.mean).double().numpy())
    kernel = np.linalg.lstsq(np.array(rows), np.concatenate(targets), rcond=None)[0]
    np.testing.assert_allclose(decoder.weight.reshape(48, 30), kernel.T, atol=2e-3)


def test_too_little_audio_to_fit_is_refused() -> None:
    with pytest.raises(CodecError, match=r"30 s.*0\.5 s"):
        fit_mel_pca([torch.zeros(10 * 2048)])


def presto(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    """Run the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["presto", *map(str, args)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code, f"exit {left.value.code}"


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 9 s in a sub-folder, a file that is not audio, and one of 25 ms."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "album").mkdir()
    for number, clip in enumerate(noise_clips(4, 9.0)):
        soundfile.write(folder / "album" / f"{number}.wav", clip.numpy().clip(-1, 1), RATE_HZ)
    (folder / "broken.mp3").write_bytes(b"no music")
    soundfile.write(folder / "short.wav", np.zeros(400), 16000)
    return folder


def test_fitted_folder_is_a_codec(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It loads, has provenance, keeps the level of the corpus, and a second fit is bit-identical."""
    first, second = tmp_path / "new" / "first", tmp_path / "second"
    presto(monkeypatch, "codec", "fit", music, "--output", first)
    stderr = capsys.readouterr().err
    assert f"presto ingest codec.path={first}" in stderr
    assert "skipped 2 of 6 files: broken.mp3 (not readable as audio" in stderr
    presto(monkeypatch, "codec", "fit", music, "--output", second)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in OUTPUT_FILES)
    codec, provenance = load_codec("mel_pca", path=str(first)), json.loads((first / "provenance.json").read_text())
    assert (provenance["encoder"]["digest"], provenance["decoder"]["digest"]) == (codec.digest, codec.decoder_digest)
    assert provenance["data"] == {"clips": 4, "skipped": 2}
    audio = noise_clips(1, 4.0)[0][None, None]
    back = codec.decode(codec.encode(audio))
    assert 10 * math.log10(back.square().mean() / audio.square().mean()) == pytest.approx(0, abs=2)


def test_dry_run_shows_what_would_happen_and_writes_nothing(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presto(monkeypatch, "codec", "fit", music, "--output", tmp_path / "out", "--dry-run")
    stderr = capsys.readouterr().err
    assert f"would read 6 audio files of {music}" in stderr
    assert f"mel_pca_decoder.safetensors, provenance.json to {tmp_path / 'out'}" in stderr
    assert not (tmp_path / "out").exists()


def test_a_manifest_keeps_held_out_pieces_away(music: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(music, tmp_path / "corpus"))
    rows = [{"file": "album/0.wav", "split": "train"}, {"file": "album/1.wav", "split": "test"}]
    (corpus / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert FitCorpus.open(corpus).files == (corpus / "album/0.wav",)
    (corpus / "manifest.jsonl").write_text('{"title": "no file"}')
    with pytest.raises(CodecError, match=r"manifest\.jsonl"):
        FitCorpus.open(corpus)


@pytest.mark.parametrize(
    ("folder", "output", "message"),
    [
        ("missing", "out", "missing does not exist"),
        ("empty", "out", "/empty "),
        ("little", "out", "9.0 s"),
        ("little", "file/out", "/file is not a folder"),
        ("little", "taken", "provenance.json"),
    ],
)
def test_bad_inputs_give_a_one_line_error(
    folder: str,
    output: str,
    message: str,
    music: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("empty", "little", "taken"):
        (tmp_path / name).mkdir()
    shutil.copy(music / "album" / "0.wav", tmp_path / "little")
    for file in ("file", "taken/provenance.json"):
        (tmp_path / file).write_text("x")
    monkeypatch.setattr(
        sys, "argv", ["presto", "codec", "fit", str(tmp_path / folder), f"--output={tmp_path / output}"]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert not (tmp_path / "out").exists()
    assert message in capsys.readouterr().err.splitlines()[-1]
