"""Compare all systems of an evaluation on the test split; the validation split chooses among each model's systems."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipelines.console import progress_bar
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.evaluate.checks import check_captions, check_counts, check_names, count_patches
from pipelines.evaluate.folder_systems import make_folder_prompts, make_folder_system, read_folders
from pipelines.evaluate.folders import FolderClips
from pipelines.evaluate.gate_rows import measure_gate_rows
from pipelines.evaluate.originals import Originals, find_originals
from pipelines.evaluate.quality import (
    FIRST_CHANNEL,
    Compared,
    choose_systems,
    make_sets,
    measure_clips,
    measure_row,
    measure_validation,
)
from pipelines.evaluate.rows import Prompts, cycle, read_prompts
from pipelines.evaluate.sampling import count_clips, sample_systems
from pipelines.evaluate.systems import (
    ORIGINAL,
    ORIGINAL_TRAIN,
    REAL,
    REAL_TRAIN,
    EvaluatedSystem,
    list_real_systems,
)
from presto_core.artifacts.folder import Folder
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.schema import EvaluateStage
from presto_core.metrics.embedders.embedder import Embedder
from presto_core.metrics.embedders.table import load_embedders
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.fitness import check_fitness
from presto_core.metrics.report_warnings import list_warnings
from presto_core.models.recorded_components import OwnFolders


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        result: the parts of report.json that samples decide.
        compared: systems and real music on the test split, the reference first.
        validated: the same systems on the validation split; empty if nothing was.
    """

    result: dict[str, Any]
    compared: list[Compared]
    validated: list[Compared]
    validation_split: str

    @property
    def test_prompts(self) -> Prompts:
        """The prompts of the systems' clips on the test split, in order."""
        return next(one.prompts for one in self.compared if one.system.role not in ("real", "folder"))

    @property
    def on_test_prompts(self) -> list[Compared]:
        """Systems whose clips are kept: those on test prompts, real music first."""
        return [one for one in self.compared if one.system.split == self.result["split"]]


def compare_systems(
    config: EvaluateStage, systems: list[EvaluatedSystem], uris: dict[str, str], scratch: Folder
) -> Comparison:
    """Sample all systems and measure them.

    Raises:
        UserError: a split is empty, an embedder cannot be loaded, rows have too few clips or one name, or what a system
            generates cannot be measured. What can be known before sampling is raised before.
    """
    torch.set_num_threads(config.cluster.torch_threads)
    dataset = open_dataset(uris["dataset"])
    check_names(config.evaluate.folders, list_real_systems(dataset.test_split, originals=True) + systems)
    originals, why_none = _find_originals(config, dataset)
    real = list_real_systems(dataset.test_split, originals=originals is not None)
    embedders = load_embedders(config.evaluate.embedders)
    folders = read_folders(config.evaluate, dataset, OwnFolders.from_config(config.storage))
    on_test = [
        *real,
        *(system.on_split(dataset.test_split) for system in systems),
        *(make_folder_system(clips, dataset.test_split) for clips in folders.values()),
    ]
    on_validation = list_validated_systems(config.evaluate, systems, dataset)
    prompts = select_prompts(config.evaluate, on_test + on_validation, folders, dataset)
    _check(config.evaluate, on_test, on_validation, prompts, embedders, dataset)
    samples = sample_systems(config, on_test + on_validation, uris, scratch, folders, originals)

    def pair(system: EvaluatedSystem) -> Compared:
        numbers = folders[system.label].prompts if system.role == "folder" else None
        return Compared(system, samples[system], prompts[system], numbers)

    compared, validated = [pair(system) for system in on_test], [pair(system) for system in on_validation]
    result = _measure(config, compared, validated, dataset, embedders)
    result["notes"] += [note for clips in folders.values() for note in clips.notes]
    if why_none:
        result["notes"].append(f"no original recordings: {why_none}; the fitness test starts with the codec's output")
    return Comparison(result, compared, validated, dataset.validation_split)


def _find_originals(config: EvaluateStage, dataset: LatentDataset) -> tuple[Originals | None, str]:
    """The recordings of all rows that are compared as such; or None and why."""
    tracks: list[str] = []
    for system in list_real_systems(dataset.test_split, originals=True):
        if system.treatment == "original":
            prompts = read_prompts(dataset, system.split)
            tracks += prompts.track[: count_clips(system, config.evaluate, dataset)].tolist()
    return find_originals(dataset, tracks, OwnFolders.from_config(config.storage))


def select_prompts(
    config: EvaluateConfig,
    systems: list[EvaluatedSystem],
    folders: dict[str, FolderClips],
    dataset: LatentDataset,
) -> dict[EvaluatedSystem, Prompts]:
    """System -> the prompts of its clips, in their order."""
    of_split = {split: read_prompts(dataset, split) for split in sorted({system.split for system in systems})}

    def select(system: EvaluatedSystem) -> Prompts:
        available = of_split[system.split]
        if system.role == "folder":
            return make_folder_prompts(folders[system.label], available)
        return available.take(cycle(len(available), 0, count_clips(system, config, dataset)))

    return {system: select(system) for system in systems}


