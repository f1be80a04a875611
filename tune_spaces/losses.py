"""Losses and learning rates: weights and kinds of the adversarial terms, the ratio of updates, and guidance."""

from __future__ import annotations

from tune_spaces.domains import Choice, Range, Space

LOSSES: Space = {
    "steps.gan.generator_weight": Range(1e-3, 1.0, log=True),
    "steps.gan.fake_score_weight": Range(1e-3, 1.0, log=True),
    "steps.gan.kind": Choice(("lsgan", "nonsat", "hinge", "relativistic")),
    "steps.weighting": Choice(("dmd", "edm", "none")),
    "steps.guidance_scale": Range(1.0, 4.0),
    "steps.fake_updates_per_generator_update": Range(3, 8, integer=True),
    "steps.generator_optim.learning_rate": Range(1e-5, 3e-4, log=True),
    "steps.fake_optim.learning_rate": Range(3e-5, 1e-3, log=True),
    "steps.head_optim.learning_rate": Range(1e-4, 5e-3, log=True),
    "layers.self_teacher_weight": Range(1e-2, 1.0, log=True),
    "layers.optim.learning_rate": Range(1e-4, 3e-3, log=True),
    "teacher.optim.learning_rate": Range(1e-4, 3e-3, log=True),
}
