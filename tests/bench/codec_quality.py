"""What the embedded codec keeps of music it was not fitted to, by decoder, and at which speed; draws spectrograms.

`OMP_NUM_THREADS=1 python -m tests.bench.codec_quality <corpus folder> [--images docs/images]`
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.audio.chunks import decode
from presto_core.audio.mel_codec.griffin_lim import griffin_lim, spectrum
from presto_core.audio.mel_codec.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_codec.mel_pca import MelPcaCodec, MelPcaEncoder
from presto_core.audio.mel_codec.tensor_file import TensorFile
from presto_core.audio.round_trip import compute_band_levels_db
from presto_core.metrics.embedders.musicnn import PATCH_FRAMES, MusicnnEmbedder

RATE_HZ, N_FFT, HOP = 44100, 2048, 512
SKIPPED_SECONDS = 6  # many pieces begin softly
CLIP_SAMPLES = 193 * 2048  # 9 s: three musicnn patches
DRAWN = (7, 8, 40)  # string quartet, piano, funk
COLUMNS = ("tags r", "features cos", "log-mel dB", "MR-STFT", "onsets r", "SNR dB")
PLAIN, SHIPPED = "PCA inverse, random phase, 16 rounds", "shipped decoder, 4 rounds"
Decoder = Callable[[Tensor], Tensor]
"""Samples, magnitudes or latents of one clip -> samples [N]."""


def load_test_clips(corpus: Path) -> Tensor:
    """Nine seconds of every test piece: [B, N]; of the former split `held_out` in a corpus made before."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = []
    for row in rows:
        if row["split"] in ("test", "held_out"):
            with (corpus / row["file"]).open("rb") as stream:
                samples = decode(stream, sample_rate_hz=RATE_HZ)[SKIPPED_SECONDS * RATE_HZ :][:CLIP_SAMPLES]
            clips.append(torch.from_numpy(np.pad(samples, (0, CLIP_SAMPLES - len(samples)))))
    return torch.stack(clips)


def musicnn(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Tags [P, 50] and penultimate features [P, 200] of all three-second patches of clips [B, N]."""
    embedder = MusicnnEmbedder()
    low = torch.from_numpy(np.stack([soxr.resample(clip.numpy(), RATE_HZ, 16000) for clip in audio]))
    patches = embedder.mel(low).unfold(1, PATCH_FRAMES, PATCH_FRAMES).transpose(2, 3).flatten(0, 1)
    return embedder.net(patches)


def correlation(first: Tensor, second: Tensor) -> float:
    """Mean over rows of Pearson's r."""
    return float(F.cosine_similarity(first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)).mean())


def onset_strength(clip: Tensor) -> Tensor:
    """Mean rise of band levels from one 5.8 ms frame to the next, where notes begin: [1, frames - 1]."""
    levels = compute_band_levels_db(clip, rate_hz=RATE_HZ, n_fft=1024, hop=256, bands=40)
    return levels.diff(dim=0).clamp_min(0).mean(1)[None]


