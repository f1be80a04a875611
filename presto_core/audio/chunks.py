"""Cut audio files into fixed windows of samples: decode, mix, resample and slice in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import soxr

from presto_core.audio.decoders import iter_sounds
from presto_core.audio.sound import AudioError, Sound, Waveform

__all__ = [
    "AUDIO_SUFFIXES",
    "OTHER_AUDIO_SUFFIXES",
    "AudioError",
    "Tail",
    "Waveform",
    "decode_blocks",
    "iter_windows",
    "decode",
    "has_louder_channel",
    "is_audio",
]

LIBSNDFILE_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".rf64",
)  # fmt: skip
PYAV_SUFFIXES = (".m4a", ".aac", ".mp4", ".webm", ".mka", ".wma", ".wv", ".ape")
AUDIO_SUFFIXES = LIBSNDFILE_SUFFIXES + PYAV_SUFFIXES
# of other audio files, and of videos: not searched for, but counted
OTHER_AUDIO_SUFFIXES = (
    ".3g2", ".3gp", ".aax", ".ac3", ".amr", ".avi", ".bwf", ".dff", ".dsf", ".dts", ".eac3", ".m4b", ".m4p", ".m4r",
    ".mkv", ".mov", ".mp1", ".mp2", ".mpc", ".mpga", ".ra", ".rm", ".shn", ".snd", ".spx", ".tak", ".tta", ".voc",
    ".wave", ".weba",
)  # fmt: skip

BLOCK_VALUES = 2**19  # samples times channels, decoded or resampled: 2 MiB
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1000, 1_000_000

Tail = Literal["drop", "pad", "shift"]


def is_audio(name: str) -> bool:
    """Return whether a file name has a suffix that `decode_blocks` reads."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


def decode_blocks(stream: BinaryIO, *, sample_rate_hz: int, channels: int) -> Iterator[Waveform]:
    """Decode a file block by block to the requested sample rate and number of channels.

    The content, not the name, determines the format. Memory does not grow with the length of the file. Parts of joined
    files follow each other without a gap, whatever their sample rates and numbers of channels.

    Args:
        stream: seekable file content, read from its start.
        channels: 1 is the mean of all channels; 2 keeps stereo, copies mono, and copies the mean of more channels.

    Returns:
        Blocks [n, channels] float32 of at most a few MiB, nominally within -1 ... 1; at least one sample in total.

    Raises:
        AudioError: the bytes are not audio, are empty, contain NaN or infinity, or have an implausible header; or they
            are truncated and the format can detect it, as flac and m4a can (a truncated wav, ogg or mp3 yields what is
            left). It may be raised after some blocks: discard what a damaged file yielded before.
    """
    has_samples = False
    for _, sounds in groupby(iter_sounds(stream), key=lambda sound: sound.sample_rate_hz):
        for block in _convert_sounds(sounds, sample_rate_hz=sample_rate_hz, channels=channels):
            if len(block):
                has_samples = True
                yield block
    if not has_samples:
        raise AudioError("contains no samples")


def _convert_sounds(sounds: Iterable[Sound], *, sample_rate_hz: int, channels: int) -> Iterator[Waveform]:
    """Mix and resample the blocks of sounds of one sample rate as one; blocks may be empty."""
    resample: Callable[[Waveform, bool], Waveform] | None = None
    for sound in sounds:
        frames = _frames_per_block(sound, sample_rate_hz, channels)
        resample = resample or _make_resampler(sound.sample_rate_hz, sample_rate_hz, channels)
        for samples in sound.iter_blocks(frames):
            if not np.isfinite(samples).all():
                raise AudioError("contains NaN or infinite samples")
            yield resample(_mix_channels(samples, channels), False)
    if resample is not None:
        yield resample(np.zeros((0, channels), np.float32), True)


def has_louder_channel(stream: BinaryIO, *, rms: float, frames: int) -> bool:
    """Return whether a stored channel reaches `rms` in some block of `frames` samples; raises as `decode_blocks`."""
    stream.seek(0)
    for sound in iter_sounds(stream):
        for samples in sound.iter_blocks(frames):
            if (np.square(samples, dtype=np.float64).mean(axis=0) >= rms**2).any():
                return True
    return False


