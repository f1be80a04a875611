"""Health signals of a run with their expected ranges, to warn early that a run is going wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HealthRange:
    """An expected range, and the meaning of a value outside it."""

    low: float
    high: float
    meaning: str


# normalised latents have mean 0 and standard deviation 1; least-squares scores have targets 1 (real) and 0 (fake)
STEP_DISTILLATION = {
    "d_real": HealthRange(0.2, 1.5, "the discriminator no longer recognises real latents"),
    "d_fake": HealthRange(-0.5, 0.9, "the discriminator no longer recognises generated latents"),
    "discriminator_loss": HealthRange(0.02, 2.0, "the discriminator dominates (low) or diverges (high)"),
    "dsm_loss": HealthRange(0.0, 2.0, "the fake score does not follow the generator; raise its learning rate"),
    "x0_mean": HealthRange(-0.3, 0.3, "generated latents drift away from the data's mean"),
    "x0_std": HealthRange(0.5, 1.5, "generated latents drift away from the data's standard deviation"),
    "generator_grad_norm": HealthRange(0.0, 100.0, "the generator's gradient explodes"),
}
TEACHER = {
    "dsm_loss": HealthRange(0.0, 1.5, "the loss is above that of a network with zero output"),
    "grad_norm": HealthRange(0.0, 100.0, "the gradient explodes"),
}


def find_out_of_range(metrics: dict[str, float], ranges: dict[str, HealthRange]) -> dict[str, str]:
    """Return the signals outside their range: name -> message."""
    return {
        name: f"{name} = {metrics[name]:.3g} is outside {rule.low:g} ... {rule.high:g}: {rule.meaning}"
        for name, rule in ranges.items()
        if name in metrics and not rule.low <= metrics[name] <= rule.high
    }
