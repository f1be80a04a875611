"""Makes the clips of a prompt file, here or with Ray Data actors, one model each; finished clips are not made again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.cluster.actor_pool import dataset_from_items, iter_rows, map_actors
from pipelines.cluster.session import cluster_address, count_workers, ray_session
from pipelines.console import console, progress_bar
from pipelines.inference.clip_files import make_clip_name, write_wav
from pipelines.inference.clip_list import ClipList, make_request_cells, read_clip_list
from pipelines.inference.generator import open_generator
from pipelines.inference.model import Described, ModelDescription
from pipelines.inference.prompt_file import MOST_ERRORS, PromptRow
from pipelines.inference.prompts import check_words
from pipelines.inference.sampling_request import SamplingRequest
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.storage.lease import hold_lease
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.sampling import GenerateConfig
from presto_core.config.schema import GenerateStage
from presto_core.config.sections import ClusterConfig
from presto_core.device import resolve_device
from presto_core.errors import UserError
from presto_core.models.recorded_components import OwnFolders

LEASE = ".clips-lease"


class ClipMaker:
    """Makes clips with a model that is opened once; an actor of Ray Data, or an object of this process."""

    def __init__(self, config: GenerateStage, uri: str, content: str) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        device = resolve_device(config.cluster.device, setting="cluster.device")
        self.settings = config.generate
        folders = OwnFolders.from_config(config.storage)
        self.generator = open_generator(
            uri,
            device=device,
            folders=folders,
            content=content,
            autocast=self.settings.autocast,
            compiled=self.settings.compile,
        )

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        row, started = PromptRow(**item["row"]), time.perf_counter()
        try:
            (clip,) = self.generator.generate(
                [row.prompt],
                seconds=row.seconds,
                tempo_bpm=row.tempo_bpm,
                key=row.key,
                **make_sampling_arguments(row, self.settings),
            )
        except UserError as error:
            raise UserError(f"line {row.line} of the prompts: {error}") from None
        took_ms = (time.perf_counter() - started) * 1e3
        return {"number": item["number"], "name": make_clip_name(clip), "wav": clip.to_wav(), "took_ms": took_ms}


def make_clips(config: GenerateStage, rows: list[PromptRow], artifact: Artifact, folder: Path) -> list[dict[str, str]]:
    """Make the clips that the folder's list does not have, and return the list's rows of all, in the rows' order.

    A clip has the bits and the name that it has alone. One process at a time works in a folder.

    Raises:
        LeaseHeldError: another process makes clips there.
        UserError: the folder cannot be written, or the model cannot make a clip; those before it are finished.
        ClusterError: Ray cannot start, the cluster is too small, or a worker died.
    """
    if "model" in artifact.manifest:  # else opening it tells what it is
        check_rows(rows, config.generate, ModelDescription(artifact))
    cells = [make_request_cells(row, config.generate, model=artifact.id) for row in rows]
    with hold_lease(open_folder(absolute_uri(str(folder))).child(LEASE), f"the clips in {folder}"):
        clips = read_clip_list(folder)
        with _explain_full_disk(folder):
            clips.rewrite(cells)  # without a line that a crash cut off
        missing = [number for number, request in enumerate(cells) if request not in clips.rows]
        if missing:
            _make_missing(config, rows, cells, missing, artifact, clips)
        reused = f", {len(rows) - len(missing)} of them made before" if len(missing) < len(rows) else ""
        console.print(f"generate: {len(rows)} clips{reused}, listed in {clips.path}", markup=False)
    return [clips.rows[request] for request in cells]


def check_rows(rows: Sequence[PromptRow], settings: GenerateConfig, model: Described) -> None:
    """Check that this model can make each row's clip, before the first is made; raises UserError that names all."""
    errors = []
    for row in rows:
        try:
            request = SamplingRequest(**make_sampling_arguments(row, settings))
            request.check(model)
            request.check_levels(model)
            check_words(model, tempo_bpm=row.tempo_bpm, key=row.key)
        except UserError as error:
            errors.append(f"line {row.line}: {error}")
    if errors:
        more = f"; and {len(errors) - MOST_ERRORS} more lines" if len(errors) > MOST_ERRORS else ""
        raise UserError(f"{'; '.join(errors[:MOST_ERRORS])}{more}. Nothing was generated")


def make_sampling_arguments(row: PromptRow, settings: GenerateConfig) -> dict[str, Any]:
    """Return how a row is sampled: its own steps and seed, and else the settings of all."""
    return {
        "steps": row.steps,
        "seed": row.seed,
        "schedule": settings.schedule,
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": settings.guidance_interval,
        "guidance_rescale": settings.guidance_rescale,
        "negative_prompt": settings.negative_prompt,
    }


def _make_missing(
    config: GenerateStage,
    rows: list[PromptRow],
    cells: list[tuple[str, ...]],
    missing: list[int],
    artifact: Artifact,
    clips: ClipList,
) -> None:
    items = [{"number": number, "row": asdict(rows[number])} for number in missing]
    waits_for = "starting Ray" if uses_ray(config.cluster) else "loading"
    done = len(rows) - len(missing)
    with progress_bar("generate", len(rows), done=done, waits_for=waits_for) as bar:
        for made in _map(config, items, artifact):
            with _explain_full_disk(clips.folder):
                path = write_wav(made["wav"], made["name"], clips.folder)
                sha256 = hashlib.sha256(made["wav"]).hexdigest()
                clips.add(cells[made["number"]], file=path.name, sha256=sha256, took_ms=made["took_ms"])
            done += 1
            bar.update(done, path.name)
    with _explain_full_disk(clips.folder):
        clips.rewrite(cells)


def uses_ray(config: ClusterConfig) -> bool:
    """Whether actors make the clips: several workers are wanted, or a cluster is named."""
    return count_workers(config) > 1 or bool(cluster_address(config))


def _map(config: GenerateStage, items: list[dict[str, Any]], artifact: Artifact) -> Iterator[dict[str, Any]]:
    """Yield made clips in order, as they finish."""
    uri, content = artifact.uri, content_hash(artifact.manifest)
    if not uses_ray(config.cluster):
        maker = ClipMaker(config, uri, content)
        yield from map(maker, items)
        return
    actors = min(max(count_workers(config.cluster), 1), len(items))
    pool = config.cluster.model_copy(update={"data_workers": actors})
    with ray_session(pool, cpus=actors * pool.cpus_per_worker, gpus=actors * pool.gpus_per_worker):
        yield from iter_rows(map_actors(dataset_from_items(items), ClipMaker, pool, actors, config, uri, content))


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error}; free some space or set generate.output, then run the same command: "
            "finished clips are kept"
        ) from error
