"""What Presto-S costs beyond the networks: one iteration against the bare forwards and backwards it is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from presto_core.config.sections import NetworkConfig, StepsConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.dit import DiT
from presto_core.training.adversarial import no_param_grads
from presto_core.training.state import Batch, Cursor, make_step_rng
from presto_core.training.step_distillation import StepDistillation
from tests.bench.clock import Comparison, alternate

CHANNELS, FRAMES, TEXT_DIM, TOKENS = 64, 130, 384, 40


def measure(network: NetworkConfig, steps: StepsConfig, *, rounds: int) -> list[Comparison]:
    """One generator update with its critic updates, against its parts called bare on the same shapes."""
    torch.manual_seed(0)
    algorithm = StepDistillation(steps, DiT(network, channels=CHANNELS, text_dim=TEXT_DIM), sigma_data=1.0)
    critic_updates = steps.fake_updates_per_generator_update
    batch = example_batch(steps.global_batch_size)

    def iteration() -> None:
        for _ in range(critic_updates + 1):
            rng = make_step_rng(0, total_step=algorithm.state.total_step)
            algorithm.update(batch, generator=rng)
            algorithm.state.total_step += 1

    parts = bare_parts(algorithm, batch)
    times = alternate({"iteration": iteration, **{name: call for name, (_, call) in parts.items()}}, rounds=rounds)
    bare = sum(count * times[name] for name, (count, _) in parts.items())
    against = f"its {critic_updates} x critic and generator forwards and backwards"
    return [Comparison(f"Presto-S iteration, batch {len(batch.x0)}", times["iteration"], against, bare)]


def bare_parts(algorithm: StepDistillation, batch: Batch) -> dict[str, tuple[int, Callable[[], object]]]:
    """Every pass that METHOD section 3 asks of an iteration: name -> (how often, call)."""
    x, cond = batch.x0, batch.cond
    both, cond_both = torch.cat([x, x]), Conditioning.cat([cond, cond])
    sigma, sigma_both = torch.ones(len(x)), torch.ones(2 * len(x))
    generate, fake_score, adversary = algorithm.generate, algorithm.fake_score, algorithm.adversarial_loss

    def critic() -> None:
        with torch.no_grad():
            generate(x, sigma, cond)
        (fake_score(x, sigma, cond).mean() + _scores(algorithm, both, sigma_both, cond_both).mean()).backward()

    def generator() -> None:
        with torch.no_grad():
            algorithm.real_score(x, sigma, cond)
            fake_score(x, sigma, cond)
        generate(x, sigma, cond).mean().backward()

    def adversarial_loss() -> None:
        with no_param_grads(fake_score.net, adversary.head):
            _scores(algorithm, x.clone().requires_grad_(), sigma, cond).mean().backward()

    critic_updates = algorithm.config.fake_updates_per_generator_update
    return {"critic": (critic_updates, critic), "generator": (1, generator), "judged": (1, adversarial_loss)}


def _scores(algorithm: StepDistillation, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
    adversary = algorithm.adversarial_loss
    return adversary.head(adversary.fake_score.extract_features(x, sigma, cond, taps=adversary.tap_blocks))


def example_batch(size: int, frames: int = FRAMES) -> Batch:
    """Noise in the shapes of the demo's latents and captions."""
    cond = Conditioning(
        pooled=torch.randn(size, TEXT_DIM),
        tokens=torch.randn(size, TOKENS, TEXT_DIM),
        mask=torch.ones(size, TOKENS, dtype=torch.bool),
        tempo_bpm=torch.full((size,), 100.0),
        key=torch.zeros(size, dtype=torch.int64),
        keep=torch.ones(size, dtype=torch.bool),
    )
    return Batch(torch.randn(size, CHANNELS, frames), cond, Cursor())
