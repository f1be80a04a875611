"""Fit the closed-form parts of the embedded codec to a corpus: PCA of log-mel blocks, and the linear map back.

Audio is streamed, so the corpus may be of any length: only second moments are kept in memory, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from presto_core.audio.codec import CodecError
from presto_core.audio.mel_codec.magnitude_decoder import DecoderSettings
from presto_core.audio.mel_codec.mel_frames import MelSettings, log_mel_blocks
from presto_core.audio.mel_codec.mel_pca import MelPcaEncoder
from presto_core.audio.mel_codec.tensor_file import TensorFile

Progress = Callable[[int], None]
RIDGE = 1e-5  # relative to the unit variance of the latents


def fit_mel_pca(
    audio: Iterable[Tensor],
    settings: MelSettings | None = None,
    *,
    on_progress: Progress = lambda clips: None,
) -> TensorFile:
    """Fit the weights of a `MelPcaEncoder`: the mean, principal axes and scales of log-mel blocks.

    Args:
        audio: mono clips [N] at `settings.sample_rate_hz`; read once.
        on_progress: called with the number of clips read so far.

    Raises:
        CodecError: there are fewer blocks than features, so the axes are not determined.
    """
    settings = settings or MelSettings()
    filters = settings.make_filters()
    count, total, square = 0, torch.zeros(settings.block_size).double(), torch.zeros(1).double()
    for clips, samples in enumerate(audio, start=1):
        blocks = log_mel_blocks(samples, settings, filters).double()
        count, total, square = count + len(blocks), total + blocks.sum(0), square + blocks.T @ blocks
        on_progress(clips)
    if count <= settings.block_size:
        needed, available = (blocks * settings.hop / settings.sample_rate_hz for blocks in (settings.block_size, count))
        raise CodecError(
            f"a codec fit needs more than {needed:.0f} s of audio, the corpus has {available:.1f} s; add more music"
        )
    mean = total / count
    basis, spread = principal_axes(square / count - mean[:, None] * mean, settings.channels)
    tensors = {"mean": mean.float(), "basis": basis.float(), "scale": half_whitening(spread).float()}
    return TensorFile(asdict(settings), tensors)


def principal_axes(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` leading eigenvectors [F, count] and root eigenvalues [count] of a float64 covariance [F, F].

    The sign of an eigenvector is arbitrary: its largest entry is made positive, so that a fit is reproducible.
    """
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :count]
    largest = basis.abs().argmax(0, keepdim=True)
    return basis * basis.gather(0, largest).sign(), values.flip(0)[:count].clamp_min(1e-12).sqrt()


def half_whitening(spread: Tensor) -> Tensor:
    """Return divisors [C] that scale each axis to the square root of its standard deviation [C], unit mean variance.

    With full whitening the weakest axes, little more than texture, weigh as much in a diffusion loss as loudness does,
    and a model of a given size samples audibly noisier. Without whitening the first axis dominates the others.
    """
    # divisor d_i = sqrt(s_i mean(s)) gives variances s_i^2 / d_i^2 = s_i / mean(s), whose mean over axes is 1
    return spread.sqrt() * spread.mean().sqrt()


def fit_linear_decoder(
    audio: Iterable[Tensor],
    encoder: MelPcaEncoder,
    settings: DecoderSettings | None = None,
    *,
    on_progress: Progress = lambda clips: None,
) -> TensorFile:
    """Fit the weights of a `MagnitudeDecoder`: ridge regression of each block on the latents around it.

    Inverting the PCA frame by frame leaves an error of 0.6 to 1 dB and audible steps at block edges; the neighbouring
    latents remove them.

    Args:
        audio: mono clips [N], those the encoder is fitted to; read once.
    """
    settings = settings or DecoderSettings()
    inputs = settings.taps * encoder.settings.channels
    count, gram, cross = 0, torch.zeros(inputs, inputs).double(), torch.zeros(1).double()
    for clips, samples in enumerate(audio, start=1):
        blocks = log_mel_blocks(samples, encoder.settings, encoder.filters)
        neighbors = _unfold_neighbors(encoder.encode(samples), settings.taps).double()
        count, gram = count + len(blocks), gram + neighbors.T @ neighbors
        cross = cross + neighbors.T @ (blocks - encoder.mean).double()
        on_progress(clips)
    solution = torch.linalg.solve(gram + RIDGE * count * torch.eye(inputs).double(), cross)
    kernel = solution.T.reshape(encoder.settings.block_size, encoder.settings.channels, settings.taps)
    return TensorFile(asdict(settings), {"linear.weight": kernel.float(), "linear.bias": encoder.mean.clone()})


def _unfold_neighbors(latents: Tensor, taps: int) -> Tensor:
    """Unfold latents [C, T] to [T, C * taps] with repeated edges, in the layout of a convolution kernel."""
    edge = taps // 2
    padded = F.pad(latents[None], (edge, edge), mode="replicate")[0]
    return padded.unfold(1, taps, 1).permute(1, 0, 2).reshape(latents.shape[1], -1)
