"""What the embedded codec keeps of held-out music, decoder by decoder, and at which speed; draws spectrograms.

`python -m tests.bench.codec_quality <corpus folder> [--images docs/images] [--linear <folder of a linear codec>]`
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.audio.chunks import decode
from presto_core.audio.griffin_lim import griffin_lim, spectrum
from presto_core.audio.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_pca import MelPcaCodec, MelPcaEncoder
from presto_core.audio.peak_phase import peak_phase
from presto_core.audio.tensor_file import TensorFile
from presto_core.metrics.embed import PATCH_FRAMES, MusicnnEmbedder

RATE_HZ, HOP = 44100, 512
CLIP_SAMPLES = 193 * 2048  # 9 s: three musicnn patches
Decoder = Callable[[Tensor], Tensor]
"""Magnitudes or latents of one clip -> samples [N]."""


@dataclass(frozen=True)
class Reference:
    """Held-out clips [B, N] and what musicnn says of them: tags [P, 50], penultimate features [P, 200]."""

    audio: Tensor
    tags: Tensor
    features: Tensor


def held_out_clips(corpus: Path) -> Tensor:
    """Nine seconds of every held-out piece, from its sixth second: [B, N]."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = []
    for row in rows:
        if row["split"] == "held_out":
            with (corpus / row["file"]).open("rb") as stream:
                samples = decode(stream, sample_rate_hz=RATE_HZ)[6 * RATE_HZ :][:CLIP_SAMPLES]
            clips.append(torch.from_numpy(np.pad(samples, (0, CLIP_SAMPLES - len(samples)))))
    return torch.stack(clips)


def musicnn(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Tags [P, 50] and penultimate features [P, 200] of all three-second patches of clips [B, N]."""
    embedder = MusicnnEmbedder()
    low = torch.from_numpy(np.stack([soxr.resample(clip.numpy(), RATE_HZ, 16000) for clip in audio]))
    patches = embedder.mel(low).unfold(1, PATCH_FRAMES, PATCH_FRAMES).transpose(2, 3).flatten(0, 1)
    with torch.inference_mode():
        return embedder.net(patches)


def correlation(first: Tensor, second: Tensor) -> float:
    """Mean over rows of Pearson's r."""
    return float(F.cosine_similarity(first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)).mean())


