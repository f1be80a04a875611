"""Stage: base and student -> a report: distances to held-out music, latency, sounds and plots, all on one page."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from functools import partial
from typing import Any

import soundfile
import torch

from pipelines import plots, report
from pipelines.dataset import conditioning_of, open_dataset, read_here
from pipelines.models import Model, open_model
from pipelines.progress import console
from pipelines.shards import Array
from pipelines.stage import REPORTS, Workplace, run_stage
from pipelines.storage import open_folder
from pipelines.systems import FLOOR, REFERENCE, Sampled, System, compared_systems, sample_systems
from presto_core.config.loader import to_yaml
from presto_core.config.schema import EvaluateStage
from presto_core.metrics.distances import frechet_distance, mmd
from presto_core.metrics.embed import load_embedder
from presto_core.metrics.latency import hardware, measure_latency
from presto_core.metrics.prdc import prdc
from presto_core.registry.manifest import Artifact, commit_artifact
from presto_core.registry.store import read_file
from presto_core.training.state import step_generator

LATENCY_CALLS = 5


def run(config: EvaluateStage) -> Artifact:
    """Compare base and student; a report that exists is used again.

    Raises:
        UserError: an artifact is unknown, the data set holds nothing out, the cluster is too small.
    """

    def make(place: Workplace) -> None:
        uris = {role: artifact.uri for role, artifact in place.parents.items()}
        systems = compared_systems(config.evaluate)
        sampled = sample_systems(config, [REFERENCE, FLOOR, *systems], uris, place.scratch)
        result = _measured(config, systems, sampled, uris, place)
        _commit(config, result, sampled, place)
        for row in result["systems"]:
            place.run.log(row["nfe"], {f"{row['role']}/{k}": row[k] for k in ("fd", "mmd", "sampling_ms")})

    artifact = run_stage("evaluate", config, make, register_as="presto-report")
    _unpack(artifact)
    return artifact


def _measured(
    config: EvaluateStage, systems: list[System], sampled: dict[str, Sampled], uris: dict[str, str], place: Workplace
) -> dict[str, Any]:
    """The whole result as plain data: what report.json holds."""
    reference, k = sampled[REFERENCE.name].embeddings, config.evaluate.nearest_k
    latencies = _latencies(config, systems, uris)
    fastest_base = latencies[systems[0].name]
    rows = [
        {
            **asdict(system),
            **_quality(sampled[system.name].embeddings, reference, k),
            **latencies[system.name],
            "speed_up": fastest_base["sampling_ms"] / latencies[system.name]["sampling_ms"],
            "speed_up_end_to_end": fastest_base["total_ms"] / latencies[system.name]["total_ms"],
        }
        for system in systems
    ]
    embedder = load_embedder("musicnn")
    return {
        "systems": rows,
        "floor": _quality(sampled[FLOOR.name].embeddings, reference, k),
        "samples": config.evaluate.num_samples,
        "embeddings": {"generated": len(sampled[FLOOR.name].embeddings), "reference": len(reference)},
        "embedding": {"name": embedder.name, "digest": embedder.digest},
        "decoder_digest": open_model(uris["teacher"], device="cpu").codec.decoder_digest,
        "hardware": hardware(_best_device()),
        "seed": config.seed,
        "parents": place.parent_ids,
        "clip_seconds": fastest_base["clip_seconds"],
    }


def _quality(generated: Array, reference: Array, k: int) -> dict[str, float]:
    return {
        "fd": frechet_distance(generated=generated, reference=reference),
        "mmd": mmd(generated=generated, reference=reference),
        **prdc(generated=generated, reference=reference, k=k),
    }


def _latencies(config: EvaluateStage, systems: list[System], uris: dict[str, str]) -> dict[str, dict[str, float]]:
    """Milliseconds of one clip at batch 1, by part, with nothing else running."""
    torch.set_num_threads(config.cluster.torch_threads)
    base, student = (open_model(uris[role], device=_best_device()) for role in ("teacher", "generator"))
    dataset = open_dataset(uris["dataset"])
    first = next(iter(read_here(dataset.uri, dataset.shards("held_out")[:1]))).take(slice(0, 1))
    cond, caption = conditioning_of(first).to(base.device), str(first.caption[0])
    text = measure_latency(lambda: base.text.encode([caption]), calls=LATENCY_CALLS)
    latents = torch.zeros(1, base.card.channels, base.card.frames, device=base.device)
    decode = measure_latency(lambda: base.decode(latents), calls=LATENCY_CALLS)
    clip_seconds = base.card.frames * base.codec.hop / base.codec.sample_rate_hz
    result = {}
    for system in systems:
        model = student if system.role == "student" else base
        sampling = measure_latency(partial(_one_clip, config, system, model, cond), calls=LATENCY_CALLS)
        total = text.p50_ms + sampling.p50_ms + decode.p50_ms
        result[system.name] = {
            "text_ms": text.p50_ms,
            "sampling_ms": sampling.p50_ms,
            "sampling_p95_ms": sampling.p95_ms,
            "decode_ms": decode.p50_ms,
            "total_ms": total,
            "clip_seconds": clip_seconds,
            "real_time_factor": clip_seconds * 1e3 / total,
        }
    return result


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _one_clip(config: EvaluateStage, system: System, model: Model, cond: Any) -> torch.Tensor:
    rng = step_generator(config.seed, rank=0, total_step=0, device=model.device)
    noise = model.noise(1, generator=rng)
    return system.sample(model, noise, cond, schedule=config.evaluate.schedule, generator=rng)


def _commit(config: EvaluateStage, result: dict[str, Any], sampled: dict[str, Sampled], place: Workplace) -> None:
    rate_hz = place.parents["teacher"].manifest["model"]["codec"]["sample_rate_hz"]
    sounds = {
        f"audio/{_slug(name)}-{i}.wav": _wav(clip, rate_hz)
        for name, one in sampled.items()
        if name != FLOOR.name
        for i, clip in enumerate(one.audio)
    }
    commit_artifact(
        place.artifact,
        kind="report",
        artifact_id=place.run_id,
        config_yaml=to_yaml(config),
        parents=place.parent_ids,
        files={
            "report.json": json.dumps(result, indent=2).encode(),
            "quality_vs_steps.png": plots.quality_vs_steps(result),
            "index.html": report.to_html(result, sorted(sounds)).encode(),
            **sounds,
        },
        details={"report": {"floor_fd": result["floor"]["fd"], "seed": result["seed"]}},
    )


def _unpack(artifact: Artifact) -> None:
    """Put the report where it can be opened, and print its table."""
    source, target = open_folder(artifact.uri), REPORTS / artifact.id
    for name in artifact.manifest["files"]:
        path = target / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read_file(source, name, artifact.manifest))
    report.print_table(json.loads((target / "report.json").read_text()))
    console.print(f"evaluate: page with plots and sounds: {target / 'index.html'}")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def _wav(samples: Array, rate_hz: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()
