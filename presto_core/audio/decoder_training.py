"""Trains the network of the embedded codec's decoder on spectra: no waveform in the loop, one CPU core is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from presto_core.audio.codec import CodecError
from presto_core.audio.magnitude_decoder import DecoderSettings, MagnitudeDecoder
from presto_core.audio.mel_frames import MelSettings, log_mel
from presto_core.audio.mel_pca import MelPcaEncoder
from presto_core.audio.tensor_file import TensorFile

BIN_POWER_FLOOR = 1e-5  # quieter than this a bin's level does not count
COMPRESSION = 0.3  # exponent that turns magnitude into something like loudness
LOUDNESS_WEIGHT = 4.0  # makes the second loss about as large as the others
FULL_SCALE = 32767.0


@dataclass(frozen=True)
class DecoderTraining:
    """How long and on what.

    Attributes:
        segment_frames: latent frames of one training example.
        learning_rate: at its highest; rises over `warmup_steps`, then falls linearly to zero.
        latent_noise: largest standard deviation of noise on an example's latents, as a generator's are not exact.
        mix_share: of examples that are two clips at once, so that the network learns sounds, not pieces.
        gain_db: an example's level is changed by up to this much either way.
    """

    steps: int = 10_000
    batch_size: int = 8
    segment_frames: int = 32
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    latent_noise: float = 0.1
    mix_share: float = 0.3
    gain_db: float = 6.0
    seed: int = 0


def train_decoder(
    audio: Iterable[Tensor],
    encoder: MelPcaEncoder,
    linear: TensorFile,
    settings: DecoderSettings,
    training: DecoderTraining,
    *,
    on_progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> TensorFile:
    """Weights of a `MagnitudeDecoder` with a network, float16; its linear map starts from `linear`.

    Args:
        audio: mono clips [N]; all are kept in memory as 16-bit samples.
        on_progress: called with the step and its losses, every 100 steps.

    Raises:
        CodecError: no clip is longer than a training segment.
        FloatingPointError: the loss is not finite.
    """
    clips = _load(audio, _segment_samples(encoder.settings, training))
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        decoder = MagnitudeDecoder(encoder.settings, settings)
    decoder.load_state_dict(linear.tensors, strict=False)
    optimizer = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.98), weight_decay=training.weight_decay)
    for step in range(training.steps):
        latents, power = _batch(clips, encoder, training, generator)
        losses = spectral_losses(decoder.power(latents), power, decoder)
        _update(decoder, optimizer, sum(losses.values(), torch.zeros(())), lr=_rate(step, training), step=step)
        if (step + 1) % 100 == 0:
            on_progress(step + 1, {name: loss.item() for name, loss in losses.items()})
    return TensorFile(asdict(settings), {name: t.detach().half() for name, t in decoder.state_dict().items()})


def spectral_losses(power: Tensor, wanted: Tensor, decoder: MagnitudeDecoder) -> dict[str, Tensor]:
    """Mean absolute differences of power spectra [B, T, bins]: log level, compressed magnitude, and log-mel level.

    The first alone gives each bin its median level, too little power where there is noise; the last restores it.
    """
    floor = decoder.mel.power_floor
    mel, wanted_mel = (log_mel(p, decoder.filters, power_floor=floor) for p in (power, wanted))
    log_power, wanted_log = (power + BIN_POWER_FLOOR).log(), (wanted + BIN_POWER_FLOOR).log()
    loudness, wanted_loudness = (log * (COMPRESSION / 2) for log in (log_power, wanted_log))
    return {
        "level": 0.5 * (log_power - wanted_log).abs().mean(),
        "loudness": LOUDNESS_WEIGHT * (loudness.exp() - wanted_loudness.exp()).abs().mean(),
        "mel": 0.5 * (mel - wanted_mel).abs().mean(),
    }


def _load(audio: Iterable[Tensor], samples_needed: int) -> list[Tensor]:
    """The clips that are long enough, [N] int16: a quarter of the memory of what they decode to with their spectra."""
    clips = [(samples.clamp(-1, 1) * FULL_SCALE).round().short() for samples in audio if len(samples) > samples_needed]
    if not clips:
        raise CodecError(f"no clip of the corpus is longer than the {samples_needed} samples of a decoder's example")
    return clips


def _segment_samples(mel: MelSettings, training: DecoderTraining) -> int:
    """From half a window before the first spectrum's centre to half a window after the last one's."""
    return training.segment_frames * mel.hop - mel.frame_hop + mel.n_fft


def _batch(
    clips: list[Tensor], encoder: MelPcaEncoder, training: DecoderTraining, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents [B, C, T] and the power spectra they stand for, [B, frames_per_latent * T, bins]."""
    mel = encoder.settings
    samples = torch.stack([_example(clips, mel, training, generator) for _ in range(training.batch_size)])
    frames = samples.unfold(1, mel.n_fft, mel.frame_hop) * torch.hann_window(mel.n_fft)
    power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1)
    blocks = log_mel(power, encoder.filters, power_floor=mel.power_floor).reshape(len(power), -1, mel.block_size)
    latents = encoder.project(blocks).transpose(1, 2)
    spread = training.latent_noise * torch.rand(len(latents), 1, 1, generator=generator)
    return latents + spread * torch.randn(latents.shape, generator=generator), power


def _example(clips: list[Tensor], mel: MelSettings, training: DecoderTraining, generator: torch.Generator) -> Tensor:
    """A random place of a random clip, sometimes with another one mixed in, at a random level: [samples]."""
    length = _segment_samples(mel, training)
    mixed, share, gain = torch.rand(3, generator=generator).tolist()
    samples = _place(clips, length, generator)
    if mixed < training.mix_share:
        samples = (samples + share * _place(clips, length, generator)) / (1 + share**2) ** 0.5
    return samples * 10 ** (training.gain_db * (2 * gain - 1) / 20)


def _place(clips: list[Tensor], length: int, generator: torch.Generator) -> Tensor:
    clip = clips[int(torch.randint(len(clips), (1,), generator=generator))]
    start = int(torch.randint(len(clip) - length + 1, (1,), generator=generator))
    return clip[start : start + length].float() / FULL_SCALE


def _rate(step: int, training: DecoderTraining) -> float:
    rising = min(1.0, (step + 1) / training.warmup_steps)
    return training.learning_rate * rising * (1 - step / training.steps)


def _update(decoder: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, *, lr: float, step: int) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"decoder loss is {loss.item()} at step {step}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    optimizer.step()
