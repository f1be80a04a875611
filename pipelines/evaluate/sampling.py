"""Sample every system with Ray Data: clips, their embeddings and what is measured on each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from pipelines.cluster.actor_pool import map_items, open_pool
from pipelines.cluster.device import select_worker_device
from pipelines.console import Bar, console, progress_bar
from pipelines.data.collate import make_conditioning
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.parquet_tensors import Array
from pipelines.data.shards import FullRows
from pipelines.evaluate.clip_measures import measure_clip
from pipelines.evaluate.folders import FolderClips
from pipelines.evaluate.originals import Originals
from pipelines.evaluate.real_audio import make_real_audio
from pipelines.evaluate.rows import cycle, read_rows
from pipelines.evaluate.systems import ORIGINAL, REAL, EvaluatedSystem
from pipelines.inference.model import open_model
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import read_bytes, write_bytes
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.schema import EvaluateStage
from presto_core.device import DeviceError, explain_memory
from presto_core.errors import UserError
from presto_core.metrics.embedders.embedder import prepare_audio
from presto_core.metrics.embedders.musicnn import MusicnnEmbedder
from presto_core.metrics.embedders.table import load_embedders
from presto_core.metrics.stereo import split_channels
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.step_rng import make_step_rng

VALIDATION_SALT = 1_000_003  # added to the seed, so that validation clips start from noise of their own
CLIP_PREFIX, EMBEDDING_PREFIX = "clip/", "embeddings/"


class SystemSampler:
    """A Ray Data actor: (system, batch number) in; embeddings, measurements, and audio of the first clips, out.

    All systems of a split get the same prompts and, batch by batch, the same starting noise.
    """

    def __init__(
        self, config: EvaluateStage, uris: dict[str, str], folders: dict[str, FolderClips], originals: Originals | None
    ) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        self.config = config
        device, own = select_worker_device(config.cluster), OwnFolders.from_config(config.storage)
        self.models = {
            role: open_model(uri, device=device, folders=own) for role, uri in uris.items() if role != "dataset"
        }
        self.dataset, self.folders, self.originals = open_dataset(uris["dataset"]), folders, originals
        self.embedders = load_embedders(config.evaluate.embedders, device=device)
        has_tagger = any(isinstance(embedder, MusicnnEmbedder) for embedder in self.embedders)
        self.tagger = None if has_tagger else MusicnnEmbedder(device=device)
        self.rows: dict[str, FullRows] = {}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        system, start, count = EvaluatedSystem.from_json(item["system"]), int(item["start"]), int(item["count"])
        teacher = self.models["teacher"]
        rate_hz = teacher.codec.sample_rate_hz
        num_kept = max(0, min(self.config.evaluate.save_audio - start, count))
        try:
            with explain_memory(teacher.device, setting="evaluate.batch_size", value=count, least=1):
                audio = self._make_audio(system, start, count)
                arrays = self._embed(audio, rate_hz) | self._measure(audio.cpu(), rate_hz)
        except DeviceError:
            raise
        except UserError as error:
            raise UserError(
                f"clips {start} to {start + count - 1} of {system.name!r} cannot be measured: {error}"
            ) from error
        arrays["audio"] = audio[:num_kept].cpu().numpy()
        return {"system": item["system"], "arrays": save({k: np.ascontiguousarray(v) for k, v in arrays.items()})}

    def _make_audio(self, system: EvaluatedSystem, start: int, count: int) -> Tensor:
        """[count, A, N] audio; real music passes through the codec too, so that only the model differs, but for the
        original recordings."""
        if system.role == "folder":
            return torch.from_numpy(self.folders[system.label].read_audio(start, count))
        model = self.models[system.model]
        if system.role == "real":
            rng = make_step_rng(self.config.seed, total_step=start, device=model.device)
            rows = self._select_rows(system.split, start, count)
            return make_real_audio(rows, system.treatment, model.codec, generator=rng, originals=self.originals)
        rows = self._select_rows(system.split, start, count)
        salt = 0 if system.split == self.dataset.test_split else VALIDATION_SALT
        rng = make_step_rng(self.config.seed + salt, total_step=start, device=model.device)
        noise = model.draw_noise(count, generator=rng)
        cond = make_conditioning(rows).to(model.device)
        x0 = system.sample(model, noise, cond, schedule=self.config.evaluate.schedule, generator=rng)
        return model.decode(x0)

    def _embed(self, audio: Tensor, rate_hz: int) -> dict[str, Array]:
        """`embeddings/<number of the embedder>/<channel>` -> [B, patches, D]; musicnn also gives `tags` [B, 50]."""
        arrays: dict[str, Array] = {}
        for number, embedder in enumerate(self.embedders):
            for channel, signal in split_channels(audio).items():
                prepared = prepare_audio(signal[:, None], rate_hz, embedder)
                if isinstance(embedder, MusicnnEmbedder):
                    embeddings, tags = embedder.embed_with_tags(prepared)
                    arrays.setdefault("tags", tags.mean(dim=1).numpy())  # of the first channel, mid
                else:
                    embeddings = embedder.embed(prepared)
                arrays[f"{EMBEDDING_PREFIX}{number}/{channel}"] = embeddings.numpy()
        if self.tagger:
            mid = prepare_audio(split_channels(audio)["mid"][:, None], rate_hz, self.tagger)
            arrays["tags"] = self.tagger.embed_with_tags(mid)[1].mean(dim=1).numpy()
        return arrays

    def _measure(self, audio: Tensor, rate_hz: int) -> dict[str, Array]:
        """`clip/<measurement>` -> [B], NaN where it has no value."""
        measured = [measure_clip(clip, rate_hz=rate_hz) for clip in audio.numpy()]
        return {
            f"{CLIP_PREFIX}{name}": np.array([one[name] for one in measured], dtype=np.float64) for name in measured[0]
        }

    def _select_rows(self, split: str, start: int, count: int) -> FullRows:
        """Rows start ... start + count of a split, from the beginning again if the split is short."""
        if split not in self.rows:
            self.rows[split] = read_rows(self.dataset, split)
        return self.rows[split].take(cycle(len(self.rows[split]), start, count))


@dataclass(frozen=True)
class SystemSamples:
    """What one system generated: arrays as `SystemSampler` makes them, of all its clips.

    Attributes:
        arrays: `embeddings/<embedder>/<channel>` [N, patches, D], `tags` [N, 50], `clip/<measurement>` [N], and
            `audio` [K, A, samples] of the first clips.
    """

    arrays: dict[str, Array]

    @property
    def audio(self) -> Array:
        return self.arrays["audio"]

    @property
    def tags(self) -> Array:
        """[N, 50] tag probabilities of musicnn."""
        return self.arrays["tags"]

    @cached_property
    def clips(self) -> dict[str, Array]:
        """Measurement -> its value for each clip."""
        return {k.removeprefix(CLIP_PREFIX): v for k, v in self.arrays.items() if k.startswith(CLIP_PREFIX)}

    def __len__(self) -> int:
        return len(next(iter(self.clips.values())))

    def channels(self, embedder: int) -> list[str]:
        prefix = f"{EMBEDDING_PREFIX}{embedder}/"
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]

    def embeddings(self, embedder: int = 0, channel: str = "mid") -> Array:
        """[N, patches, D]."""
        return self.arrays[f"{EMBEDDING_PREFIX}{embedder}/{channel}"]


def sample_systems(
    config: EvaluateStage,
    systems: list[EvaluatedSystem],
    uris: dict[str, str],
    scratch: Folder,
    folders: dict[str, FolderClips],
    originals: Originals | None = None,
) -> dict[EvaluatedSystem, SystemSamples]:
    """Sample every system with Ray Data; what an interrupted run finished is taken from `scratch`.

    Args:
        folders: clips of the systems that are folders of audio, by name.
        originals: recordings of the systems of real music that are not encoded.
    """
    pending = [s for s in systems if not scratch.exists(partial_file_name(s, folders))]
    if len(pending) < len(systems):
        console.print(f"evaluate: {len(systems) - len(pending)} of {len(systems)} systems are sampled already")
    if pending:
        dataset = open_dataset(uris["dataset"])
        counts = [
            len(folders[s.label]) if s.role == "folder" else count_clips(s, config.evaluate, dataset) for s in pending
        ]
        batches = [_iter_work_items(s, n, config.evaluate.batch_size) for s, n in zip(pending, counts)]
        items = [item for batch in batches for item in batch]
        bars = progress_bar("evaluate", len(items), waits_for="starting workers")
        with bars as bar, open_pool(config.cluster, len(items)):
            results = map_items(items, SystemSampler, config.cluster, config, uris, folders, originals)
            rows = _report_progress(results, bar)
            for system_json, parts in groupby(rows, key=lambda row: row["system"]):
                file = partial_file_name(EvaluatedSystem.from_json(system_json), folders)
                _store_samples(scratch, file, list(parts))
    return {system: _load_samples(scratch, partial_file_name(system, folders)) for system in systems}


def count_clips(system: EvaluatedSystem, config: EvaluateConfig, dataset: LatentDataset) -> int:
    """How many clips of a system are compared: of real music, which is the reference, every row of its split.

    Models generate further clips from the first prompts again if these are fewer; real music is never repeated.
    """
    if system.role == "real":
        rows = sum(shard.rows for shard in dataset.shards(system.split))
        is_reference = system.name in (REAL, ORIGINAL)
        return min(rows, (config.reference_samples or rows) if is_reference else config.num_samples)
    return config.num_samples if system.split == dataset.test_split else config.validation_samples


def _iter_work_items(system: EvaluatedSystem, num_clips: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """One item per batch."""
    for start in range(0, num_clips, batch_size):
        count = min(batch_size, num_clips - start)
        yield {"system": json.dumps(asdict(system)), "start": start, "count": count}


def _report_progress(rows: Iterator[dict[str, Any]], bar: Bar) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        bar.update(number, json.loads(row["system"])["name"])
        yield row


def partial_file_name(system: EvaluatedSystem, folders: Mapping[str, FolderClips]) -> str:
    """Where the samples of a system are kept; those of a folder whose files have changed are made again."""
    key = json.dumps(asdict(system))
    if system.role == "folder":
        key += json.dumps([folders[system.label].names, folders[system.label].digests])
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def _store_samples(scratch: Folder, file: str, parts: list[dict[str, Any]]) -> None:
    batches = [load(part["arrays"]) for part in parts]
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    write_bytes(scratch, file, save(arrays))


def _load_samples(scratch: Folder, file: str) -> SystemSamples:
    return SystemSamples(load(read_bytes(scratch, file)))
