"""A sweep small enough for tests: random latents, a teacher of a few thousand weights, distances on the latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.stages import train_teacher
from pipelines.sweep.plan import SweepPlan, make_plan
from tests.pipelines.test_training_stages import teacher_config
from tests.support.synthetic_dataset import make_dataset

UPDATES = 4
SETTINGS = {
    "steps.generator_updates": UPDATES,
    "steps.global_batch_size": 4,
    "steps.fake_updates_per_generator_update": 1,
    "steps.gan.head_layers": 1,
    "loop.log_every": 2,
    "loop.checkpoint_every": 2,
    "cluster.num_workers": 0,
    "cluster.cpus_per_worker": 0.9,
    "validation.every": 1,
    "validation.samples": 12,
    "validation.embedding": "latents",
    "validation.backlog": 0,
    "sweep.repeats": 2,
}


@dataclass(frozen=True)
class SweepInputs:
    """A data set and a teacher to sweep on."""

    root: str
    dataset: str
    teacher: str

    def args(self, **settings: object) -> list[str]:
        keys = SETTINGS | {"storage.root": self.root, "inputs.dataset": self.dataset, "inputs.teacher": self.teacher}
        return [f"{key}={value}" for key, value in (keys | settings).items()]

    def plan(self, **settings: object) -> SweepPlan:
        return make_plan(self.args(**settings))


def make_sweep_inputs(folder: Path, *, root: str = "", dataset: str = "") -> SweepInputs:
    """Make the data set and train a teacher of two blocks."""
    root, data = root or str(folder / "store"), make_dataset(dataset or str(folder / "data")).uri
    teacher = train_teacher.run(teacher_config(root, data))
    return SweepInputs(root, data, teacher.uri)
