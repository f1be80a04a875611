"""Invert log-mel frames to samples chunk by chunk: memory does not grow with the length of a clip, and bits stay.

Phase is carried from chunk to chunk. Griffin-Lim sees a margin of frames on both sides of a chunk that is wider than
its iterations reach; chunks and margins are whole blocks of a CPU's cache, so that sums keep the order of one go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from presto_core.audio.codec import list_parts
from presto_core.audio.mel_codec.griffin_lim import BLOCK_FRAMES, griffin_lim
from presto_core.audio.mel_codec.magnitude_decoder import MagnitudeDecoder
from presto_core.audio.mel_codec.peak_phase import continue_phase

CHUNK_FRAMES = 16 * BLOCK_FRAMES  # 18 s at 44.1 kHz: longer than what models generate by default


@dataclass
class _Spectra:
    """Magnitude and phase [..., frames, bins] from frame `start` on, and the turns of the last frame."""

    start: int
    magnitude: Tensor
    phase: Tensor
    turns: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.magnitude.shape[-2]


def invert_in_chunks(decoder: MagnitudeDecoder, log_mel: Tensor, *, chunk_frames: int = CHUNK_FRAMES) -> Tensor:
    """Return samples [..., frames * hop] of ln(mel power + floor) [..., frames, mels].

    Args:
        chunk_frames: frames per chunk, a multiple of `BLOCK_FRAMES`.
    """
    parts = list_parts(log_mel.shape[-2], first=chunk_frames, longest=chunk_frames)
    return torch.cat(list(_iter_chunks(decoder, log_mel, parts)), dim=-1)


def invert_in_growing_chunks(decoder: MagnitudeDecoder, log_mel: Tensor) -> Iterator[Tensor]:
    """Yield the samples of `invert_in_chunks` in chunks of 1 s, 2 s, 4 s, ... up to `CHUNK_FRAMES`."""
    return _iter_chunks(decoder, log_mel, list_parts(log_mel.shape[-2], first=BLOCK_FRAMES, longest=CHUNK_FRAMES))


def count_margin_frames(decoder: MagnitudeDecoder) -> int:
    """Return frames beside a chunk that its samples depend on: whole blocks, at least what Griffin-Lim reaches."""
    overlap = decoder.mel.n_fft // decoder.mel.frame_hop
    reach = 2 * overlap * (decoder.settings.iterations + 1)  # each STFT and each inverse reaches n_fft further
    return -(-reach // BLOCK_FRAMES) * BLOCK_FRAMES


def _iter_chunks(decoder: MagnitudeDecoder, log_mel: Tensor, parts: list[tuple[int, int]]) -> Iterator[Tensor]:
    margin, hop = count_margin_frames(decoder), decoder.mel.frame_hop
    spectra = None
    for start, stop in parts:
        spectra = _extend(decoder, log_mel, spectra, first=max(start - margin, 0), upto=stop + margin)
        samples = griffin_lim(spectra.magnitude, spectra.phase, hop=hop, iterations=decoder.settings.iterations)
        yield samples[..., (start - spectra.start) * hop : (stop - spectra.start) * hop]


def _extend(decoder: MagnitudeDecoder, log_mel: Tensor, spectra: _Spectra | None, *, first: int, upto: int) -> _Spectra:
    """Drop what is before frame `first` and add frames up to `upto`, after the last one that at the clip's end."""
    frames, known = log_mel.shape[-2], 0 if spectra is None else spectra.stop
    if known < frames:
        # the clip's last frame stands for the one that is centred on its end too
        magnitude = decoder.invert_log_mel(log_mel[..., known:upto, :], repeat_last=upto >= frames)
        turns = torch.zeros_like(magnitude[..., 0, :]) if spectra is None else spectra.turns
        phase, turns = continue_phase(magnitude, turns, hop=decoder.mel.frame_hop)
        if spectra is None:
            return _Spectra(0, magnitude, phase, turns)
        magnitude, phase = torch.cat([spectra.magnitude, magnitude], -2), torch.cat([spectra.phase, phase], -2)
        spectra = _Spectra(spectra.start, magnitude, phase, turns)
    assert spectra is not None
    cut = first - spectra.start
    return _Spectra(first, spectra.magnitude[..., cut:, :], spectra.phase[..., cut:, :], spectra.turns)
