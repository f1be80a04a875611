"""The settings that step distillation depends on most: adversarial weight, noise per role, R, rates and guidance."""

from __future__ import annotations

from tune_spaces.domains import Choice, Conditional, Range, Space

# sigma^train of latents with sigma_data = 1 (METHOD section 1), EDM's for 0.5, and sigma^inf
TRAIN_NOISE = {"kind": "lognormal", "mean": 0.4, "std": 1.5}
NARROW_TRAIN_NOISE = {"kind": "lognormal", "mean": -0.4, "std": 1.0}
INFERENCE_NOISE = {"kind": "karras", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
NOISE = Choice((TRAIN_NOISE, NARROW_TRAIN_NOISE, INFERENCE_NOISE))

# The number of updates is not among them: rates are constant, so that a trial's curve shows the result of fewer updates
DISTILLATION: Space = {
    # in gan.weight_mode=grad_ratio, the default: 0.01 is 1 % of DMD's, with which the discriminator hardly acts
    "steps.gan.generator_weight": Range(0.003, 3.0, log=True),
    "steps.gan.fake_score_weight": Range(0.003, 0.3, log=True),
    "steps.p_gen": Conditional({"karras": {"rho": Choice((3.0, 5.0, 7.0, 9.0))}}),
    "steps.p_dmd": NOISE,
    "steps.p_dsm": NOISE,
    "steps.p_gan": NOISE,
    "steps.fake_updates_per_generator_update": Choice((1, 2, 5)),
    "steps.guidance_scale": Choice((1.0, 1.5, 2.0)),
    "steps.generator_optim.learning_rate": Range(1e-5, 3e-4, log=True),
    "steps.fake_optim.learning_rate": Range(5e-5, 1e-3, log=True),
    "steps.head_optim.learning_rate": Range(3e-4, 5e-3, log=True),
}
