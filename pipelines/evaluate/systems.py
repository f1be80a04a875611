"""What an evaluation compares: teacher and layer-distilled models by sampler, generators by step count, real music."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines.inference.model import Model, sample_generator, sample_teacher
from pipelines.registry.compatibility import distillation_method
from presto_core.artifacts.manifest import Artifact
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.sampling import BaseSampler, ScheduleConfig, check_levels
from presto_core.errors import UserError
from presto_core.models.model_card import ModelCard
from presto_core.samplers.schedule import list_ode_levels

Treatment = Literal["", "original", "codec", "noise", "shuffle"]


@dataclass(frozen=True)
class EvaluatedSystem:
    """One row of the results table.

    Attributes:
        name: e.g. `teacher dpmpp_2m 40`, `L dpmpp_2m 40`, `LS 4`.
        role: `teacher`, `layers`, `generator`, `folder`, or `real` music.
        steps: sampling steps; 0 for real music.
        nfe: network evaluations per sample.
        model: which of the evaluation's inputs it samples.
        label: what its curve in a plot is called: the name without steps.
        split: whose prompts it follows, or whose clips it is.
        treatment: what is done to real music (fitness of the metrics): nothing, so that it is the `original`
            recording; or, after the codec, another pass of the `codec`, `noise`, or a `shuffle` of its frames.
    """

    name: str
    role: str
    steps: int
    nfe: int
    model: str = "teacher"
    label: str = ""
    sampler: str = "ping_pong"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    split: str = ""
    treatment: Treatment = ""

    @classmethod
    def from_json(cls, text: str) -> EvaluatedSystem:
        """Read what `json.dumps(asdict(system))` wrote: JSON has no tuples."""
        fields = json.loads(text)
        interval = fields["guidance_interval"]
        return cls(**fields | {"guidance_interval": tuple(interval) if interval else None})

    def on_split(self, split: str) -> EvaluatedSystem:
        """The same system on prompts of another split."""
        return replace(self, split=split)

    def sample(
        self, model: Model, noise: Tensor, cond: Any, *, schedule: ScheduleConfig | None, generator: torch.Generator
    ) -> Tensor:
        """Latents [B, C, T] of any system but real music."""
        if self.role == "generator":
            return sample_generator(model, noise, cond, steps=self.steps, schedule=schedule, generator=generator)
        sampler_config = BaseSampler.model_validate(
            {
                "sampler": self.sampler,
                "steps": self.steps,
                "guidance_scale": self.guidance_scale,
                "guidance_interval": self.guidance_interval,
                "guidance_rescale": self.guidance_rescale,
            }
        )
        return sample_teacher(model, noise, cond, sampler=sampler_config, schedule=schedule)


REAL, REAL_TRAIN = "real music", "real music, train"
ORIGINAL, ORIGINAL_TRAIN = "original", "original, train"


def list_real_systems(test_split: str, *, originals: bool = False) -> list[EvaluatedSystem]:
    """Real music: the reference, training clips (the floor), and training clips made worse in known ways.

    All pass through the codec, as what models generate does, but for the original recordings, if these are at hand.
    """
    recordings = [(ORIGINAL, test_split), (ORIGINAL_TRAIN, "train")] if originals else []
    treatments: dict[str, Treatment] = {"second codec pass": "codec", "noise": "noise", "shuffled frames": "shuffle"}
    return [
        EvaluatedSystem(REAL, "real", 0, 0, sampler="none", split=test_split),
        EvaluatedSystem(REAL_TRAIN, "real", 0, 0, sampler="none", split="train"),
        *(
            EvaluatedSystem(f"{REAL_TRAIN}, {name}", "real", 0, 0, sampler="none", split="train", treatment=treatment)
            for name, treatment in treatments.items()
        ),
        *(
            EvaluatedSystem(name, "real", 0, 0, sampler="none", split=split, treatment="original")
            for name, split in recordings
        ),
    ]


def list_compared_systems(config: EvaluateConfig, models: dict[str, Artifact]) -> list[EvaluatedSystem]:
    """The teacher's samplers (the first is the reference for speed), layer-distilled models, then generators.

    Args:
        models: the evaluation's inputs by role, without the data set.
    """

    def sample_by(how: BaseSampler, method: str, kind: str, role: str) -> EvaluatedSystem:
        return make_sampled_system(method, kind, role, how, count_evaluations(how, models[role], config.schedule))

    teacher_systems = [sample_by(how, "teacher", "teacher", "teacher") for how in config.base]
    layer_systems, generator_systems = [], []
    for role, label in make_method_labels(models).items():
        if models[role].kind == "layers":
            layer_systems += [sample_by(how, label, "layers", role) for how in config.layers]
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


def count_evaluations(how: BaseSampler, model: Artifact, schedule: ScheduleConfig | None) -> int:
    """Network evaluations per sample with the noise levels given, or else the model's own.

    Raises:
        UserError: guidance acts at none of these levels.
    """
    if how.guidance_interval is None:
        return how.nfe
    levels = schedule or ModelCard(**model.manifest["model"]).default_schedule
    sigmas = list_ode_levels(how.steps, levels).tolist()
    try:
        check_levels(how.guidance_interval, sigmas)
    except ValueError as error:
        raise UserError(f"{how.sampler} with {how.steps} steps: {error}") from None
    return how.count_evaluations(sigmas)


def make_sampled_system(method: str, kind: str, role: str, how: BaseSampler, nfe: int) -> EvaluatedSystem:
    """The system of a teacher or layer-distilled model that the table calls `method`."""
    label = f"{method} {how.sampler}"
    return EvaluatedSystem(
        f"{label} {how.steps}{how.guidance_label}",
        kind,
        how.steps,
        nfe,
        role,
        label,
        how.sampler,
        how.guidance_scale,
        how.guidance_interval,
        how.guidance_rescale,
    )
