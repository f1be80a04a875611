"""STFT frames and Griffin-Lim phase retrieval, of one clip or a batch; the last step of decoding.

On a CPU, clips come one at a time and are processed in cache-sized blocks of frames: a batch of 9 s clips in one tensor
exceeds the cache and runs four times slower. A GPU takes a batch as a whole, in one launch per operation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_FRAMES = 96  # of a CPU's cache


def spectrum(audio: Tensor, *, n_fft: int, hop: int) -> Tensor:
    """Return the STFT of samples [N] or [B, N], Hann window, as [..., N // hop + 1, bins].

    Frames are centred on multiples of `hop`.
    """
    padded = F.pad(audio if audio.ndim == 2 else audio[None], (n_fft // 2, n_fft // 2), mode="reflect")
    padded = padded if audio.ndim == 2 else padded[0]
    return torch.fft.rfft(padded.unfold(-1, n_fft, hop) * torch.hann_window(n_fft, device=audio.device))


def griffin_lim(magnitude: Tensor, phase: Tensor, *, hop: int, iterations: int, momentum: float = 0.99) -> Tensor:
    """Return samples whose STFT magnitude approximates `magnitude`.

    Fast Griffin-Lim (Perraudin, Balazs & Sondergaard 2013): project onto consistent spectra, extrapolate by `momentum`,
    restore the magnitude. `iterations=0` inverts the given magnitude and phase.

    Args:
        magnitude: [..., frames + 1, bins] in the layout of `spectrum`; bins = n_fft / 2 + 1, n_fft a multiple of hop.
        phase: [..., frames + 1, bins] initial phase in radians.

    Returns:
        [..., frames * hop] samples.
    """
    n_fft, frames = 2 * (magnitude.shape[-1] - 1), magnitude.shape[-2]
    window = torch.hann_window(n_fft, device=magnitude.device)
    envelope = _envelope(window, frames, hop)
    signal = _project(_join_polar(magnitude, phase), window, envelope)
    beta = momentum / (1 + momentum)
    previous: list[Tensor] = []
    for left in reversed(range(iterations)):
        steps = _extrapolate_spectra(signal, magnitude, previous, window=window, beta=beta, is_last=not left)
        signal = _project(steps, window, envelope)
    return signal.flatten(-2)[..., n_fft // 2 : n_fft // 2 + (frames - 1) * hop]


def block_frames(frames: Tensor) -> int:
    """Return how many of frames [..., N, D] to process at once: what stays in a CPU's cache, and all on a GPU."""
    return BLOCK_FRAMES if frames.device.type == "cpu" else frames.shape[-2]


def iter_row_blocks(frames: Tensor) -> Iterator[slice]:
    """Yield the blocks of frames [..., N, D] to process at once."""
    total, size = frames.shape[-2], block_frames(frames)
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _join_polar(magnitude: Tensor, phase: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the complex spectrum of magnitude and phase per block."""
    for rows in iter_row_blocks(magnitude):
        length, angle = magnitude[..., rows, :], phase[..., rows, :]
        parts = length.new_empty(*length.shape, 2)
        torch.mul(length, angle.cos(), out=parts[..., 0])
        torch.mul(length, angle.sin(), out=parts[..., 1])
        yield rows, torch.view_as_complex(parts)


def _extrapolate_spectra(
    signal: Tensor, magnitude: Tensor, previous: list[Tensor], *, window: Tensor, beta: float, is_last: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the next spectrum per block.

    Args:
        previous: the last round's consistent spectra of each block, empty in the first round; becomes this round's,
            unless `is_last`.
    """
    frames = signal.flatten(-2).unfold(-1, len(window), signal.shape[-1])
    is_first = not previous
    for number, rows in enumerate(iter_row_blocks(magnitude)):
        consistent = torch.view_as_real(torch.fft.rfft(frames[..., rows, :] * window))
        # c + m (c - previous) = (1 + m) (c - beta previous); restoring the magnitude removes the factor 1 + m
        if is_first:
            extrapolated = consistent if is_last else consistent.clone()
            previous.append(consistent)
        elif is_last:
            extrapolated = consistent.sub_(previous[number], alpha=beta)
        else:
            extrapolated = torch.sub(consistent, previous[number], alpha=beta, out=previous[number])
            previous[number] = consistent
        size = extrapolated[..., 0].square().addcmul_(extrapolated[..., 1], extrapolated[..., 1]).add_(1e-14)
        # faster than to scale real and imaginary parts by a factor that is repeated for both
        yield rows, torch.view_as_complex(extrapolated).mul_(size.rsqrt_().mul_(magnitude[..., rows, :]))


def _project(blocks: Iterator[tuple[slice, Tensor]], window: Tensor, envelope: Tensor) -> Tensor:
    """Overlap-add spectra by least squares: a signal [..., rows, hop] with n_fft / 2 samples of margin at both ends."""
    hop = envelope.shape[1]
    signal = envelope.new_zeros(())
    for at, spectra in blocks:
        if not at.start:
            signal = envelope.new_zeros(*spectra.shape[:-2], *envelope.shape)
        frames = torch.fft.irfft(spectra, n=len(window)).mul_(window).unflatten(-1, (-1, hop))
        for shift in range(frames.shape[-2]):
            signal[..., at.start + shift : at.stop + shift, :] += frames[..., shift, :]
        del spectra, frames  # before the next block takes memory: theirs is in the cache
    return signal.div_(envelope)


def _envelope(window: Tensor, frames: int, hop: int) -> Tensor:
    """Return the sum of squared windows over the rows of the signal: [frames + n_fft / hop - 1, hop]."""
    parts = window.square().view(-1, hop)
    total = torch.zeros(frames + len(parts) - 1, hop, device=window.device)
    for shift, part in enumerate(parts):
        total[shift : shift + frames] += part
    return total.clamp_min_(1e-3)
