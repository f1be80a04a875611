"""One file's way to segments of windows: fetched, hashed, decoded, brought to a loudness, cut; silence left out."""

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
from presto_core.audio.chunks import (
    AudioError,
    Tail,
    Waveform,
    decode_blocks,
    iter_windows,
)
from presto_core.audio.codec import Codec, CodecError
from presto_core.audio.loudness import gain, integrated_loudness
from presto_core.config.schema import IngestStage

ENCODING_VERSION = 3  # raise when the same settings would give other latents, or name them otherwise
SILENCE_RMS = 1e-3  # -60 dB: a window below holds no music
SEGMENT_SECONDS = 192.0  # of windows that travel together


@dataclass(frozen=True)
class EncodeSettings:
    """Everything that decides a file's latents.

    Attributes:
        window, step: samples of a window, and between the beginnings of two.
        channels: of the audio given to the codec.
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
        """As settings and codec have it.

        Raises:
            CodecError: stereo is wanted of a codec that has one channel.
        """
        settings, channels = config.ingest, {"mono": 1, "stereo": 2}[config.ingest.channels]
        if channels > codec.audio_channels:
            raise CodecError(
                f"ingest.channels=stereo needs a codec of two channels, and {config.codec.kind} has "
                f"{codec.audio_channels}; use codec.kind=oobleck codec.path=..., or ingest.channels=mono"
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
        """Name of what is encoded this way."""
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
        starts: [R] first sample of each.
    """

    number: int
    audio: Waveform
    starts: Array


@dataclass(frozen=True)
class FileResult:
    """What a file came to, once its segments have been given."""

    digest: str
    facts: dict[str, Any]
    rows: tuple[int, ...] = ()
    silent: int = 0
    seconds: float = 0.0
    failure: IngestFailure | None = None


def segment_file(
    track: Track, source: Folder, encoding: EncodeSettings, *, known_digests: frozenset[str]
) -> Iterator[tuple[str, Segment | FileResult]]:
    """A file's segments and then its end, each with the digest of the file; of `known` contents only the end.

    Raises:
        StoreError: the source does not answer.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_source_file(source, track.path))
        except StoreError as error:
            source.exists(track.path)  # a source that does not answer at all ends the run here
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
        except OSError as error:  # of a disk, which may be better tomorrow
            failure = _make_failure("fetch", error)
        except Exception as error:  # of whatever kind: one file's trouble is not the run's
            failure = _make_failure("decode", error)
        if file.has_changed:  # then its hash is not of what was decoded
            failure = _make_failure("fetch", StoreError("was changed while it was read; run the same command again"))
        if failure:
            yield digest, FileResult(digest, facts, failure=failure)
        else:
            seconds = segmenter.samples / encoding.sample_rate_hz
            yield digest, FileResult(digest, facts, tuple(segmenter.rows), segmenter.silent, seconds)


class _Segmenter:
    """Cuts one file and counts what comes out."""

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
        if not sum(self.rows):
            raise AudioError("holds silence only")

    def _loudness_factor(self) -> np.float32:
        """What every sample is multiplied by, so that the file has the wanted loudness."""
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
        if not loud.all():  # else it would be a copy for nothing
            audio, starts = audio[loud], starts[loud]
        return Segment(len(self.rows) - 1, audio, starts)


def decoder_versions() -> str:
    """What decodes here: a file that failed is tried again by another decoder only."""
    versions = []
    for name in ("soundfile", "av"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return ", ".join(versions)


def _make_failure(stage: str, error: Exception) -> IngestFailure:
    return IngestFailure(stage, type(error).__name__, " ".join(str(error).split()) or "failed without a word")
