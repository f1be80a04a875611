"""What `presto plan` predicts against what runs here take: `make bench-plan` (`python -m tests.bench.plan`).

Real training runs, of teacher, L, S and LS at several sizes, in one process and in two of a gloo group, read a data set
from disk, report and save as always. CPU time is compared as well as wall time, since the machine may have other work;
it does not see the waiting of two workers for each other.

Shared machines change their pace, by a factor of two here within minutes. So constants are measured before and after
each run, and where they come to other predictions, the run is repeated; what never was steady is said to be so.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from infra.planning.benchmark import cores, measure_device
from infra.planning.step_time import Group, step_time
from pipelines.console import make_console
from pipelines.data.dataset import LatentDataset
from pipelines.data.shard_reader import read_with_threads
from pipelines.train.parallel import make_single_process
from pipelines.train.spec import Models, TrainingDefinition, TrainSpec
from pipelines.train.step_flops import count_stage_flops
from pipelines.train.worker import WorkerCallbacks, train_worker
from presto_core.config.layers import PrestoLSBudget
from presto_core.config.loader import load_config
from presto_core.config.schema import stage_configs
from presto_core.config.sections import LoopConfig, NetworkConfig
from presto_core.metrics.latency import describe_hardware
from presto_core.models.model_card import ModelCard
from presto_core.networks.dit import DiT
from presto_core.networks.flops import LatentShape
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, TrainState
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.support.process_group import join_group, run_in_processes
from tests.support.synthetic_dataset import make_dataset

SHAPE = LatentShape(channels=64, frames=130, text_dim=384, text_tokens=40)
NETWORKS = {
    "small": NetworkConfig(dim=64, depth=4, heads=2, patch=2),
    "demo": NetworkConfig(dim=128, depth=6, heads=4, patch=2),
    "wide": NetworkConfig(dim=256, depth=4, heads=4, patch=2),
}
BATCH = 16
ITERATIONS = 4  # of five critic steps and a generator step
STAGES_RUN = {"teacher": "train-teacher", "L": "distill-layers", "S": "distill-steps", "LS": "distill-steps"}
CRITIC_STEPS = 5
STEPS = ITERATIONS * (CRITIC_STEPS + 1)
UNSAVED = 1000  # steps between checkpoints: more than a run has
STEADY, TRIES = 0.1, 3  # most that predictions before and after a run may differ; runs until they do not


def make_algorithm(
    config: Any,
    models: Models,
    dataset: LatentDataset,
    parallel: Parallel,
    dtype: torch.dtype | None,
    *,
    stage: str,
    network: NetworkConfig,
) -> Algorithm:
    """An algorithm of a network that nobody trained, in a worker."""
    net = DiT(network, channels=SHAPE.channels, text_dim=SHAPE.text_dim)
    if stage == "teacher":
        return TeacherTraining(config.teacher, net, sigma_data=1.0, parallel=parallel)
    if stage == "L":
        return LayerDistillation(config.layers, net, sigma_data=1.0, parallel=parallel)
    budget = LayerBudget.from_distribution(config.steps.p_gen, PrestoLSBudget(), depth=network.depth)
    start, kept = (net.with_budget(budget), budget) if stage == "LS" else (None, None)
    return StepDistillation(config.steps, net, sigma_data=1.0, start=start, budget=kept, parallel=parallel)


def config_of(stage: str) -> Any:
    keys = {
        "teacher": {"teacher.steps": STEPS, "teacher.global_batch_size": BATCH},
        "L": {"layers.steps": STEPS, "layers.global_batch_size": BATCH},
    }.get(stage, {"steps.generator_updates": ITERATIONS, "steps.global_batch_size": BATCH})
    return load_config(stage_configs()[STAGES_RUN[stage]], None, keys)


def discard_result(spec: TrainSpec, dataset: LatentDataset, state: TrainState, details: dict[str, Any]) -> None:
    """Nothing is kept of these runs."""


def refuse_card(config: Any, models: Models, dataset: LatentDataset) -> ModelCard:
    raise NotImplementedError("these runs are not validated")


def run(stage: str, size: str, folder: str, workers: int, number: int) -> dict[str, float]:
    """Medians over iterations of wall and CPU seconds per step, in one process of a run."""
    config = config_of(stage)
    loop = LoopConfig(log_every=CRITIC_STEPS + 1, checkpoint_every=UNSAVED)
    definition = TrainingDefinition(
        name=f"{stage} {size}",
        kind="generator",
        make_card=refuse_card,
        make_algorithm=partial(make_algorithm, stage=stage, network=NETWORKS[size]),
        progress_metrics=(),
        plotted_metrics=(),
        commit=discard_result,
    )
    run_id = f"{stage}-{size}-{workers}-{number}"
    spec = TrainSpec(
        stage=definition,
        config=config.model_copy(update={"loop": loop}),
        models={},
        run_id=run_id,
        dataset_uri=f"{folder}/data",
        scratch_uri=f"{folder}/runs/{run_id}",
        artifact_uri=f"{folder}/artifacts/{run_id}",
        parent_ids={},
    )
    clock = [time.process_time()]
    rows: list[tuple[float, float]] = []

    def report(step: int, metrics: dict[str, float]) -> None:
        now = time.process_time()
        if metrics:
            rows.append((metrics["step_seconds"], (now - clock[0]) / (CRITIC_STEPS + 1)))
        clock[0] = now

    line = WorkerCallbacks(report, lambda message: None, lambda: "")
    train_worker(
        spec, make_single_process(LoopConfig()) if workers == 1 else join_group(), line, reader=read_with_threads
    )
    kept = rows[1:] or [(0.0, 0.0)]  # the first iteration warms up; ranks other than 0 report nothing
    return {"wall": median(wall for wall, _ in kept), "cpu": median(cpu for _, cpu in kept)}


def run_as_tensors(stage: str, size: str, folder: str, workers: int, number: int) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in run(stage, size, folder, workers, number).items()}


def compare_run(stage: str, size: str, folder: str, workers: int) -> dict[str, Any]:
    """One run, and what is predicted of it: the mean of what constants before and after it say."""
    row: dict[str, Any] = {"stage": stage, "size": size, "workers": workers, "off_pace": math.inf}
    for number in range(TRIES):
        before = predict_step_seconds(stage, size, workers)
        group_folder = Path(folder) / f"group-{stage}-{size}-{workers}-{number}"
        (first, *_) = run_in_processes(workers, run_as_tensors, group_folder, stage, size, folder, workers, number)
        after = predict_step_seconds(stage, size, workers)
        if (off := abs(after / before - 1)) < row["off_pace"]:
            row |= {"predicted": (before + after) / 2, "off_pace": off}
            row |= {name: float(value) for name, value in first.items()}
        if off <= STEADY:
            break
    return row


def predict_step_seconds(stage: str, size: str, workers: int) -> float:
    """Seconds a step by constants that are measured now."""
    network, rows, config = NETWORKS[size], BATCH // workers, config_of(stage)
    pace = measure_device(network, SHAPE, rows=rows, workers=workers)
    group = Group(workers, rows, config.loop.model_copy(update={"checkpoint_every": UNSAVED}), config.cluster.parallel)
    return step_time(count_stage_flops(config, network.depth, layered=stage == "LS"), network, SHAPE, pace, group).total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--stages", nargs="+", default=list(STAGES_RUN), choices=list(STAGES_RUN))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(f"{folder}/data", shard_rows=(64, 64), shape=SHAPE)
        for size in arguments.sizes:
            for workers in (w for w in arguments.workers if w <= cores()):
                for stage in arguments.stages:
                    found.append(compare_run(stage, size, folder, workers))
                    print(json.dumps(found[-1]), flush=True)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps({"hardware": describe_hardware(), "runs": found}, indent=1) + "\n")


def show(found: list[dict[str, Any]]) -> None:
    table = Table(title=f"ms a step, batch {BATCH}, {describe_hardware()['device']}, one thread a worker")
    for name in ("run", "workers", "predicted", "measured", "off", "measured CPU", "off", "pace changed by"):
        table.add_column(name, justify="right")
    for row in found:
        cells = [f"{1e3 * row['predicted']:.1f}"]
        cells += [t for m in ("wall", "cpu") for t in (f"{1e3 * row[m]:.1f}", f"{row['predicted'] / row[m] - 1:+.0%}")]
        table.add_row(f"{row['stage']} {row['size']}", str(row["workers"]), *cells, f"{row['off_pace']:.0%}")
    make_console().print(table)
    steady = [row for row in found if row["off_pace"] <= STEADY]
    within = sum(abs(row["predicted"] / row["wall"] - 1) <= 0.2 for row in steady)
    print(f"{within} of {len(steady)} within 20 % by wall time; {len(found) - len(steady)} ran while the pace changed")


if __name__ == "__main__":
    main()
