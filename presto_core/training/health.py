"""Health signals of a run, each with the range it is expected in, so that a run says early that it is going wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HealthRange:
    """A range, and what being outside it means."""

    low: float
    high: float
    meaning: str


# Normalised latents have mean 0 and standard deviation 1; least-squares scores aim at 1 (real) and 0 (fake).
STEP_DISTILLATION = {
    "d_real": HealthRange(0.2, 1.5, "the discriminator no longer tells real latents"),
    "d_fake": HealthRange(-0.5, 0.9, "the discriminator no longer tells generated latents"),
    "discriminator_loss": HealthRange(0.02, 2.0, "the discriminator has won (low) or lost control (high)"),
    "dsm_loss": HealthRange(0.0, 2.0, "the fake score does not follow the generator; raise its learning rate"),
    "x0_mean": HealthRange(-0.3, 0.3, "generated latents drift away from the data's mean"),
    "x0_std": HealthRange(0.5, 1.5, "generated latents drift away from the data's spread"),
    "generator_grad_norm": HealthRange(0.0, 100.0, "the generator's gradient explodes"),
}
TEACHER = {
    "dsm_loss": HealthRange(0.0, 1.5, "the loss is above that of a network that predicts nothing"),
    "grad_norm": HealthRange(0.0, 100.0, "the gradient explodes"),
}


def find_out_of_range(metrics: dict[str, float], ranges: dict[str, HealthRange]) -> dict[str, str]:
    """Signals outside their range: name -> one sentence."""
    return {
        name: f"{name} = {metrics[name]:.3g} is outside {rule.low:g} ... {rule.high:g}: {rule.meaning}"
        for name, rule in ranges.items()
        if name in metrics and not rule.low <= metrics[name] <= rule.high
    }
