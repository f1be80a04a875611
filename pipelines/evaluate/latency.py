"""What an evaluation measures on the models themselves: latency and blocks run of one clip, activations by depth."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.dataset import (
    LatentDataset,
    conditioning_of,
    open_dataset,
)
from pipelines.data.shard_reader import read_here
from pipelines.data.shards import Rows
from pipelines.evaluate.systems import System
from pipelines.inference.model import Model
from presto_core.config.schema import EvaluateStage
from presto_core.diffusion.denoiser import (
    add_noise,
    denoise_at,
    full_sigma,
)
from presto_core.metrics.block_activity import watched
from presto_core.metrics.latency import measure_latency
from presto_core.training.state import step_generator

LATENCY_CALLS = 5
VARIANCE_ROWS = 16
VARIANCE_SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


def measured_costs(
    config: EvaluateStage, systems: list[System], models: dict[str, Model], dataset_uri: str
) -> dict[str, dict[str, float]]:
    """By system: milliseconds of one clip at batch 1, part by part, with nothing else running, and its blocks run."""
    torch.set_num_threads(config.cluster.torch_threads)
    base = models["teacher"]
    first = _held_out(open_dataset(dataset_uri), 1)
    cond, caption = conditioning_of(first).to(base.device), str(first.caption[0])
    text = measure_latency(lambda: base.text.encode([caption]), calls=LATENCY_CALLS)
    latents = torch.zeros(1, base.card.channels, base.card.frames, device=base.device)
    decode = measure_latency(lambda: base.decode(latents), calls=LATENCY_CALLS)
    clip_seconds = base.card.frames * base.codec.hop / base.codec.sample_rate_hz
    costs = {}
    for system in systems:
        model = models[system.model]
        clip = partial(_one_clip, config, system, model, cond)
        sampling = measure_latency(clip, calls=LATENCY_CALLS)
        total = text.p50_ms + sampling.p50_ms + decode.p50_ms
        costs[system.name] = {
            "blocks_run": _blocks_run(model, clip),
            "depth": model.network.depth,
            "text_ms": text.p50_ms,
            "sampling_ms": sampling.p50_ms,
            "sampling_p95_ms": sampling.p95_ms,
            "decode_ms": decode.p50_ms,
            "total_ms": total,
            "clip_seconds": clip_seconds,
            "real_time_factor": clip_seconds * 1e3 / total,
        }
    return costs


def hidden_variances(
    models: dict[str, Model], labels: dict[str, str], dataset_uri: str
) -> dict[str, list[dict[str, Any]]]:
    """Variance of the activations after each block that runs, by noise level (the paper's argument for the last block).

    Args:
        labels: what to call each of the models.

    Returns:
        label -> one entry a noise level: sigma, and block index -> variance; held-out latents, noised alike for all.
        Students are left out.
    """
    rows = _held_out(open_dataset(dataset_uri), VARIANCE_ROWS)
    shown = {role: model for role, model in models.items() if model.artifact.kind != "generator"}
    return {labels[role]: _hidden_variance(model, rows) for role, model in shown.items()}


def _hidden_variance(model: Model, rows: Rows) -> list[dict[str, Any]]:
    latents = torch.tensor(np.asarray(rows.latents, dtype=np.float32)).to(model.device)
    x0, cond = model.card.normalised(latents), conditioning_of(rows).to(model.device)
    found = []
    for sigma in VARIANCE_SIGMAS:
        rng = step_generator(0, total_step=0, device=model.device)
        noisy = add_noise(x0, full_sigma(sigma, x0), generator=rng)
        with watched(model.network.blocks) as record:
            denoise_at(model.denoise, noisy, sigma, cond, model.budget_at)
        found.append({"sigma": sigma, "variance": {str(i): v for i, v in record.variance.items()}})
    return found


def _blocks_run(model: Model, clip: partial[Tensor]) -> int:
    """Blocks that one clip went through; guidance counts twice."""
    with watched(model.network.blocks) as record:
        clip()
    return record.runs


def _one_clip(config: EvaluateStage, system: System, model: Model, cond: Any) -> Tensor:
    rng = step_generator(config.seed, total_step=0, device=model.device)
    noise = model.noise(1, generator=rng)
    return system.sample(model, noise, cond, schedule=config.evaluate.schedule, generator=rng)


def _held_out(dataset: LatentDataset, count: int) -> Rows:
    """The first rows that training did not see."""
    first = next(iter(read_here(dataset.uri, dataset.shards("held_out")[:1], Rows)))
    return first.take(slice(0, count))
