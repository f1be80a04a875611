"""What an evaluation compares: teacher and layer-distilled models by sampler, generators by step count, real music."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torchaudio.functional as TAF
from safetensors.numpy import load, save
from torch import Tensor

from pipelines.cluster.actor_pool import actor_resources, map_items
from pipelines.cluster.session import ray_session
from pipelines.console import Bar, console, progress_bar
from pipelines.data.dataset import LatentDataset, make_conditioning, open_dataset
from pipelines.data.parquet_tensors import Array
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows
from pipelines.inference.model import Model, open_model, sample_generator, sample_teacher
from pipelines.registry.compatibility import distillation_method
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import read_bytes, write_bytes
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.config.schema import EvaluateStage
from presto_core.metrics.embed import load_embedder
from presto_core.training.state import make_step_rng


@dataclass(frozen=True)
class EvaluatedSystem:
    """One row of the results table.

    Attributes:
        name: e.g. `teacher dpmpp_2m 40`, `L dpmpp_2m 40`, `LS 4`.
        role: `teacher`, `layers`, `generator`, or real music from a split: `train`, `held_out`.
        steps: sampling steps; 0 for real music.
        nfe: network evaluations per sample.
        model: which of the evaluation's inputs it samples.
        label: what its curve in a plot is called: the name without steps.
    """

    name: str
    role: str
    steps: int
    nfe: int
    model: str = "teacher"
    label: str = ""
    sampler: str = "ping_pong"
    guidance_scale: float = 1.0

    def sample(
        self, model: Model, noise: Tensor, cond: Any, *, schedule: ScheduleConfig, generator: torch.Generator
    ) -> Tensor:
        """Latents [B, C, T] of any system but real music."""
        if self.role == "generator":
            return sample_generator(model, noise, cond, steps=self.steps, schedule=schedule, generator=generator)
        sampler_config = BaseSampler.model_validate(
            {"sampler": self.sampler, "steps": self.steps, "guidance_scale": self.guidance_scale}
        )
        return sample_teacher(model, noise, cond, sampler=sampler_config, schedule=schedule)


REFERENCE = EvaluatedSystem("real music, held out", "held_out", steps=0, nfe=0, sampler="none")
NOISE_FLOOR = EvaluatedSystem("real music, training split", "train", steps=0, nfe=0, sampler="none")


def list_compared_systems(config: EvaluateConfig, models: dict[str, Artifact]) -> list[EvaluatedSystem]:
    """The teacher's samplers (the first is the reference for speed), layer-distilled models, then generators.

    Args:
        models: the evaluation's inputs by role, without the data set.
    """
    teacher_systems = [
        _make_sampled_system("teacher", "teacher", "teacher", sampler_config) for sampler_config in config.base
    ]
    layer_systems, generator_systems = [], []
    for role, label in make_method_labels(models).items():
        if models[role].kind == "layers":
            layer_systems += [_make_sampled_system(label, "layers", role, how) for how in config.layers]
        elif models[role].kind == "generator":
            generator_systems += [
                EvaluatedSystem(f"{label} {n}", "generator", n, n, role, label) for n in config.student_steps
            ]
    return teacher_systems + layer_systems + generator_systems


def make_method_labels(models: dict[str, Artifact]) -> dict[str, str]:
    """What tables call each model: its method, and its id if several share a method."""
    methods = {role: _method_label(artifact) for role, artifact in models.items()}
    all_methods = list(methods.values())
    return {role: m if all_methods.count(m) == 1 else f"{m} {models[role].id[:6]}" for role, m in methods.items()}


def _method_label(artifact: Artifact) -> str:
    method = distillation_method(artifact)
    return "teacher" if method == "base" else method  # "base" is the tag of teachers in the registry


def _make_sampled_system(method: str, role: str, model: str, sampler_config: BaseSampler) -> EvaluatedSystem:
    label = f"{method} {sampler_config.sampler}"
    guidance = f" w={sampler_config.guidance_scale:g}" if sampler_config.guidance_scale != 1 else ""
    name = f"{label} {sampler_config.steps}{guidance}"
    return EvaluatedSystem(
        name,
        role,
        sampler_config.steps,
        sampler_config.nfe,
        model,
        label,
        sampler_config.sampler,
        sampler_config.guidance_scale,
    )


class SystemSampler:
    """A Ray Data actor: (system, batch number) in; embeddings, and audio for the first clips, out.

    All systems are given the same captions and, batch by batch, the same starting noise.
    """

    def __init__(self, config: EvaluateStage, uris: dict[str, str]) -> None:
        torch.set_num_threads(config.cluster.torch_threads)
        self.config = config
        device = "cuda" if config.cluster.gpus_per_worker and torch.cuda.is_available() else "cpu"
        self.models = {role: open_model(uri, device=device) for role, uri in uris.items() if role != "dataset"}
        self.dataset = open_dataset(uris["dataset"])
        self.embedder = load_embedder("musicnn")
        self.rows: dict[str, FullRows] = {}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        system, start, count = EvaluatedSystem(**json.loads(item["system"])), int(item["start"]), int(item["count"])
        audio = self._make_audio(system, start, count)[:, 0]
        rate_hz = self.models["teacher"].codec.sample_rate_hz
        with torch.inference_mode():
            embeddings = self.embedder.embed(TAF.resample(audio, rate_hz, self.embedder.sample_rate_hz))
        num_audio = max(0, min(self.config.evaluate.save_audio - start, count))
        return {
            "system": item["system"],
            "embeddings": embeddings.flatten(0, 1).numpy(),
            "audio": audio[:num_audio].numpy().reshape(num_audio, audio.shape[-1]),
        }

    def _make_audio(self, system: EvaluatedSystem, start: int, count: int) -> Tensor:
        """[count, 1, N] decoded audio; real music passes through the codec too, so only the model differs."""
        model = self.models[system.model]
        split = "train" if system.role == "train" else "held_out"
        rows = self._select_rows(split, start, count)
        if system.role in ("train", "held_out"):
            with torch.inference_mode():
                return model.codec.decode(torch.tensor(np.asarray(rows.latents, dtype=np.float32)))
        rng = make_step_rng(self.config.seed, total_step=start, device=model.device)
        noise = model.draw_noise(count, generator=rng)
        cond = make_conditioning(rows).to(model.device)
        x0 = system.sample(model, noise, cond, schedule=self.config.evaluate.schedule, generator=rng)
        return model.decode(x0)

    def _select_rows(self, split: str, start: int, count: int) -> FullRows:
        """Rows start ... start + count of the split in a fixed shuffled order, repeated if the split is short."""
        if split not in self.rows:
            self.rows[split] = read_shuffled_rows(self.dataset, split)
        rows = self.rows[split]
        return rows.take(np.arange(start, start + count) % len(rows))


def read_shuffled_rows(dataset: LatentDataset, split: str) -> FullRows:
    """All rows of a split, in a shuffled order that is always the same."""
    rows = FullRows.concatenate(list(read_with_threads(dataset.uri, dataset.shards(split), FullRows)))
    return rows.take(np.random.default_rng(0).permutation(len(rows)))


@dataclass(frozen=True)
class SystemSamples:
    """What one system generated.

    Attributes:
        embeddings: [N, D], one per patch of audio.
        audio: [K, samples] the first clips.
    """

    embeddings: Array
    audio: Array


def sample_systems(
    config: EvaluateStage, systems: list[EvaluatedSystem], uris: dict[str, str], scratch: Folder
) -> dict[str, SystemSamples]:
    """Sample every system with Ray Data; what an interrupted run finished is taken from `scratch`."""
    pending = [s for s in systems if not scratch.exists(_partial_file_name(s))]
    if len(pending) < len(systems):
        console.print(f"evaluate: {len(systems) - len(pending)} of {len(systems)} systems are sampled already")
    if pending:
        items = list(_iter_work_items(pending, config.evaluate, held_out_rows=_count_held_out_rows(uris["dataset"])))
        needs = actor_resources(config.cluster, len(items))
        with progress_bar("evaluate", len(items)) as bar, ray_session(config.cluster, **needs):
            rows = _report_progress(map_items(items, SystemSampler, config.cluster, config, uris), bar)
            for system_json, parts in groupby(rows, key=lambda row: row["system"]):
                _store_samples(scratch, EvaluatedSystem(**json.loads(system_json)), list(parts))
    return {s.name: _load_samples(scratch, s) for s in systems}


def _iter_work_items(
    systems: list[EvaluatedSystem], config: EvaluateConfig, *, held_out_rows: int
) -> Iterator[dict[str, Any]]:
    """One item per system and batch; the reference is every held-out row, once."""
    for system in systems:
        num_samples = held_out_rows if system.role == "held_out" else config.num_samples
        for start in range(0, num_samples, config.batch_size):
            count = min(config.batch_size, num_samples - start)
            yield {"system": json.dumps(asdict(system)), "start": start, "count": count}


def _report_progress(rows: Iterator[dict[str, Any]], bar: Bar) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        bar.update(number, json.loads(row["system"])["name"])
        yield row


def _partial_file_name(system: EvaluatedSystem) -> str:
    return f"{hashlib.sha256(json.dumps(asdict(system)).encode()).hexdigest()[:16]}.safetensors"


def _store_samples(scratch: Folder, system: EvaluatedSystem, parts: list[dict[str, Any]]) -> None:
    arrays = {key: np.concatenate([np.asarray(p[key]) for p in parts]) for key in ("embeddings", "audio")}
    write_bytes(scratch, _partial_file_name(system), save(arrays))


def _load_samples(scratch: Folder, system: EvaluatedSystem) -> SystemSamples:
    return SystemSamples(**load(read_bytes(scratch, _partial_file_name(system))))


def _count_held_out_rows(dataset_uri: str) -> int:
    return sum(s.rows for s in open_dataset(dataset_uri).shards("held_out"))
