"""Turn a file into segments of windows: fetch, hash, decode, normalize loudness, cut, and drop silent windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, BinaryIO

import numpy as np

from pipelines.data.parquet_tensors import Array
from pipelines.ingest.latent_cache import IngestFailure
from pipelines.ingest.sidecars import read_metadata
from pipelines.ingest.source_file import open_source_file
from pipelines.ingest.sources import Track
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.audio.chunks import AudioError, Tail, Waveform, decode_blocks, has_louder_channel, iter_windows
from presto_core.audio.codec import Codec, CodecError
from presto_core.audio.loudness import gain, integrated_loudness
from presto_core.config.schema import IngestStage

ENCODING_VERSION = 5  # raise if the same settings give other latents or other names
SILENCE_RMS = 1e-3  # -60 dB: a quieter window has no music
SEGMENT_SECONDS = 192.0  # audio per segment


@dataclass(frozen=True)
class EncodeSettings:
    """The settings that determine a file's latents.

    Attributes:
        window, step: samples per window, and between the starts of two windows.
        channels: audio channels of the codec's input.
    """

    codec: str
    sample_rate_hz: int
    window: int
    step: int
    tail: Tail
    channels: int
    loudness_lufs: float | None

    @staticmethod
    def from_config(config: IngestStage, codec: Codec) -> EncodeSettings:
        """Derive the encoding from settings and codec.

        Raises:
            CodecError: ingest.channels=stereo, and the codec has one channel.
        """
        settings, channels = config.ingest, {"mono": 1, "stereo": 2}[config.ingest.channels]
        if channels > codec.audio_channels:
            raise CodecError(
                f"ingest.channels=stereo needs a codec with two channels, and {config.codec.kind} has "
                f"{codec.audio_channels}; set codec.kind=oobleck codec.path=..., or ingest.channels=mono"
            )
        return EncodeSettings(
            codec=codec.digest,
            sample_rate_hz=codec.sample_rate_hz,
            window=settings.chunk_frames * codec.hop,
            step=(settings.chunk_frames - settings.overlap_frames) * codec.hop,
            tail=settings.tail,
            channels=channels,
            loudness_lufs=settings.loudness_lufs,
        )

    @property
    def key(self) -> str:
        """Return the name of this encoding's cache folder."""
        body = json.dumps([ENCODING_VERSION, SILENCE_RMS, SEGMENT_SECONDS, asdict(self)], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @property
    def windows_per_segment(self) -> int:
        return max(int(SEGMENT_SECONDS * self.sample_rate_hz / self.window), 1)


@dataclass(frozen=True)
class Segment:
    """Windows of one file that are encoded together.

    Attributes:
        audio: [R, channels, window] float32, without silent windows.
        starts: [R] first sample of each window.
    """

    number: int
    audio: Waveform
    starts: Array


@dataclass(frozen=True)
class FileResult:
    """The result of one file, which follows its segments."""

    digest: str
    facts: dict[str, Any]
    rows: tuple[int, ...] = ()
    silent: int = 0
    seconds: float = 0.0
    failure: IngestFailure | None = None


def segment_file(
    track: Track, source: Folder, encoding: EncodeSettings, *, known_digests: frozenset[str]
) -> Iterator[tuple[str, Segment | FileResult]]:
    """Yield a file's segments and then its FileResult, each with the file's digest.

    For a digest in `known_digests`, yield the FileResult only.

    Raises:
        StoreError: the source does not answer.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_source_file(source, track.path))
        except StoreError as error:
            source.exists(track.path)  # raises, and so ends the run, if the source itself does not answer
            yield "", FileResult("", {}, failure=_make_failure("fetch", error))
            return
        digest = file.digest
        try:
            facts = read_metadata(track, file.stream, source)
        except ValueError as error:
            yield digest, FileResult(digest, {}, failure=_make_failure("describe", error))
            return
        if digest in known_digests:
            yield digest, FileResult(digest, facts)
            return
        segmenter, failure = _Segmenter(file.stream, encoding), None
        try:
            for segment in segmenter.iter_segments():
                if file.has_changed:
                    break
                yield digest, segment
            segmenter.check_has_music()
        except OSError as error:  # of a disk: the next run tries again
            failure = _make_failure("fetch", error)
        except Exception as error:  # of any class: one bad file must not end the run
            failure = _make_failure("decode", error)
        if file.has_changed:  # then the digest is not that of the decoded content
            failure = _make_failure("fetch", StoreError("was changed while it was read; run the same command again"))
        if failure:
            yield digest, FileResult(digest, facts, failure=failure)
        else:
            seconds = segmenter.samples / encoding.sample_rate_hz
            yield digest, FileResult(digest, facts, tuple(segmenter.rows), segmenter.silent, seconds)


def read_window(content: BinaryIO, encoding: EncodeSettings, start_seconds: float) -> Waveform:
    """Decode the window of a file that starts at a time, as it was encoded: [channels, window].

    Raises:
        AudioError: the file has no such window with music, or is not audio.
    """
    start = start_seconds * encoding.sample_rate_hz
    for segment in _Segmenter(content, encoding).iter_segments():
        found = np.flatnonzero(np.abs(segment.starts - start) < encoding.step / 2)
        if len(found):
            return np.asarray(segment.audio[found[0]])
    raise AudioError(f"has no window at {start_seconds:g} s")


class _Segmenter:
    """Cuts one file into segments and counts its windows."""

    def __init__(self, content: BinaryIO, encoding: EncodeSettings) -> None:
        self.content, self.encoding = content, encoding
        self.rows: list[int] = []
        self.silent = self.samples = 0

    def iter_segments(self) -> Iterator[Segment]:
        encoding, factor = self.encoding, self._loudness_factor()
        scaled_blocks = (block * factor if factor != 1 else block for block in self._decode())
        sizes = {"length": encoding.window, "hop": encoding.step, "batch_size": encoding.windows_per_segment}
        for starts, audio in iter_windows(scaled_blocks, tail=encoding.tail, **sizes):
            yield self._make_segment(np.array(starts), audio)

    def check_has_music(self) -> None:
        if sum(self.rows):
            return
        if has_louder_channel(self.content, rms=SILENCE_RMS, frames=self.encoding.window):
            fix = "set ingest.channels=stereo with a two-channel codec, or invert a channel"
            raise AudioError(f"holds music, but its channels cancel in the {self._mix_name} mix; {fix}")
        raise AudioError("holds silence only")

    @property
    def _mix_name(self) -> str:
        return {1: "mono", 2: "stereo"}[self.encoding.channels]

    def _loudness_factor(self) -> np.float32:
        """Return the factor that brings the file to the target loudness."""
        if self.encoding.loudness_lufs is None:
            return np.float32(1)
        rate = self.encoding.sample_rate_hz
        loudness = integrated_loudness(self._decode(), sample_rate_hz=rate)
        self.samples = 0
        return np.float32(gain(loudness, target_lufs=self.encoding.loudness_lufs))

    def _decode(self) -> Iterator[Waveform]:
        self.content.seek(0)
        rate, channels = self.encoding.sample_rate_hz, self.encoding.channels
        for block in decode_blocks(self.content, sample_rate_hz=rate, channels=channels):
            self.samples += len(block)
            yield block

    def _make_segment(self, starts: Array, audio: Waveform) -> Segment:
        loud = np.array([np.vdot(window, window) / window.size for window in audio]) >= SILENCE_RMS**2
        self.rows.append(int(loud.sum()))
        self.silent += int((~loud).sum())
        if not loud.all():  # avoids a needless copy
            audio, starts = audio[loud], starts[loud]
        return Segment(len(self.rows) - 1, audio, starts)


def decoder_versions() -> str:
    """Return the decoder versions on this machine; failed files are retried only with other versions."""
    versions = []
    for name in ("soundfile", "av"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return ", ".join(versions)


def _make_failure(stage: str, error: Exception) -> IngestFailure:
    return IngestFailure(stage, type(error).__name__, " ".join(str(error).split()) or "failed without a word")
