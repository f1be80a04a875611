"""What an evaluation measures on the models: latency and blocks per clip, activations by depth."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.dataset import LatentDataset, make_conditioning, open_dataset
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows
from pipelines.evaluate.systems import EvaluatedSystem
from pipelines.inference.model import Model
from presto_core.config.schema import EvaluateStage
from presto_core.diffusion.denoiser import add_noise, denoise_at, full_sigma
from presto_core.metrics.block_activity import record_block_activity
from presto_core.metrics.latency import measure_latency
from presto_core.training.state import make_step_rng

LATENCY_CALLS = 5
VARIANCE_ROWS = 16
VARIANCE_SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


def measure_latency_and_blocks(
    config: EvaluateStage, systems: list[EvaluatedSystem], models: dict[str, Model], dataset_uri: str
) -> dict[str, dict[str, float]]:
    """System -> milliseconds of one clip at batch size 1, part by part, with nothing else running, and blocks run."""
    torch.set_num_threads(config.cluster.torch_threads)
    teacher = models["teacher"]
    first_row = _read_held_out(open_dataset(dataset_uri), 1)
    cond, caption = make_conditioning(first_row).to(teacher.device), str(first_row.caption[0])
    text = measure_latency(lambda: teacher.text_encoder.encode([caption]), calls=LATENCY_CALLS)
    latents = torch.zeros(1, teacher.card.channels, teacher.card.frames, device=teacher.device)
    decode = measure_latency(lambda: teacher.decode(latents), calls=LATENCY_CALLS)
    clip_seconds = teacher.card.frames * teacher.codec.hop / teacher.codec.sample_rate_hz
    costs = {}
    for system in systems:
        model = models[system.model]
        clip = partial(_sample_one_clip, config, system, model, cond)
        sampling = measure_latency(clip, calls=LATENCY_CALLS)
        total = text.p50_ms + sampling.p50_ms + decode.p50_ms
        costs[system.name] = {
            "blocks_run": _count_blocks_run(model, clip),
            "depth": model.network.depth,
            "text_ms": text.p50_ms,
            "latency_ms": sampling.p50_ms,
            "latency_p95_ms": sampling.p95_ms,
            "decode_ms": decode.p50_ms,
            "total_ms": total,
            "clip_seconds": clip_seconds,
            "real_time_factor": clip_seconds * 1e3 / total,
        }
    return costs


def measure_hidden_variance(
    models: dict[str, Model], labels: dict[str, str], dataset_uri: str
) -> dict[str, list[dict[str, Any]]]:
    """Variance of the activations after each block that runs, by noise level (the paper's argument for the last block).

    Args:
        labels: what to call each of the models.

    Returns:
        label -> one entry per noise level: sigma, and block index -> variance, on the same noised held-out latents for
        all. Generators are left out.
    """
    rows = _read_held_out(open_dataset(dataset_uri), VARIANCE_ROWS)
    measured_models = {role: model for role, model in models.items() if model.artifact.kind != "generator"}
    return {labels[role]: _measure_model_variance(model, rows) for role, model in measured_models.items()}


def _measure_model_variance(model: Model, rows: FullRows) -> list[dict[str, Any]]:
    latents = torch.tensor(np.asarray(rows.latents, dtype=np.float32)).to(model.device)
    x0, cond = model.card.normalize(latents), make_conditioning(rows).to(model.device)
    entries = []
    for sigma in VARIANCE_SIGMAS:
        rng = make_step_rng(0, total_step=0, device=model.device)
        noisy = add_noise(x0, full_sigma(sigma, x0), generator=rng)
        with record_block_activity(model.network.blocks) as activity:
            denoise_at(model.denoise, noisy, sigma, cond, model.blocks_at)
        entries.append({"sigma": sigma, "variance": {str(i): v for i, v in activity.variance.items()}})
    return entries


def _count_blocks_run(model: Model, clip: partial[Tensor]) -> int:
    """Blocks that one clip went through; guidance counts twice."""
    with record_block_activity(model.network.blocks) as activity:
        clip()
    return activity.runs


def _sample_one_clip(config: EvaluateStage, system: EvaluatedSystem, model: Model, cond: Any) -> Tensor:
    rng = make_step_rng(config.seed, total_step=0, device=model.device)
    noise = model.draw_noise(1, generator=rng)
    return system.sample(model, noise, cond, schedule=config.evaluate.schedule, generator=rng)


def _read_held_out(dataset: LatentDataset, count: int) -> FullRows:
    """The first held-out rows."""
    shard = next(iter(read_with_threads(dataset.uri, dataset.shards("held_out")[:1], FullRows)))
    return shard.take(slice(0, count))
