"""What is checked before hours of sampling: names of rows, embedders on a clip's length, clips and tracks per row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate.rows import Prompts
from pipelines.evaluate.systems import EvaluatedSystem
from presto_core.config.evaluation import EvaluateConfig
from presto_core.errors import UserError
from presto_core.metrics.embedders.embedder import Embedder, TextAudioEmbedder, prepare_audio

MIN_TRACKS, MIN_EMBEDDINGS = 2, 2  # of a set that MMD is computed for


def check_names(folders: Iterable[str], systems: Iterable[EvaluatedSystem]) -> None:
    """Check that no folder of audio has the name of another row or curve; raises UserError."""
    taken = {name: system for system in systems for name in (system.name, system.label) if name}
    for name in folders:
        if name in taken:
            kind = "real music" if taken[name].role == "real" else f"the model's system {taken[name].name!r}"
            raise UserError(f"evaluate.folders: the name {name!r} is that of {kind}; give the folder another one")


def count_patches(embedders: Sequence[Embedder], dataset: LatentDataset) -> int:
    """Fewest embeddings that one clip gives, found by embedding a silent one.

    Raises:
        EmbedderError: an embedder needs longer clips than those of the data set.
    """
    info = dataset.info
    silence = torch.zeros(1, 1, info["latents"]["frames"] * info["codec"]["hop"])
    rate_hz = info["codec"]["sample_rate_hz"]
    return min(embedder.embed(prepare_audio(silence, rate_hz, embedder)).shape[1] for embedder in embedders)


def check_captions(embedders: Iterable[Embedder], prompts: Iterable[Prompts]) -> None:
    """Check that embedders of text can embed every caption; raises EmbedderError."""
    captions = sorted({str(caption) for one in prompts for caption in one.caption})
    for embedder in embedders:
        if isinstance(embedder, TextAudioEmbedder):
            embedder.embed_text(captions)


def check_counts(
    prompts: Mapping[EvaluatedSystem, Prompts], config: EvaluateConfig, *, patches: int, is_validation: bool = False
) -> None:
    """Check that every row has the clips and tracks that its metrics need.

    Args:
        prompts: system -> the prompts of its clips, on one split.
        patches: embeddings that a clip gives at least.
        is_validation: whether these clips choose among systems: then only MMD is computed.

    Raises:
        UserError: a row has too few; the message names it, its number and the setting.
    """
    for system, own in prompts.items():
        setting = _name_setting(system, is_validation=is_validation)
        tracks, embeddings = len(set(own.composition)), len(own) * patches
        found = f"{system.name!r} ({system.split} split) has {len(own)} clip(s)"
        if tracks < MIN_TRACKS or embeddings < MIN_EMBEDDINGS:
            raise UserError(f"{found} of {tracks} track(s), and MMD needs clips of {MIN_TRACKS} tracks; {setting}")
        if not is_validation and embeddings <= config.nearest_k:
            raise UserError(
                f"evaluate.nearest_k={config.nearest_k} needs more than {config.nearest_k} embeddings of each system, "
                f"and {found} with {embeddings}; lower it, or {setting}"
            )


def _name_setting(system: EvaluatedSystem, *, is_validation: bool) -> str:
    """What to change for more clips of a system."""
    if system.role == "folder":
        return f"put more audio into the folder of evaluate.folders.{system.label}, or leave it out"
    if is_validation:
        return "raise evaluate.validation_samples, or set it to 0 to report without validation"
    if system.role == "real" and system.split != "train":
        return "raise evaluate.reference_samples (0 takes all clips), or use a data set with more tracks in this split"
    return "raise evaluate.num_samples, or use a data set with more tracks in this split"
