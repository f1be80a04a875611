"""Presto-S against an independent DMD2 iteration in float64: from the same draws, the same losses and weights."""

from __future__ import annotations

import itertools

import pytest
import torch

from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage
from presto_core.training.state import make_step_rng
from presto_core.training.step_distillation import StepDistillation
from tests.bench.dmd2 import Features, PlainDmd2
from tests.support.process_group import double_precision
from tests.support.toy_networks import batches, tiny_dit

ITERATIONS, CRITIC_UPDATES = 2, 2
SETTINGS = {
    "fake_updates_per_generator_update": CRITIC_UPDATES,
    "gan.weight_mode": "absolute",
    # as large as the losses beside them, so that an error in either counts
    "gan.generator_weight": 0.5,
    "gan.fake_score_weight": 0.5,
    "gan.head_layers": 1,
    "gan.head_channels": 8,
    "ema_decay": 0.5,
}


@pytest.mark.parametrize("shared_taps", [False, True])
@double_precision()
def test_losses_and_weights_of_two_iterations_are_equal(shared_taps: bool):
    keys = {"generator_updates": ITERATIONS, "shared_taps": shared_taps} | SETTINGS
    config = load_config(StepsStage, overrides={f"steps.{k}": v for k, v in keys.items()}).steps
    ours = StepDistillation(config, tiny_dit(depth=4), sigma_data=1.0)
    features: Features = "shared" if shared_taps else "fake_score"
    plain = PlainDmd2(config, tiny_dit(depth=4), ours.state.networks["head"], features=features)
    for step, batch in enumerate(itertools.islice(batches(size=8), ours.total_steps)):
        metrics = ours.update(batch, generator=make_step_rng(0, total_step=step))
        ours.state.total_step += 1
        update = plain.update_generator if step % (CRITIC_UPDATES + 1) == CRITIC_UPDATES else plain.update_critic
        for name, value in update(batch, make_step_rng(0, total_step=step)).items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(metrics[name].mean(), value, rtol=1e-9, atol=0, msg=f"{name} at {step}")
    networks = ours.state.networks | {"ema": ours.state.emas["generator"].network}
    pairs = {"fake_score": plain.fake, "head": plain.head, "generator": plain.generator, "ema": plain.ema}
    start = dict(tiny_dit(depth=4).named_parameters())
    for network, other in pairs.items():
        for (name, weight), expected in zip(networks[network].named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(weight.detach(), expected.detach(), rtol=1e-7, atol=1e-12)
            if network in ("fake_score", "generator") and name.startswith("blocks"):
                assert not torch.equal(weight, start[name]), name  # it was trained


def test_the_plain_iteration_with_features_of_the_teacher_leaves_them_alone():
    keys = {"generator_updates": 1} | SETTINGS
    config = load_config(StepsStage, overrides={f"steps.{k}": v for k, v in keys.items()}).steps
    head = StepDistillation(config, tiny_dit(depth=4), sigma_data=1.0).state.networks["head"]
    plain = PlainDmd2(config, tiny_dit(depth=4), head, features="teacher")
    stream, rngs = batches(), (make_step_rng(0, total_step=step) for step in itertools.count())
    plain.iterate(lambda: next(stream), lambda: next(rngs))
    start = list(tiny_dit(depth=4).parameters())
    for net, trained in ((plain.real, False), (plain.fake, True), (plain.generator, True)):
        changed = [not torch.equal(a, b) for a, b in zip(net.parameters(), start, strict=True)]
        assert any(changed) == trained
    assert any(not torch.equal(a, b) for a, b in zip(plain.head.parameters(), head.parameters(), strict=True))
