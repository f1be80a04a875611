"""How long a trainer waits for data: real teacher steps of a preset, fed by the real stream from S3.

As a program, the trainer: `python -m tests.bench.data.waiting <preset> <steps>`, told the data set's URI.
"""

from __future__ import annotations

import json
import sys

import torch

from pipelines.cluster.session import ray_session, training_cpus
from pipelines.data.dataset import open_dataset, stream_batches
from pipelines.data.shard_reader import read_with_ray
from pipelines.presets.resolve import PRESETS
from pipelines.stages.train_teacher import make_algorithm
from presto_core.config.loader import load_config
from presto_core.config.schema import TeacherStage
from presto_core.training.loop import Hooks, train
from presto_core.training.parallel import Parallel
from presto_core.training.state import Cursor
from tests.bench.data import made_up
from tests.bench.data.child import Child, reply
from tests.bench.data.finding import Finding

STEPS = 25
BEFORE_EPOCH_ENDS = 12  # steps: the next epoch's first shuffle window must be there in time, too
WANTED = 0.01


def measure(uri: str, *, preset: str, there: bool) -> tuple[list[Finding], list[str]]:
    """Seconds waited against seconds trained; the first step waits for Ray to start and is told separately.

    Args:
        there: the data set was written before.
    """
    if not there:
        write(uri)
    with Child("waiting", preset, str(STEPS)) as child:
        rows = child.ask(uri)
    first, rest = rows[0], rows[1:]
    waits = [row["data_wait_fraction"] * row["step_seconds"] for row in rest]
    seconds = sum(row["step_seconds"] for row in rest)
    finding = Finding(
        f"wait for data, {preset} preset",
        1e3 * sum(waits) / len(rest),
        "ms",
        "a teacher's step",
        1e3 * seconds / len(rest),
        wanted=WANTED,
        bound="at most",
    )
    note = (
        f"wait: {len(rest)} steps across the end of an epoch, longest wait {1e3 * max(waits):.0f} ms; left out is "
        f"the first step, which waits {first['data_wait_fraction'] * first['step_seconds']:.1f} s for Ray's workers"
    )
    return [finding], [note]


def write(uri: str) -> None:
    """A data set of more than one window at the preset's shape."""
    made_up.write([made_up.ParquetCopy(uri, made_up.LAPTOP)], made_up.LAPTOP, shards=72)


def main() -> None:
    preset, steps = sys.argv[1], int(sys.argv[2])
    overrides = [f"teacher.steps={steps}", "loop.log_every=1", f"loop.checkpoint_every={steps}"]
    config = load_config(TeacherStage, preset, overrides, preset_folder=PRESETS)
    torch.set_num_threads(config.cluster.torch_threads)
    batch = config.teacher.global_batch_size
    dataset = open_dataset(json.loads(sys.stdin.readline()))
    logged: list[dict[str, float]] = []
    with ray_session(config.cluster, cpus=training_cpus(config.cluster)):
        algorithm = make_algorithm(config, {}, dataset, Parallel(), None)
        rows = sum(shard.rows for shard in dataset.shards("train"))
        cursor = Cursor(0, (rows // batch - BEFORE_EPOCH_ENDS) * batch)
        batches = stream_batches(dataset, seed=0, cursor=cursor, global_batch_size=batch, reader=read_with_ray)
        hooks = Hooks(log=lambda step, metrics: logged.append(metrics))
        train(algorithm, batches, seed=0, config=config.loop, hooks=hooks)
        reply(logged)
        batches.close()


if __name__ == "__main__":
    main()
