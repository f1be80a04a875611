"""What an evaluation measures on the models: latency, memory and blocks per clip, activations by depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.collate import make_conditioning
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.data.shard_reader import read_with_threads
from pipelines.data.shards import FullRows
from pipelines.evaluate.systems import EvaluatedSystem
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords, make_conditions
from presto_core.config.schema import EvaluateStage
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import add_noise, denoise_at, full_sigma
from presto_core.metrics.block_activity import record_block_activity
from presto_core.metrics.latency import (
    MIB,
    TOTAL,
    choose_calls,
    describe_hardware,
    find_device,
    measure_peak_memory,
    summarize_calls,
    time_parts,
)
from presto_core.training.step_rng import make_step_rng

CLIP_BUDGET_S, LEAST_CLIP_CALLS, MOST_CLIP_CALLS = 1.5, 3, 15
BATCH_BUDGET_S, MOST_BATCH_CALLS = 0.75, 5
VARIANCE_ROWS = 16
ANY_WORDS = PromptWords(tempo_bpm=120.0)  # conditions of any value cost the same
VARIANCE_SIGMAS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
TEXT, NETWORK, DECODE = "text", "network", "decode"

Parts = dict[str, Callable[[Any], Any]]


def measure_latency_and_blocks(
    config: EvaluateStage, systems: list[EvaluatedSystem], models: dict[str, Model], dataset_uri: str
) -> dict[str, dict[str, float]]:
    """Time, memory and blocks of every system's clips, from prompt to audio, with nothing else running.

    Every call goes from end to end: text encoder, network, decoder, each timed within it. Few-step systems are called
    up to 15 times, slow ones at least three times.

    Returns:
        System -> `text_ms`, `latency_ms` and `latency_p95_ms` (the network), `decode_ms`, `total_ms`, `total_p95_ms`:
        medians and 95th percentiles of `calls` calls of one clip; `batch_total_ms`: per clip in batches of
        `evaluate.latency_batch`, median of `batch_calls`; `peak_memory_mb`: MiB of the network's weights and of what
        such a batch needs beyond what is in use, on the network's device (`measure_peak_memory`); `blocks_run` of one
        clip, `depth`, `clip_seconds`, `real_time_factor`. `cold_ms`, of the first system of each model: its first clip
        after loading, with the first calls of text encoder and decoder in this process; neither loading nor the start
        of the device is in it, and what earlier models started (threads, kernels) is not counted again.
    """
    torch.set_num_threads(config.cluster.torch_threads)
    prompts = _read_prompts(open_dataset(dataset_uri), config.evaluate.latency_batch)
    make_parts = partial(_make_parts, config, models["teacher"])
    _load_components(models["teacher"])
    costs, first_calls = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
    for system in systems:
        model = models[system.model]
        one_clip, batch = make_parts(system, model, prompts[:1]), make_parts(system, model, prompts)
        first_call = time_parts(one_clip)
        cold = {} if system.model in first_calls else {"cold_ms": _add_cold_parts(first_calls, first_call)}
        first_calls.setdefault(system.model, first_call)
        costs[system.name] = {
            **cold,
            "blocks_run": _count_blocks_run(model, one_clip),
            "depth": model.network.depth,
            **_measure_one_clip(one_clip, models["teacher"]),
            **_measure_batch(batch, model, size=len(prompts)),
        }
    return costs


def describe_parts(models: dict[str, Model]) -> dict[str, dict[str, str | int]]:
    """Part of a clip's latency -> the hardware that ran it; the network's is that of the teacher."""
    teacher = models["teacher"]
    devices = {
        TEXT: find_device(teacher.text_encoder),
        NETWORK: teacher.device,
        DECODE: find_device(teacher.codec),
    }
    return {part: describe_hardware(device) for part, device in devices.items()}


def _make_parts(
    config: EvaluateStage, teacher: Model, system: EvaluatedSystem, model: Model, prompts: list[str]
) -> Parts:
    """What makes a clip of each prompt, one function per part; all systems share the teacher's encoder and codec."""

    def sample(cond: Conditioning) -> Tensor:
        rng = make_step_rng(config.seed, total_step=0, device=model.device)
        noise = model.draw_noise(len(prompts), generator=rng)
        return system.sample(model, noise, cond, schedule=config.evaluate.schedule, generator=rng)

    return {
        TEXT: lambda _: make_conditions(teacher, prompts, [ANY_WORDS] * len(prompts)).to(model.device),
        NETWORK: sample,
        DECODE: teacher.decode,
    }


