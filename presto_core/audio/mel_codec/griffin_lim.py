"""STFT frames and Griffin-Lim phase retrieval, one clip at a time in cache-sized blocks; the last step of decoding.

A batch of 9 s clips in one tensor exceeds the CPU cache and runs four times slower than the same clips one by one;
processing each iteration in blocks of frames keeps that speed for clips of any length.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_FRAMES = 96


def spectrum(audio: Tensor, *, n_fft: int, hop: int) -> Tensor:
    """Return the STFT of samples [N], Hann window, frames centred on multiples of `hop`: [N // hop + 1, bins]."""
    padded = F.pad(audio[None], (n_fft // 2, n_fft // 2), mode="reflect")[0]
    return torch.fft.rfft(padded.unfold(0, n_fft, hop) * torch.hann_window(n_fft))


def griffin_lim(magnitude: Tensor, phase: Tensor, *, hop: int, iterations: int, momentum: float = 0.99) -> Tensor:
    """Return samples whose STFT magnitude approximates `magnitude`.

    Fast Griffin-Lim (Perraudin, Balazs & Sondergaard 2013): project onto consistent spectra, extrapolate by `momentum`,
    restore the magnitude. `iterations=0` inverts the given magnitude and phase.

    Args:
        magnitude: [frames + 1, bins] in the layout of `spectrum`; bins = n_fft / 2 + 1, n_fft a multiple of hop.
        phase: [frames + 1, bins] initial phase in radians.

    Returns:
        [frames * hop] samples.
    """
    n_fft = 2 * (magnitude.shape[1] - 1)
    window = torch.hann_window(n_fft)
    envelope = _envelope(window, len(magnitude), hop)
    spectrogram = magnitude * torch.complex(phase.cos(), phase.sin())
    signal = _project(((rows, spectrogram[rows]) for rows in _iter_row_blocks(len(magnitude))), window, envelope)
    previous = torch.zeros_like(spectrogram)
    for iteration in range(iterations):
        # c + m (c - previous) = (1 + m) (c - beta previous); restoring the magnitude removes the factor 1 + m
        beta = momentum / (1 + momentum) if iteration else 0.0
        steps = _extrapolate_spectra(signal, magnitude, previous, window=window, beta=beta)
        signal = _project(steps, window, envelope)
    return signal.flatten()[n_fft // 2 : n_fft // 2 + (len(magnitude) - 1) * hop]


def _iter_row_blocks(frames: int) -> Iterator[slice]:
    for start in range(0, frames, BLOCK_FRAMES):
        yield slice(start, min(start + BLOCK_FRAMES, frames))


def _extrapolate_spectra(
    signal: Tensor, magnitude: Tensor, previous: Tensor, *, window: Tensor, beta: float
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the next spectrum per block; overwrites `previous` [frames, bins] with this round's consistent spectrum."""
    frames = signal.flatten().unfold(0, len(window), signal.shape[1])
    for rows in _iter_row_blocks(len(magnitude)):
        consistent = torch.view_as_real(torch.fft.rfft(frames[rows] * window))
        last = torch.view_as_real(previous)[rows]
        extrapolated = torch.add(consistent, last, alpha=-beta)
        last.copy_(consistent)
        size = extrapolated[..., 0].square().addcmul_(extrapolated[..., 1], extrapolated[..., 1]).add_(1e-14)
        # faster than to scale real and imaginary parts by a factor that is repeated for both
        yield rows, torch.view_as_complex(extrapolated).mul_(size.rsqrt_().mul_(magnitude[rows]))


def _project(blocks: Iterator[tuple[slice, Tensor]], window: Tensor, envelope: Tensor) -> Tensor:
    """Overlap-add spectra by least squares to a signal [rows, hop] with n_fft / 2 samples of margin at both ends."""
    rows, hop = envelope.shape
    signal = torch.zeros(rows, hop)
    for at, spectra in blocks:
        frames = torch.fft.irfft(spectra, n=len(window)).mul_(window).view(len(spectra), -1, hop)
        for shift in range(frames.shape[1]):
            signal[at.start + shift : at.stop + shift] += frames[:, shift]
    return signal.div_(envelope)


def _envelope(window: Tensor, frames: int, hop: int) -> Tensor:
    """Return the sum of squared windows over the rows of the signal: [frames + n_fft / hop - 1, hop]."""
    parts = window.square().view(-1, hop)
    total = torch.zeros(frames + len(parts) - 1, hop)
    for shift, part in enumerate(parts):
        total[shift : shift + frames] += part
    return total.clamp_min_(1e-3)
