"""A non-finite loss or gradient stops a run before its step is saved, and the error names it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from presto_core.config.sections import LoopConfig, TeacherConfig
from presto_core.training.divergence import DivergenceError
from presto_core.training.loop import Hooks, train
from presto_core.training.state import Batch
from presto_core.training.teacher import TeacherTraining
from tests.core.test_training import distillation
from tests.support.toy_networks import batches, tiny_dit

LOOP = LoopConfig(log_every=1, checkpoint_every=2)


def teacher() -> TeacherTraining:
    return TeacherTraining(TeacherConfig(), tiny_dit(), sigma_data=1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [distillation, teacher])
def test_non_finite_loss_stops_the_run_before_the_optimiser_moves(make, bad: float):
    algorithm = make()
    before = copy.deepcopy(algorithm.state.state_dict())
    batch = next(batches())
    poisoned = Batch(batch.x0 * bad, batch.cond, batch.cursor)
    message = r"dsm_loss is nan.*rank 0.*sigma 0\.\d+ \.\.\. \d.*total_step 0"
    with pytest.raises(DivergenceError, match=message):
        train(algorithm, iter([poisoned]), seed=0, config=LOOP)
    for name, net in algorithm.state.networks.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, before["networks"][name][key])
    assert algorithm.state.total_step == 0


def test_exploding_gradient_of_a_finite_loss_names_the_gradient():
    algorithm = teacher()
    with torch.no_grad():  # the loss is finite, but the norm of its gradient exceeds the fp32 range
        for p in algorithm.state.networks["teacher"].parameters():
            p.register_hook(lambda grad: grad * 1e38 * 1e38)
    with pytest.raises(DivergenceError, match=r"^grad_norm is (inf|nan)"):
        train(algorithm, batches(), seed=0, config=LOOP)


def test_a_bad_gradient_of_the_head_keeps_the_fake_score_where_it_is_too():
    algorithm = distillation()
    before = copy.deepcopy(algorithm.state.state_dict()["networks"])
    for p in algorithm.state.networks["head"].parameters():
        p.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(DivergenceError, match=r"^head_grad_norm is (inf|nan)"):
        train(algorithm, batches(), seed=0, config=LOOP)
    for name, net in algorithm.state.networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in net.state_dict().items()), name


class OverflowingLoss(TeacherTraining):
    """Teacher training with an extra loss that overflows at step 5 and has no gradient."""

    def update(self, batch: Batch, *, generator: torch.Generator) -> dict[str, Tensor]:
        gan_loss = torch.tensor(1e38) * (10.0 if self.state.total_step == 5 else 1.0)
        return super().update(batch, generator=generator) | {"gan_loss": gan_loss}


def test_loss_without_a_gradient_counts_too_and_the_last_good_checkpoint_is_named():
    algorithm, saved = OverflowingLoss(TeacherConfig(), tiny_dit(), sigma_data=1.0), []
    hooks = Hooks(checkpoint=lambda: saved.append(algorithm.state.total_step))
    with pytest.raises(DivergenceError, match=r"^gan_loss is inf on rank 0.*\(total_step 5\).*step 4"):
        train(algorithm, batches(), seed=0, config=LOOP, hooks=hooks)
    assert saved == [2, 4]


def test_parts_of_a_loss_that_a_batch_has_none_of_are_no_divergence():
    algorithm, rows = TeacherTraining(TeacherConfig(steps=3), tiny_dit(), sigma_data=1.0), []
    one_row = (Batch(b.x0[:1], b.cond.rows(torch.tensor([0])), b.cursor) for b in batches())
    train(algorithm, one_row, seed=0, config=LOOP, hooks=Hooks(log=lambda step, metrics: rows.append(metrics)))
    assert len(rows) == 3
    assert all(sum(name.startswith("dsm_loss/") for name in row) == 1 for row in rows)