def _load_components(teacher: Model) -> None:
    """Load what is loaded on first use, and start the device, so that no clip's time includes it."""
    _ = teacher.text_encoder, teacher.codec
    torch.ones(8, 8, device=teacher.device).mm(torch.ones(8, 8, device=teacher.device)).cpu()


def _add_cold_parts(first_calls: dict[str, dict[str, float]], first_call: dict[str, float]) -> float:
    """A model's first clip; text encoder and decoder are cold in the process's first call alone, so taken from it."""
    coldest = next(iter(first_calls.values()), first_call)
    return coldest[TEXT] + first_call[NETWORK] + coldest[DECODE]


def _measure_one_clip(parts: Parts, teacher: Model) -> dict[str, float]:
    calls = [time_parts(parts)]
    wanted = choose_calls(calls[0][TOTAL], budget_s=CLIP_BUDGET_S, least=LEAST_CLIP_CALLS, most=MOST_CLIP_CALLS)
    calls += [time_parts(parts) for _ in range(wanted - 1)]
    latency = summarize_calls(calls)
    clip_seconds = teacher.card.frames * teacher.codec.hop / teacher.codec.sample_rate_hz
    return {
        "text_ms": latency[TEXT].p50_ms,
        "latency_ms": latency[NETWORK].p50_ms,
        "latency_p95_ms": latency[NETWORK].p95_ms,
        "decode_ms": latency[DECODE].p50_ms,
        "total_ms": latency[TOTAL].p50_ms,
        "total_p95_ms": latency[TOTAL].p95_ms,
        "calls": latency[TOTAL].calls,
        "clip_seconds": clip_seconds,
        "real_time_factor": clip_seconds * 1e3 / latency[TOTAL].p50_ms,
    }


def _measure_batch(parts: Parts, model: Model, *, size: int) -> dict[str, float]:
    """Memory in the first call at this batch size, which warms up; then the time of a few more."""
    peak_mib = measure_peak_memory(partial(time_parts, parts), device=model.device)
    calls = [time_parts(parts)]
    wanted = choose_calls(calls[0][TOTAL], budget_s=BATCH_BUDGET_S, least=1, most=MOST_BATCH_CALLS)
    calls += [time_parts(parts) for _ in range(wanted - 1)]
    total = summarize_calls(calls)[TOTAL]
    return {
        "batch_total_ms": total.p50_ms / size,
        "batch_calls": total.calls,
        "peak_memory_mb": peak_mib + _weights_mib(model),
    }


def _weights_mib(model: Model) -> float:
    tensors = [*model.network.parameters(), *model.network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


def measure_hidden_variance(
    models: dict[str, Model], labels: dict[str, str], dataset_uri: str
) -> dict[str, list[dict[str, Any]]]:
    """Variance of the activations after each block that runs, by noise level (the paper's argument for the last block).

    Args:
        labels: what to call each of the models.

    Returns:
        label -> one entry per noise level: sigma, and block index -> variance, on the same noised test latents for
        all. Generators are left out.
    """
    rows = _read_first_rows(open_dataset(dataset_uri), VARIANCE_ROWS)
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


def _count_blocks_run(model: Model, one_clip: Parts) -> int:
    """Blocks that one clip went through; guidance counts twice."""
    cond = one_clip[TEXT](None)
    with record_block_activity(model.network.blocks) as activity:
        one_clip[NETWORK](cond)
    return activity.runs


def _read_prompts(dataset: LatentDataset, count: int) -> list[str]:
    """Captions of the first rows of the test split, repeated if they are fewer; rows without one count as "music"."""
    captions = [str(caption).strip() or "music" for caption in _read_first_rows(dataset, count).caption]
    return [captions[i % len(captions)] for i in range(count)]


def _read_first_rows(dataset: LatentDataset, count: int) -> FullRows:
    """The first rows of the test split, at most `count`."""
    shard = next(iter(read_with_threads(dataset.uri, dataset.shards(dataset.test_split)[:1], FullRows)))
    return shard.take(slice(0, count))