def _frames_per_block(sound: Sound, sample_rate_hz: int, channels: int) -> int:
    """Return how many frames to decode at once: at most BLOCK_VALUES values before and after resampling."""
    if not LOWEST_RATE_HZ <= sound.sample_rate_hz <= HIGHEST_RATE_HZ:
        raise AudioError(
            f"has a sample rate of {sound.sample_rate_hz} Hz, not {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz"
        )
    outputs_per_frame = channels * max(1, -(-sample_rate_hz // sound.sample_rate_hz))
    return max(1, BLOCK_VALUES // max(sound.channels, outputs_per_frame))


def _make_resampler(rate_hz: int, target_hz: int, channels: int) -> Callable[[Waveform, bool], Waveform]:
    """Return (block, is_last) -> the samples that are ready; bit-identical to resampling the whole file at once."""
    if rate_hz == target_hz:
        return lambda block, last: block
    stream = soxr.ResampleStream(rate_hz, target_hz, channels, dtype="float32", quality="HQ")
    return lambda block, last: stream.resample_chunk(block, last=last)


def _mix_channels(samples: Waveform, channels: int) -> Waveform:
    """Mix [n, stored channels] to [n, channels] as `decode_blocks` documents."""
    if channels == samples.shape[1]:
        return samples
    mixed = samples[:, 0].astype(np.float32)
    for other in range(1, samples.shape[1]):  # numpy's mean over so short an axis takes ten times as long
        mixed += samples[:, other]
    mixed /= samples.shape[1]
    return np.repeat(mixed[:, None], channels, axis=1) if channels > 1 else mixed[:, None]


def decode(stream: BinaryIO, *, sample_rate_hz: int) -> Waveform:
    """Decode a whole file to mono [N] float32 at the requested rate; raises as `decode_blocks` does."""
    return np.concatenate(list(decode_blocks(stream, sample_rate_hz=sample_rate_hz, channels=1)))[:, 0]


def iter_windows(
    blocks: Iterable[Waveform], *, length: int, hop: int, tail: Tail, batch_size: int = 1
) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
    """Cut blocks [n, channels] into windows that start at 0, hop, 2 hop, ...; each sample is copied into place once.

    Args:
        hop: at most `length`, so that no sample is left out between windows.
        tail: how to handle samples at the end that fill no window. `drop`: discard them; `pad`: one more window,
            filled up with zeros; `shift`: one more window that ends where the audio ends.
        batch_size: windows per returned pair; the last pair may have fewer.

    Returns:
        Pairs of the windows' start positions and the windows, [W, channels, length]; the caller owns the arrays.

    Raises:
        AudioError: the audio is shorter than one window and `tail` is not `pad`.
    """
    if not 0 < hop <= length:
        raise ValueError(f"hop={hop} is out of range; set it between 1 and length={length}")
    windows: npt.NDArray[np.float32] | None = None
    last: npt.NDArray[np.float32] | None = None  # the last full window
    starts: list[int] = []  # of full windows
    start = num_filled = 0  # of the window being filled
    for block in blocks:
        windows = np.empty((batch_size, block.shape[1], length), np.float32) if windows is None else windows
        while len(block):
            new, block = block[: length - num_filled], block[length - num_filled :]
            windows[len(starts), :, num_filled : num_filled + len(new)] = new.T
            num_filled += len(new)
            if num_filled < length:
                break
            last = windows[len(starts)]
            starts.append(start)
            if len(starts) == batch_size:
                last = last.copy()  # the next window may begin with samples of this one, which the caller may modify
                yield starts, windows
                windows, starts = np.empty_like(windows), []
            start, num_filled = start + hop, length - hop
            windows[len(starts), :, :num_filled] = last[:, hop:]
    if windows is None or (last is None and tail != "pad"):
        raise _too_short_error(num_filled, length)
    if (shift := _fill_last_window(num_filled, last, windows[len(starts)], hop=hop, tail=tail)) is not None:
        starts.append(start - shift)
    if starts:
        yield starts, windows[: len(starts)]


def _fill_last_window(num_filled: int, last: Waveform | None, window: Waveform, *, hop: int, tail: Tail) -> int | None:
    """Complete a window that has `num_filled` samples; return how far its start moves back, or None if dropped."""
    length = window.shape[1]
    if last is not None and (tail == "drop" or num_filled == length - hop):
        return None
    if last is None or tail == "pad":
        window[:, num_filled:] = 0
        return 0
    missing = length - num_filled
    window[:, missing:] = window[:, :num_filled].copy()
    window[:, :missing] = last[:, hop - missing : hop]
    return missing


def _too_short_error(samples: int, length: int) -> AudioError:
    return AudioError(f"is shorter than one window: {samples} of {length} samples")