def stft_distance(clip: Tensor, other: Tensor) -> float:
    """Multi-resolution STFT distance: |a - b| / |a| + mean |ln a - ln b|, mean of three window lengths."""
    total = 0.0
    for n_fft in (512, 1024, 2048):
        a, b = (spectrum(x, n_fft=n_fft, hop=n_fft // 4).abs() for x in (clip, other))
        total += float((a - b).norm() / a.norm() + ((a + 1e-5).log() - (b + 1e-5).log()).abs().mean()) / 3
    return total


def scores(originals: Tensor, reference: tuple[Tensor, Tensor], decoded: Tensor) -> list[float]:
    """Agreement of decoded clips with the originals, of which musicnn heard `heard`; in the order of COLUMNS."""
    tags, features = musicnn(decoded)
    centre = reference[1].mean(0)
    pairs = list(zip(originals, decoded))
    levels = [[compute_band_levels_db(clip, rate_hz=RATE_HZ) for clip in pair] for pair in pairs]
    noise = [float(a.square().sum() / (a - b).square().sum()) for a, b in pairs]
    return [
        correlation(reference[0], tags),
        float(F.cosine_similarity(reference[1] - centre, features - centre).mean()),
        float(np.mean([float((a - b).abs().mean()) for a, b in levels])),
        float(np.mean([stft_distance(a, b) for a, b in pairs])),
        float(np.mean([correlation(onset_strength(a), onset_strength(b)) for a, b in pairs])),
        float(np.mean([10 * math.log10(ratio) for ratio in noise])),
    ]


def from_random_phase(magnitude: Tensor) -> Tensor:
    """Sixteen Griffin-Lim rounds."""
    start = 2 * math.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    return griffin_lim(magnitude, start, hop=HOP, iterations=16)


def pca_inverse(encoder: MelPcaEncoder) -> Decoder:
    """Only undoes the PCA, frame by frame: the plainest decoder of the same latents."""
    kernel = (encoder.basis * encoder.scale)[:, :, None]
    weights = TensorFile({"taps": 1, "corrections": 4}, {"linear.weight": kernel, "linear.bias": encoder.mean})
    decoder = MagnitudeDecoder(weights, encoder.settings)

    def decode_latents(latents: Tensor) -> Tensor:
        magnitude = decoder.predict_magnitude(latents)
        return from_random_phase(torch.cat([magnitude, magnitude[-1:]]))

    return decode_latents


def with_rounds(codec: MelPcaCodec, iterations: int) -> Decoder:
    """The codec's own decoder with another number of Griffin-Lim rounds."""
    decoder = codec.decoder
    weights = TensorFile(
        {"taps": decoder.settings.taps, "corrections": decoder.settings.corrections, "iterations": iterations},
        {"linear.weight": decoder.weight, "linear.bias": decoder.bias},
    )
    changed = MelPcaCodec(codec.encoder, MagnitudeDecoder(weights, codec.settings))
    return lambda latents: changed.decode(latents[None])[0, 0]


def draw(sounds: dict[str, Tensor], path: Path) -> None:
    """Spectrograms of one clip, one above the other: four seconds, to 6 kHz, in 128 colours to keep the file small."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(7.5, 2.2 * len(sounds)), layout="constrained")
    for axes, (name, sound) in zip(figure.subplots(len(sounds), 1, sharex=True), sounds.items()):
        level = 20 * spectrum(sound[: 4 * RATE_HZ], n_fft=N_FFT, hop=HOP).abs().clamp_min(1e-3).log10()
        axes.imshow(level.T[:280], origin="lower", aspect="auto", vmin=-30, vmax=40, extent=(0, 4, 0, 6))
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_ylabel("kHz")
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def rows(codec: MelPcaCodec, originals: Tensor, latents: Tensor) -> dict[str, tuple[Decoder, Tensor]]:
    """What is compared: a name, a decoder, and what it decodes."""
    magnitudes = torch.stack([spectrum(clip, n_fft=N_FFT, hop=HOP).abs() for clip in originals])
    return {
        "another clip": (lambda clip: clip, originals.roll(1, 0)),
        "true magnitude, random phase, 16 rounds": (from_random_phase, magnitudes),
        PLAIN: (pca_inverse(codec.encoder), latents),
        "decoder with 0 rounds": (with_rounds(codec, 0), latents),
        SHIPPED: (lambda clip: codec.decode(clip[None])[0, 0], latents),
        "decoder with 16 rounds": (with_rounds(codec, 16), latents),
    }


def time_decoder(decoder: Decoder, inputs: Tensor) -> tuple[Tensor, float]:
    """Decoded clips [B, N], and seconds of sound per second of one processor core."""
    began = time.process_time()
    decoded = torch.stack([decoder(clip) for clip in inputs])
    return decoded, decoded.numel() / RATE_HZ / (time.process_time() - began)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--images", type=Path, help="folder to draw spectrograms into")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    originals, codec, sounds = load_test_clips(arguments.corpus), MelPcaCodec.load(), {}
    reference, latents = musicnn(originals), codec.encode(originals[:, None])
    print(f"{len(originals)} test clips of {CLIP_SAMPLES / RATE_HZ:.0f} s, {len(reference[0])} musicnn patches\n")
    print(f"| decoder | {' | '.join(COLUMNS)} | x real time |\n|---{'|---' * (len(COLUMNS) + 1)}|")
    for name, (decoder, inputs) in rows(codec, originals, latents).items():
        sounds[name], speed = time_decoder(decoder, inputs)
        cells = [f"{value:.2f}" for value in scores(originals, reference, sounds[name])]
        print(f"| {name} | {' | '.join(cells)} | {'' if inputs is not latents else round(speed)} |", flush=True)
    for number, clip in enumerate(DRAWN if arguments.images else (), start=1):
        shown = {"original": originals[clip], "encoded and decoded": sounds[SHIPPED][clip]}
        draw(shown, arguments.images / f"codec_{number}.png")


if __name__ == "__main__":
    main()
