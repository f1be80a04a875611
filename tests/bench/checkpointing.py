"""What checkpoints cost: steps of which one in some saves the whole state, against steps that save nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pipelines.storage.filesystem import open_folder
from presto_core.config.sections import LoopConfig, NetworkConfig, TeacherConfig
from presto_core.networks.dit import DiT
from presto_core.training.async_checkpoint import CheckpointWriter
from presto_core.training.loop import Hooks, train
from presto_core.training.state import Batch
from presto_core.training.teacher import TeacherTraining
from tests.bench.clock import Comparison, alternate
from tests.bench.iteration import CHANNELS, TEXT_DIM, example_batch

EVERY = 20  # steps between two checkpoints; a run has more, and so costs less


def measure(network: NetworkConfig, teacher: TeacherConfig, *, rounds: int) -> list[Comparison]:
    """`EVERY` steps of the loop with a save after the first of them, which has to be done when they are."""
    torch.manual_seed(0)
    algorithm = TeacherTraining(teacher, DiT(network, channels=CHANNELS, text_dim=TEXT_DIM), sigma_data=1.0)
    state, batch = algorithm.state, example_batch(teacher.global_batch_size)
    state.total_step = EVERY - 1
    with (
        TemporaryDirectory(dir=Path.cwd()) as folder,
        CheckpointWriter(open_folder(folder), last_saved_step=0, keep=2, every=0) as writer,
    ):

        def save() -> None:
            if state.total_step % EVERY == 0:  # not at the end, where the loop saves too
                writer.save(state.state_dict())

        def run_with_save() -> None:
            _steps(algorithm, repeat(batch), Hooks(checkpoint=save))
            writer.finish()

        def run_without_save() -> None:
            _steps(algorithm, repeat(batch), Hooks())

        times = alternate({"saving": run_with_save, "bare": run_without_save}, rounds=rounds)
    megabytes = sum(t.numel() * t.element_size() for net in state.networks.values() for t in net.parameters()) / 2**20
    what = f"{EVERY} steps, batch {len(batch.x0)}, one saves 4 x {megabytes:.0f} MiB"
    return [Comparison(what, times["saving"], "the same steps without", times["bare"])]


def _steps(algorithm: TeacherTraining, batches: Iterator[Batch], hooks: Hooks) -> None:
    algorithm.total_steps = algorithm.state.total_step + EVERY
    train(algorithm, batches, seed=0, config=LoopConfig(log_every=EVERY, checkpoint_every=EVERY), hooks=hooks)
