"""Audio files -> fixed windows of samples: decode, mix, resample, cut in constant memory. First room of the flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import soxr

from presto_core.audio.decoders import (
    AudioError,
    Sound,
    Waveform,
    open_sound,
)

__all__ = ["AUDIO_SUFFIXES", "AudioError", "Tail", "Waveform", "blocks", "cut", "decode", "is_audio", "windows"]

SUFFIXES_OF_LIBSNDFILE = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".rf64",
)  # fmt: skip
SUFFIXES_OF_PYAV = (".m4a", ".aac", ".mp4", ".webm", ".mka", ".wma", ".wv", ".ape")
AUDIO_SUFFIXES = SUFFIXES_OF_LIBSNDFILE + SUFFIXES_OF_PYAV

BLOCK_VALUES = 2**19  # samples times channels, decoded or resampled: 2 MiB
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1000, 1_000_000

Tail = Literal["drop", "pad", "shift"]


def is_audio(name: str) -> bool:
    """Whether a file's name has a suffix that `blocks` reads."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES


def blocks(stream: BinaryIO, *, sample_rate_hz: int, channels: int) -> Iterator[Waveform]:
    """Decode a file block by block, at the wanted rate and number of channels.

    The format is told by the content. Memory does not grow with the file's length.

    Args:
        stream: seekable file content, read from its start.
        channels: 1, the mean of all; or 2: stereo as it is, mono doubled, of more channels the mean on both.

    Returns:
        Blocks [n, channels] float32 of at most a few MiB, nominally within -1 ... 1; at least one sample in all.

    Raises:
        AudioError: the bytes are no audio, are empty, hold NaN or infinity, or have an absurd header; or they are cut
            short and the format can tell, as flac and m4a can (of a cut wav, ogg or mp3 what is left is used). It may
            come after some blocks: what a damaged file gave before is not to be kept.
    """
    with open_sound(stream) as sound:
        frames = _frames_per_block(sound, sample_rate_hz, channels)
        resampled = _resampler(sound.sample_rate_hz, sample_rate_hz, channels)
        heard = False
        for samples in sound.blocks(frames):
            if not np.isfinite(samples).all():
                raise AudioError("holds NaN or infinite samples")
            made = resampled(_mixed(samples, channels), False)
            heard = heard or len(made) > 0
            if len(made):
                yield made
        made = resampled(np.zeros((0, channels), np.float32), True)
        if len(made):
            yield made
        elif not heard:
            raise AudioError("holds no samples")


def _frames_per_block(sound: Sound, sample_rate_hz: int, channels: int) -> int:
    """Frames to decode at once, so that neither they nor what they are resampled to are more than BLOCK_VALUES."""
    if not LOWEST_RATE_HZ <= sound.sample_rate_hz <= HIGHEST_RATE_HZ:
        raise AudioError(f"has a sample rate of {sound.sample_rate_hz} Hz, which no music has")
    made_of_one = channels * max(1, -(-sample_rate_hz // sound.sample_rate_hz))
    return max(1, BLOCK_VALUES // max(sound.channels, made_of_one))


def _resampler(rate_hz: int, wanted_hz: int, channels: int) -> Callable[[Waveform, bool], Waveform]:
    """(block, whether it is the last) -> the samples that are ready; bitwise what resampling the whole gives."""
    if rate_hz == wanted_hz:
        return lambda block, last: block
    stream = soxr.ResampleStream(rate_hz, wanted_hz, channels, dtype="float32", quality="HQ")
    return lambda block, last: stream.resample_chunk(block, last=last)


def _mixed(samples: Waveform, channels: int) -> Waveform:
    """[n, stored channels] -> [n, channels] as `blocks` promises."""
    if channels == samples.shape[1]:
        return samples
    mixed = samples[:, 0].astype(np.float32)
    for other in range(1, samples.shape[1]):  # numpy's mean over so short an axis takes ten times as long
        mixed += samples[:, other]
    mixed /= samples.shape[1]
    return np.repeat(mixed[:, None], channels, axis=1) if channels > 1 else mixed[:, None]


def decode(stream: BinaryIO, *, sample_rate_hz: int) -> Waveform:
    """Decode a whole file to mono [N] float32 at the wanted rate; what it is and raises is told at `blocks`."""
    return np.concatenate(list(blocks(stream, sample_rate_hz=sample_rate_hz, channels=1)))[:, 0]


def windows(samples: Waveform, *, length: int, step: int) -> npt.NDArray[np.float32]:
    """Cut [N] samples into full windows [W, length], `step` apart; what is left at the end is dropped.

    Raises:
        AudioError: the audio is shorter than one window.
    """
    if len(samples) < length:
        raise _too_short(len(samples), length)
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::step]


def cut(
    blocks: Iterable[Waveform], *, length: int, step: int, tail: Tail, together: int = 1
) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
    """Cut blocks [n, channels] into windows that start at 0, step, 2 step, ...; samples are copied straight into them.

    Args:
        step: at most `length`, so that no sample is left out between windows.
        tail: what becomes of samples at the end that no full window holds. `drop`: nothing; `pad`: one more window,
            filled with zeros; `shift`: one more window that ends where the audio ends.
        together: windows that are given at once, but for the last ones.

    Returns:
        Pairs of windows' first samples and the windows themselves, [W, channels, length]; they are the caller's.

    Raises:
        AudioError: the audio is shorter than one window and is not to be padded.
    """
    if not 0 < step <= length:
        raise ValueError(f"step={step} must be between 1 and length={length}")
    windows: npt.NDArray[np.float32] | None = None
    last: npt.NDArray[np.float32] | None = None  # full window
    starts: list[int] = []  # of full windows
    start = held = 0  # of the window that is being filled
    for block in blocks:
        windows = np.empty((together, block.shape[1], length), np.float32) if windows is None else windows
        while len(block):
            new, block = block[: length - held], block[length - held :]
            windows[len(starts), :, held : held + len(new)] = new.T
            held += len(new)
            if held < length:
                break
            last = windows[len(starts)]
            starts.append(start)
            if len(starts) == together:
                last = last.copy()  # the next window may begin with samples of this one, which the caller may change
                yield starts, windows
                windows, starts = np.empty_like(windows), []
            start, held = start + step, length - step
            windows[len(starts), :, :held] = last[:, step:]
    if windows is None or (last is None and tail != "pad"):
        raise _too_short(held, length)
    if (before := _last_window(held, last, windows[len(starts)], step=step, tail=tail)) is not None:
        starts.append(start - before)
    if starts:
        yield starts, windows[: len(starts)]


def _last_window(held: int, last: Waveform | None, window: Waveform, *, step: int, tail: Tail) -> int | None:
    """Complete the window of which `held` samples are there; how much sooner it starts, or None where it is dropped."""
    length = window.shape[1]
    if last is not None and (tail == "drop" or held == length - step):
        return None
    if last is None or tail == "pad":
        window[:, held:] = 0
        return 0
    missing = length - held
    window[:, missing:] = window[:, :held].copy()
    window[:, :missing] = last[:, step - missing : step]
    return missing


def _too_short(samples: int, length: int) -> AudioError:
    return AudioError(f"shorter than one window: {samples} of {length} samples")