def band_levels_db(clip: Tensor, *, n_fft: int, hop: int, bands: int) -> Tensor:
    """Mel band levels [frames, bands] in dB, -80 dB below a full-scale sine at the least."""
    from torchaudio.functional import melscale_fbanks

    filters = melscale_fbanks(n_fft // 2 + 1, 20.0, 20000.0, bands, RATE_HZ, norm="slaney", mel_scale="slaney")
    power = spectrum(clip, n_fft=n_fft, hop=hop).abs().square() @ filters
    return 10 * power.clamp_min(1e-7 if n_fft == 2048 else 1e-6).log10()


def onset_strength(clip: Tensor) -> Tensor:
    """Mean rise of band levels from one 5.8 ms frame to the next: where notes begin."""
    return band_levels_db(clip, n_fft=1024, hop=256, bands=40).diff(dim=0).clamp_min(0).mean(1)


def spectral_distances(clip: Tensor, other: Tensor) -> tuple[float, float]:
    """Spectral convergence |a - b| / |a| and the multi-resolution STFT distance (it plus mean |ln a - ln b|)."""
    convergence = distance = 0.0
    for n_fft in (512, 1024, 2048):
        a, b = (spectrum(x, n_fft=n_fft, hop=n_fft // 4).abs() for x in (clip, other))
        ratio = float((a - b).norm() / a.norm())
        convergence += ratio / 3
        distance += (ratio + float(((a + 1e-5).log() - (b + 1e-5).log()).abs().mean())) / 3
    return convergence, distance


def scores(reference: Reference, audio: Tensor) -> dict[str, float]:
    """Agreement of decoded clips with the originals; the first three and `onsets` are better high, the rest low."""
    tags, features = musicnn(audio)
    pairs = list(zip(reference.audio, audio))
    spectral = np.array([spectral_distances(a, b) for a, b in pairs]).mean(0)
    levels = [[band_levels_db(x, n_fft=2048, hop=HOP, bands=100) for x in pair] for pair in pairs]
    onsets = [torch.stack([onset_strength(a), onset_strength(b)]) for a, b in pairs]
    noise = [a.square().sum() / (a - b).square().sum() for a, b in pairs]
    centre = reference.tags.mean(0), reference.features.mean(0)
    return {
        "tag r": correlation(reference.tags, tags),
        "tag cos": float(F.cosine_similarity(reference.tags - centre[0], tags - centre[0]).mean()),
        "feat cos": float(F.cosine_similarity(reference.features - centre[1], features - centre[1]).mean()),
        "mel dB": float(torch.stack([(a - b).abs().mean() for a, b in levels]).mean()),
        "MR-STFT": float(spectral[1]),
        "converg.": float(spectral[0]),
        "onsets r": float(np.mean([correlation(pair[:1], pair[1:]) for pair in onsets])),
        "SNR dB": float(np.mean([10 * math.log10(ratio) for ratio in noise])),
    }


def pca_inverse(encoder: MelPcaEncoder) -> MagnitudeDecoder:
    """The decoder that only undoes the PCA, frame by frame: the plainest baseline."""
    kernel = (encoder.basis * encoder.scale)[:, :, None]
    settings = {"taps": 1, "corrections": 8, "iterations": 16}
    weights = TensorFile(settings, {"linear.weight": kernel, "linear.bias": encoder.mean})
    return MagnitudeDecoder.from_file(weights, encoder.settings).eval()


def through(decoder: MagnitudeDecoder, *, iterations: int, phase: str = "peaks") -> Decoder:
    """Latents [C, T] -> samples, from peaks' or random starting phase."""

    def decoded(latents: Tensor) -> Tensor:
        magnitude = decoder(latents[None])[0]
        return retrieve(torch.cat([magnitude, magnitude[-1:]]), iterations=iterations, phase=phase)

    return decoded


def retrieve(magnitude: Tensor, *, iterations: int, phase: str) -> Tensor:
    if phase == "peaks":
        start = peak_phase(magnitude, hop=HOP)
    else:
        start = 2 * math.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    return griffin_lim(magnitude, start, hop=HOP, iterations=iterations)


@torch.inference_mode()
def measure(name: str, decoder: Decoder, inputs: Tensor, reference: Reference) -> None:
    """Decode clip by clip, print one row of the table with its speed in multiples of real time."""
    decoder(inputs[0])
    began = time.process_time()
    audio = torch.stack([decoder(clip) for clip in inputs])
    speed = audio.numel() / RATE_HZ / (time.process_time() - began)
    cells = [f"{value:.3f}" for value in scores(reference, audio).values()]
    print(f"| {name} | {' | '.join(cells)} | {speed:.0f}x |", flush=True)


def draw(codecs: dict[str, Decoder], reference: Reference, latents: Tensor, folder: Path) -> None:
    """Spectrograms of three clips: original above its decodings, five seconds, to 12 kHz."""
    from matplotlib.figure import Figure

    for number, clip in enumerate((2, 17, 40)):
        sounds = {"original": reference.audio[clip]} | {name: f(latents[clip]) for name, f in codecs.items()}
        figure = Figure(figsize=(8, 2.1 * len(sounds)), layout="constrained")
        for axes, (name, sound) in zip(figure.subplots(len(sounds), 1, sharex=True), sounds.items()):
            level = 20 * spectrum(sound[: 5 * RATE_HZ], n_fft=2048, hop=256).abs().clamp_min(1e-3).log10()
            axes.imshow(level.T[:560], origin="lower", aspect="auto", vmin=-40, vmax=40, extent=(0, 5, 0, 12.06))
            axes.set_title(name, fontsize=9, loc="left")
            axes.set_ylabel("kHz")
        figure.savefig(folder / f"codec_{number + 1}.png", dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--linear", type=Path, help="folder of a codec fitted without network, to compare with")
    parser.add_argument("--images", type=Path, help="folder to draw spectrograms into")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    audio = held_out_clips(arguments.corpus)
    reference = Reference(audio, *musicnn(audio))
    codec = MelPcaCodec.load()
    latents = codec.encode(audio[:, None])
    print(f"{len(audio)} held-out clips of 9 s, {len(reference.tags)} musicnn patches")
    print(f"| decoder | {' | '.join(scores(reference, audio.roll(1, 0)))} | speed |")
    magnitudes = torch.stack([spectrum(clip, n_fft=2048, hop=HOP).abs() for clip in audio])
    row = lambda name, decoder, inputs: measure(name, decoder, inputs, reference)  # noqa: E731
    row("another clip", lambda clip: clip, audio.roll(1, 0))
    row("true magnitude, GL16", lambda m: retrieve(m, iterations=16, phase="random"), magnitudes)
    row("PCA inverse, random phase, GL16", through(pca_inverse(codec._encoder), iterations=16, phase="random"), latents)
    shown = {"PCA inverse, Griffin-Lim 16": through(pca_inverse(codec._encoder), iterations=16, phase="random")}
    decoders = {"shipped": codec._decoder}
    if arguments.linear:
        decoders = {"linear": MelPcaCodec.load(arguments.linear)._decoder, **decoders}
    for name, decoder in decoders.items():
        row(f"{name}, random phase, GL16", through(decoder, iterations=16, phase="random"), latents)
        for iterations in (0, 1, 2, 4, 8):
            row(f"{name}, GL{iterations}", through(decoder, iterations=iterations), latents)
    shown["shipped decoder"] = through(codec._decoder, iterations=codec._decoder.settings.iterations)
    if arguments.images:
        with torch.inference_mode():
            draw(shown, reference, latents, arguments.images)


if __name__ == "__main__":
    main()
