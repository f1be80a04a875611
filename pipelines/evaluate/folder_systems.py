"""Folders of audio as systems: read before sampling, so that a mistake is found first, and paired with prompts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate.folders import FolderClips, read_folder_system
from pipelines.evaluate.rows import Prompts, cycle, read_prompts
from pipelines.evaluate.systems import EvaluatedSystem
from pipelines.ingest.sources import read_tracks
from pipelines.storage.filesystem import absolute_uri, open_source
from presto_core.config.evaluation import EvaluateConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY
from presto_core.models.recorded_components import OwnFolders, load_recorded_codec


def fingerprint_folders(config: EvaluateConfig) -> dict[str, str]:
    """Name -> hash of the files' names, sizes, times and captions: other audio under the same path is another report.

    Raises:
        UserError: a folder or its manifest cannot be read.
    """
    fingerprints = {}
    for name, path in config.folders.items():
        source = open_source(absolute_uri(path), setting=f"evaluate.folders.{name}")
        tracks = sorted(read_tracks(source, ""), key=lambda track: track.file)
        files = json.dumps([[track.file, track.stamp, track.caption] for track in tracks])
        fingerprints[f"folder {name}"] = hashlib.sha256(files.encode()).hexdigest()
    return fingerprints


def read_folders(
    config: EvaluateConfig, dataset: LatentDataset, own: OwnFolders = OwnFolders()
) -> dict[str, FolderClips]:
    """Name -> clips of each of `evaluate.folders`, those with the evaluation's prompts first, in the prompts' order.

    Raises:
        UserError: a folder is missing or has no usable audio.
    """
    if not config.folders:
        return {}
    info, latents = dataset.info["codec"], dataset.info["latents"]
    prompts = read_prompts(dataset, dataset.test_split)
    captions = [str(caption) for caption in prompts.caption[cycle(len(prompts), 0, config.num_samples)]]
    channels = load_recorded_codec(info, own).audio_channels
    return {
        name: _sort_by_prompt(
            read_folder_system(
                path,
                name=name,
                seconds=latents["frames"] * info["hop"] / info["sample_rate_hz"],
                rate_hz=info["sample_rate_hz"],
                channels=channels,
                count=config.num_samples,
                prompts=captions,
            )
        )
        for name, path in config.folders.items()
    }


def _sort_by_prompt(clips: FolderClips) -> FolderClips:
    order = sorted(range(len(clips)), key=lambda i: (clips.prompts[i] is None, clips.prompts[i] or 0, i))
    return replace(
        clips,
        names=tuple(clips.names[i] for i in order),
        captions=tuple(clips.captions[i] for i in order),
        prompts=tuple(clips.prompts[i] for i in order),
        digests=tuple(clips.digests[i] for i in order),
    )


def make_folder_system(clips: FolderClips, split: str) -> EvaluatedSystem:
    """The table's row of a folder."""
    return EvaluatedSystem(
        clips.name, "folder", 0, 0, model=f"folder {clips.name}", label=clips.name, sampler="none", split=split
    )


def make_folder_prompts(clips: FolderClips, prompts: Prompts) -> Prompts:
    """The prompts of a folder's clips: those of the evaluation that they match, otherwise captions of their own."""
    matched = [None if i is None else i % len(prompts) for i in clips.prompts]

    def choose(values: np.ndarray, others: list[object]) -> np.ndarray:
        return np.array([other if i is None else values[i] for i, other in zip(matched, others)])

    unknown = len(clips)
    return Prompts(
        caption=choose(prompts.caption, list(clips.captions)),
        track=choose(prompts.track, [f"{clips.name}/{name}" for name in clips.names]),
        composition=choose(prompts.composition, [f"{clips.name}/{name}" for name in clips.names]),
        tempo_bpm=choose(prompts.tempo_bpm, [np.nan] * unknown),
        key=choose(prompts.key, [UNKNOWN_KEY] * unknown),
    )