def _check(
    config: EvaluateConfig,
    on_test: list[EvaluatedSystem],
    on_validation: list[EvaluatedSystem],
    prompts: dict[EvaluatedSystem, Prompts],
    embedders: list[Embedder],
    dataset: LatentDataset,
) -> None:
    """Find what would fail after the sampling; raises UserError."""
    patches = count_patches(embedders, dataset)
    check_counts({system: prompts[system] for system in on_test}, config, patches=patches)
    check_counts({system: prompts[system] for system in on_validation}, config, patches=patches, is_validation=True)
    check_captions(embedders, [prompts[system] for system in on_test])


def list_validated_systems(
    config: EvaluateConfig, systems: list[EvaluatedSystem], dataset: LatentDataset
) -> list[EvaluatedSystem]:
    """The reference and all systems on the validation split, if there is one beside the test split."""
    split = dataset.validation_split
    has_rows = any(shard["split"] == split for shard in dataset.info["shards"])
    if split == dataset.test_split or not has_rows or not config.validation_samples:
        return []
    return [list_real_systems(split)[0], *(system.on_split(split) for system in systems)]


def _measure(
    config: EvaluateStage,
    compared: list[Compared],
    validated: list[Compared],
    dataset: LatentDataset,
    embedders: list[Embedder],
) -> dict[str, Any]:
    reference = compared[0]
    models = [one for one in compared if one.system.role != "real"]
    others = [one for one in compared[1:] if one.system.role == "real"]
    rows, controls = [], []
    controls.append(measure_clips(reference, reference, config.evaluate))
    with progress_bar("evaluate: metrics", len(models) + len(others)) as bar:
        for one in models:
            teacher = None if one.system.role == "folder" else models[0]
            rows.append(measure_row(one, reference, teacher, embedders, config.evaluate))
            bar.update(len(rows), one.system.name)
        for one in others:
            controls.append(measure_row(one, reference, None, embedders, config.evaluate))
            bar.update(bar.done + 1, one.system.name)
    for row, one in zip(rows, validated[1:]):
        row["validation"] = measure_validation(one, validated[0])
    choose_systems(rows, has_test_split=dataset.test_split == "test")
    reference_clips = reference.samples.embeddings()
    result = {
        "systems": rows,
        "controls": controls,
        "floor": next(row for row in controls if row["name"] == REAL_TRAIN),
        "split": dataset.test_split,
        "samples": config.evaluate.num_samples,
        "validation_samples": len(validated[1].samples) if validated else 0,
        "embeddings": {
            "generated": len(models[0].embeddings(0, FIRST_CHANNEL)),
            "reference": reference_clips.shape[0] * reference_clips.shape[1],
        },
        "tracks": len(set(reference.prompts.track)),
        "confidence": config.evaluate.confidence,
        "embedding": {"name": embedders[0].name, "digest": embedders[0].digest},
        "embedders": [
            {"kind": e.kind, "name": e.name, "digest": e.digest, "dim": e.dim, "sample_rate_hz": e.sample_rate_hz}
            for e in embedders
        ],
        "fitness": _check_fitness(compared, embedders, config.evaluate.nearest_k),
        "gate": measure_gate_rows(rows, compared, validated, config.evaluate),
    }
    return result | {"notes": _collect_notes(result, dataset)}


CODEC_STEPS = {"codec": "second codec pass", "noise": "noise", "shuffle": "shuffled frames"}


def _check_fitness(compared: list[Compared], embedders: list[Embedder], nearest_k: int) -> dict[str, Any]:
    """Embedder -> metric -> whether it orders real music, and real music made worse, as it must.

    With original recordings, these are the reference and the best case, and the codec's round trip is worse than they
    are; without, both have passed through the codec.
    """
    by_name = {one.system.name: one for one in compared}
    steps = {name: _find_treated(compared, treatment) for treatment, name in CODEC_STEPS.items()}
    reference, best = by_name[REAL], by_name[REAL_TRAIN]
    if ORIGINAL in by_name:
        steps = {"codec round trip": best, **steps}
        reference, best = by_name[ORIGINAL], by_name[ORIGINAL_TRAIN]

    def make(one: Compared, number: int) -> EmbeddingSets:
        return make_sets(one, reference, None, embedder=number, nearest_k=nearest_k)

    fitness = {}
    for number, embedder in enumerate(embedders):
        worse = {name: make(one, number) for name, one in steps.items()}
        verdicts = check_fitness(real=make(best, number), worse=worse)
        fitness[embedder.name] = {name: asdict(verdict) for name, verdict in verdicts.items()}
    return fitness


def _find_treated(compared: list[Compared], treatment: str) -> Compared:
    return next(one for one in compared if one.system.treatment == treatment)


def _collect_notes(result: dict[str, Any], dataset: LatentDataset) -> list[str]:
    """Warnings that stand below the table."""
    notes = [dataset.test_split_note] if dataset.test_split_note else []
    return notes + list_warnings(result)
