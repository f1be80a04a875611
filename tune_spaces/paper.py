"""The ablations of the Presto paper and the questions of its reviewers as exact grids."""

from __future__ import annotations

from tune_spaces.domains import Choice, Space

# sigma^train and sigma^inf; Presto paper, figure 1 and its table of the three roles
TRAIN_NOISE = {"kind": "lognormal", "mean": 0.4, "std": 1.5}  # of the shipped teacher
INFERENCE_NOISE = {"kind": "karras", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
TRAIN_OR_INFERENCE = Choice((TRAIN_NOISE, INFERENCE_NOISE))

DISTRIBUTIONS: Space = {
    "steps.p_dmd": TRAIN_OR_INFERENCE,
    "steps.p_dsm": TRAIN_OR_INFERENCE,
    "steps.p_gan": TRAIN_OR_INFERENCE,
}
INPUTS: Space = {"steps.p_gen": Choice((INFERENCE_NOISE, {"kind": "grid", "num_steps": 4}))}
LAYER_PARTS: Space = {
    "layers.mode": Choice(("presto", "ase")),
    "layers.budget_conditioning": Choice((True, False)),
    "layers.self_teacher_weight": Choice((0.1, 0.0)),
}
# reviewers: how sensitive are results to R, to nu at each latent size, and to the seed?
RATIO: Space = {"steps.fake_updates_per_generator_update": Choice((3, 4, 5, 6, 7, 8))}
NU: Space = {
    "steps.gan.generator_weight": Choice((0.001, 0.01, 0.1, 1.0)),
    "steps.gan.weight_mode": Choice(("absolute", "grad_ratio")),
}
NU_BY_LATENT_SIZE: Space = {**NU, "data.crop_frames": Choice((32, 64, 128))}
SEEDS: Space = {"seed": Choice(tuple(range(8)))}
