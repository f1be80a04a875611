"""Folders of audio as systems of an evaluation: which files are clips of the report's length, and their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.folder_notes import (
    ClipFormat,
    ScannedClip,
    describe_conversions,
    describe_files,
    describe_prompts,
    list_some,
)
from pipelines.evaluate.folder_prompts import captions_from_names, match_prompts
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.sidecars import read_metadata
from pipelines.ingest.source_file import SourceFile, open_source_file
from pipelines.ingest.sources import Track, check_unique_names, read_tracks
from pipelines.storage.filesystem import absolute_uri, open_source
from presto_core.artifacts.folder import DamagedError, Folder
from presto_core.audio.chunks import AudioError, decode_blocks, iter_windows
from presto_core.audio.decoders import open_sound
from presto_core.errors import UserError

Clip = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FolderClips:
    """The clips of a folder, one per usable file, in the order of their names; decoded when they are read.

    Attributes:
        name: the system's name.
        uri: the folder.
        names: paths below the folder.
        captions: prompt of each clip: from the manifest, the sidecar, or the file name.
        prompts: number of the evaluation's prompt that the caption matches, or None.
        skipped: file -> why it is not used.
        notes: messages for the report: what was skipped, cut, converted or is missing, with numbers.
        digests: sha256 of each file's content.
    """

    name: str
    uri: str
    format: ClipFormat
    names: tuple[str, ...]
    captions: tuple[str, ...]
    prompts: tuple[int | None, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def read_audio(self, start: int, count: int) -> Clip:
        """Decode clips start ... start + count; return [count, A, N], fewer at the end.

        Raises:
            UserError: a file has changed since the folder was read, and is no longer usable.
        """
        source = open_source(self.uri, setting=f"evaluate.folders.{self.name}")
        names = self.names[start : start + count]
        shape = (0, self.format.channels, self.format.length)
        return np.concatenate([np.zeros(shape, np.float32), *(self._read_clip(source, n)[None] for n in names)])

    def _read_clip(self, source: Folder, name: str) -> Clip:
        try:
            with open_source_file(source, name) as file:
                return decode_clip(file, self.format)
        except (AudioError, DamagedError) as error:
            raise UserError(
                f"evaluate.folders.{self.name}: {name} in {self.uri} has changed during the evaluation: {error}; "
                "re-run it when the folder is complete"
            ) from None


def read_folder_system(
    path: str,
    *,
    name: str,
    seconds: float,
    rate_hz: int,
    channels: int,
    count: int | None = None,
    prompts: Sequence[str] = (),
) -> FolderClips:
    """Read a folder of audio, local or s3://, as a system: one clip per file, cut from its start.

    A manifest in the folder (manifest.jsonl, .csv or .parquet, as for ingest) selects the files and gives their
    captions; without one, every audio file is taken, and the caption is that of its sidecar or its file name. Files are
    resampled and mixed to the report's format. Unusable files (damaged, no audio, NaN, shorter than a clip) are
    skipped, counted and named. Each file is decoded up to the length of a clip; later samples are never read.

    Args:
        name: name of the system, for messages.
        seconds: length of a clip, rounded to samples.
        channels: 1 mixes all channels; 2 copies mono to both.
        count: clips that the other systems have; None takes all. Of more files, those whose caption in the manifest or
            file name matches a prompt are taken first, and further ones are left out.
        prompts: captions of the evaluation's clips, to find matching ones.

    Raises:
        UserError: the folder does not exist, has no audio or none that is usable, or its manifest is invalid.
    """
    clip_format = ClipFormat(round(seconds * rate_hz), rate_hz, channels)
    try:
        source = open_source(absolute_uri(path), setting=f"evaluate.folders.{name}")
        tracks = _sort_matching_first(_find_files(source), prompts)
        clips, skipped = _scan_tracks(source, tracks, clip_format, count=count)
    except UserError as error:
        raise type(error)(f"evaluate.folders.{name}: {error}") from None
    if not clips:
        raise SourceError(
            f"evaluate.folders.{name}: none of {len(skipped)} files in {source.uri} is usable: {list_some(skipped)}; "
            f"name a folder with audio of at least {seconds:g} s"
        )
    clips.sort(key=lambda clip: clip.track.path)
    captions = [clip.caption for clip in clips]
    matches = match_prompts(captions, prompts)
    notes = [
        *describe_files(len(clips), skipped, files=len(tracks), count=count),
        *describe_conversions(clips, clip_format),
        *describe_prompts(matches, prompts),
    ]
    return FolderClips(
        name,
        source.uri,
        clip_format,
        tuple(clip.track.path for clip in clips),
        tuple(captions),
        tuple(matches),
        skipped,
        tuple(f"{name}: {note}" for note in notes),
        tuple(clip.digest for clip in clips),
    )


def decode_clip(file: SourceFile, clip_format: ClipFormat) -> Clip:
    """Decode the first clip of a file, [A, N] float32; AudioError if it is not audio or is too short."""
    blocks = decode_blocks(file.stream, sample_rate_hz=clip_format.rate_hz, channels=clip_format.channels)
    length = clip_format.length
    _, windows = next(iter_windows(blocks, length=length, hop=length, tail="drop"))
    return windows[0]


def _find_files(source: Folder) -> list[Track]:
    """Return the folder's tracks, sorted by name, with captions of the manifest, otherwise of file names."""
    tracks = sorted(read_tracks(source, ""), key=lambda track: track.file)
    if not tracks:
        raise SourceError(f"{source.uri} has no audio; name a folder of audio files, or list them in a manifest")
    check_unique_names(tracks)
    names = captions_from_names([track.file for track in tracks])
    return [track if track.caption else replace(track, caption=name) for track, name in zip(tracks, names)]


def _sort_matching_first(tracks: list[Track], prompts: Sequence[str]) -> list[Track]:
    matches = match_prompts([track.caption for track in tracks], prompts)
    return [tracks[i] for i in sorted(range(len(tracks)), key=lambda i: matches[i] is None)]


def _scan_tracks(
    source: Folder, tracks: Iterable[Track], clip_format: ClipFormat, *, count: int | None
) -> tuple[list[ScannedClip], dict[str, str]]:
    """Decode tracks until `count` are usable; return those, and file -> reason of the others."""
    clips: list[ScannedClip] = []
    skipped: dict[str, str] = {}
    for track in tracks:
        if len(clips) == count:
            break
        try:
            clips.append(_scan_track(source, track, clip_format))
        except (AudioError, DamagedError) as error:
            skipped[track.path] = str(error).removeprefix(f"{source.uri}/{track.path} ")
    return clips, skipped


def _scan_track(source: Folder, track: Track, clip_format: ClipFormat) -> ScannedClip:
    if track.problem:
        raise AudioError(track.problem)
    with open_source_file(source, track.path) as file:
        with open_sound(file.stream) as sound:
            rate_hz, channels = sound.sample_rate_hz, sound.channels
        decode_clip(file, clip_format)
        return ScannedClip(track, _read_caption(source, track, file), file.digest, rate_hz, channels)


def _read_caption(source: Folder, track: Track, file: SourceFile) -> str:
    """Return the manifest's caption, else the sidecar's, else the file name's; AudioError if the sidecar is invalid."""
    if not track.sidecars or track.caption_source == "manifest":
        return track.caption
    try:
        metadata = read_metadata(replace(track, caption=""), file.stream, source)
    except ValueError as error:
        raise AudioError(str(error)) from None
    return str(metadata["caption"]) if metadata["caption_source"] == "sidecar" else track.caption
