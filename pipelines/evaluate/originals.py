"""The recordings that a data set was encoded from, if ingest's sources still hold them unchanged.

A data set has no locations: its tracks are found by content, in the journal of the latent cache beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import yaml

from pipelines.data.dataset import LatentDataset
from pipelines.data.layout import TRACKS
from pipelines.ingest.latent_cache import LatentCache, SourceRecord
from pipelines.ingest.segments import EncodeSettings, read_window
from pipelines.ingest.source_file import open_source_file
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import CONFIG
from presto_core.artifacts.store import DamagedError, read_file
from presto_core.audio.chunks import AudioError, Waveform
from presto_core.config.schema import IngestStage
from presto_core.errors import UserError
from presto_core.models.recorded_components import OwnFolders, load_recorded_codec


@dataclass(frozen=True)
class Originals:
    """Where the recordings of tracks are.

    Attributes:
        encoding: how ingest read them: sample rate, channels, loudness, windows.
        uris, digests: track -> its file, and the BLAKE3 that it was encoded with.
    """

    encoding: EncodeSettings
    uris: dict[str, str]
    digests: dict[str, str]

    def read(self, tracks: Sequence[str], start_seconds: Iterable[float]) -> Waveform:
        """Decode the windows that rows were encoded from, [N, A, samples].

        Raises:
            UserError: a recording has changed since the evaluation began.
        """
        return np.stack([self._read_window(str(t), float(s)) for t, s in zip(tracks, start_seconds, strict=True)])

    def _read_window(self, track: str, start_seconds: float) -> Waveform:
        folder_uri, _, name = self.uris[track].rpartition("/")
        try:
            with open_source_file(open_folder(folder_uri), name) as file:
                if file.digest != self.digests[track]:
                    raise AudioError("has another content")
                return read_window(file.stream, self.encoding, start_seconds)
        except (AudioError, DamagedError) as error:
            raise UserError(
                f"the recording {self.uris[track]} has changed during the evaluation ({error}); restore it, or re-run "
                "the same command to evaluate without recordings"
            ) from None


def find_originals(
    dataset: LatentDataset, tracks: Iterable[str], own: OwnFolders = OwnFolders()
) -> tuple[Originals | None, str]:
    """Find the recordings of tracks; return them, or None and why not all of them are at hand."""
    folder = open_folder(dataset.uri)
    try:
        lines = read_file(folder, TRACKS, dataset.manifest).decode().splitlines()
    except UserError as error:
        return None, f"its list of tracks cannot be read ({error})"
    digests = {row["file"]: str(row.get("blake3", "")) for row in map(json.loads, lines)}
    wanted = sorted({str(track) for track in tracks})
    try:
        config = IngestStage.model_validate(yaml.safe_load(read_file(folder, CONFIG, dataset.manifest)))
        encoding = EncodeSettings.from_config(config, load_recorded_codec(dataset.info.get("codec"), own))
    except (UserError, ValueError) as error:  # of another version, or a codec that is not here
        return None, f"the settings of data set {dataset.uri} cannot be used ({error})"
    cache = LatentCache(open_folder(dataset.uri.rpartition("/artifacts/")[0]).child("encoded").child(encoding.key))
    cache.load()
    if not cache.source_records:
        return None, "its latent cache has no record of sources, as for data that an earlier version ingested"
    records = {record.digest: record for record in cache.source_records.values()}
    found = {track: records.get(digests.get(track, "")) for track in wanted}
    uris = {track: record.uri for track, record in found.items() if record and _is_unchanged(record)}
    if missing := [track for track in wanted if track not in uris]:
        return None, f"{len(missing)} of {len(wanted)} recordings are not where ingest read them, {missing[0]} for one"
    return Originals(encoding, uris, {track: digests[track] for track in wanted}), ""


def _is_unchanged(record: SourceRecord) -> bool:
    """Whether a file has the size and time that it had when it was encoded."""
    size, mtime_ns = json.loads(record.stamp)[0][0]
    folder_uri, _, name = record.uri.rpartition("/")
    folder = _open_folder(folder_uri)
    if folder is None:
        return False
    path = folder.file_path(name)
    info = folder.with_retries(lambda: folder.filesystem.get_file_info(path), f"look for {record.uri}")
    return bool((info.size, info.mtime_ns) == (size, mtime_ns))


@lru_cache(maxsize=64)
def _open_folder(uri: str) -> Folder | None:
    try:
        return open_folder(uri)
    except UserError:  # of a bucket that is gone, or of other credentials
        return None
