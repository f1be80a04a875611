"""Updates and the loop: which networks change in which step, exact resume, learning rates and moving averages."""

import itertools

import pytest
import torch

from presto_core.artifacts.folder import Folder
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import StepsStage
from presto_core.config.sections import LoopConfig, OptimConfig, StepsConfig, TeacherConfig
from presto_core.losses.dmd import dmd_gradient
from presto_core.training import optim
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.ema import Ema
from presto_core.training.gradient_accumulation import MicroBatch, split_micro_batches
from presto_core.training.loop import Hooks, train
from presto_core.training.optim import learning_rate
from presto_core.training.parallel import SINGLE_PROCESS
from presto_core.training.state import make_step_rng
from presto_core.training.step_distillation import Phase, StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.support.checkpoints import is_time, save_checkpoint
from tests.support.toy_networks import batches, tiny_dit

LOOP = LoopConfig(log_every=1, checkpoint_every=1000)


def distillation(**overrides: object) -> StepDistillation:
    keys = {"generator_updates": 4, "guidance_scale": 2.0, "gan.head_layers": 1, "gan.head_channels": 8} | overrides
    config = load_config(StepsStage, overrides={f"steps.{k}": v for k, v in keys.items()}).steps
    return StepDistillation(config, tiny_dit(), sigma_data=1.0)


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def are_equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run(algorithm, steps: int) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    total, algorithm.total_steps = algorithm.total_steps, steps
    stream = batches(cursor=algorithm.state.cursor)
    train(algorithm, stream, seed=0, config=LOOP, hooks=Hooks(log=lambda step, m: rows.append(m)))
    algorithm.total_steps = total
    return rows


def test_the_gradient_at_the_generators_output_is_that_of_the_dmd_loss():
    """g / numel, computed directly, against autograd of 1/2 mean|x0 - sg(x0 - g)|^2 in float64."""
    algorithm, batch = distillation(), next(batches())

    def draw() -> MicroBatch:
        return split_micro_batches(batch, torch.Generator().manual_seed(3), SINGLE_PROCESS)[0]

    x0 = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1))
    gradient, _, metrics = algorithm._output_gradients(x0, draw())

    part = draw()
    sigma = part.row_rng.sample_sigma(algorithm.p_dmd)
    x_t = part.row_rng.add_noise(x0, sigma)
    with torch.no_grad():
        real, fake = (net(x_t, sigma, batch.cond) for net in (algorithm.real_score, algorithm.fake_score))
    g = dmd_gradient(x0, real, fake, sigma=sigma, precondition=1.0, weighting="dmd").double()
    leaf = x0.double().requires_grad_()
    loss = (leaf - (x0 - g).detach()).square().mean() / 2
    loss.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(metrics["dmd_loss"][0].double(), loss.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ratio", [1, 5])
def test_five_critic_steps_then_one_generator_step(ratio: int):
    algorithm = distillation(fake_updates_per_generator_update=ratio)
    phases = []
    for batch in itertools.islice(batches(), algorithm.total_steps):
        phases.append(algorithm.phase)
        algorithm.update(batch, generator=make_step_rng(0, total_step=algorithm.state.total_step))
        algorithm.state.total_step += 1
    assert phases == ([Phase.CRITIC] * ratio + [Phase.GENERATOR]) * 4
    assert algorithm.state.generator_step == 4


def test_critic_steps_leave_generator_and_ema_alone():
    algorithm = distillation()
    before = {name: weights(net) for name, net in algorithm.state.networks.items()}
    ema = weights(algorithm.state.emas["generator"].network)
    run(algorithm, 5)
    after = algorithm.state.networks
    assert are_equal(before["generator"], weights(after["generator"]))
    assert are_equal(ema, weights(algorithm.state.emas["generator"].network))
    assert not are_equal(before["fake_score"], weights(after["fake_score"]))
    assert not are_equal(before["head"], weights(after["head"]))


@pytest.mark.parametrize("kind", ["lsgan", "relativistic"])
def test_generator_step_leaves_critics_alone(kind: str):
    algorithm = distillation(**{"gan.kind": kind})
    run(algorithm, 5)
    before = {name: weights(net) for name, net in algorithm.state.networks.items()}
    ema = weights(algorithm.state.emas["generator"].network)
    run(algorithm, 6)
    after = algorithm.state.networks
    assert are_equal(before["fake_score"], weights(after["fake_score"]))
    assert are_equal(before["head"], weights(after["head"]))
    assert not are_equal(before["generator"], weights(after["generator"]))
    assert not are_equal(ema, weights(algorithm.state.emas["generator"].network))
    assert all(p.requires_grad and p.grad is None for p in after["fake_score"].parameters())


def test_real_score_is_frozen_and_copies_are_trained():
    teacher = tiny_dit().requires_grad_(False)
    before = weights(teacher)
    algorithm = StepDistillation(StepsConfig(generator_updates=2), teacher, sigma_data=1.0)
    run(algorithm, 12)
    assert are_equal(before, weights(teacher))
    assert not are_equal(before, weights(algorithm.state.networks["generator"]))


def test_networks_start_as_copies_of_the_teacher():
    algorithm, teacher = distillation(), weights(tiny_dit())
    for name in ("generator", "fake_score"):
        assert are_equal(teacher, weights(algorithm.state.networks[name]))


def test_adversarial_term_waits_for_its_warm_up():
    algorithm = distillation(**{"gan.warmup_updates": 2})
    rows = run(algorithm, 24)
    assert ["gan_loss" in rows[i] for i in (5, 11, 17, 23)] == [False, False, True, True]


def test_without_adversarial_weight_no_discriminator_work_is_done():
    algorithm = distillation(**{"gan.generator_weight": 0.0})
    head = weights(algorithm.state.networks["head"])
    rows = run(algorithm, 6)
    assert all("d_real" not in row and "gan_loss" not in row for row in rows)
    assert are_equal(head, weights(algorithm.state.networks["head"]))


def test_gradient_ratio_holds_at_the_generator_output():
    algorithm = distillation(**{"gan.generator_weight": 0.3, "gan.weight_mode": "grad_ratio"})
    row = run(algorithm, 6)[-1]
    assert row["gan_weight"] * row["gan_grad_norm"] == pytest.approx(0.3 * row["dmd_grad_norm"], rel=1e-4)


def test_shared_taps_need_one_distribution():
    with pytest.raises(ConfigError, match="p_dmd, p_dsm and p_gan"):
        distillation(**{"shared_taps": True, "p_gan.mean": 0.5})


def test_absolute_weight_scales_the_loss():
    row = run(distillation(**{"gan.generator_weight": 0.02, "gan.weight_mode": "absolute"}), 6)[-1]
    assert row["gan_weight"] == pytest.approx(0.02)


def test_generator_gradient_equals_autograd_of_the_written_loss():
    """The two-stage backward through x0 equals differentiating L_DMD + nu L_G directly."""
    algorithm = distillation(**{"gan.weight_mode": "absolute", "gan.generator_weight": 0.1})
    run(algorithm, 5)
    batch = next(batches())
    (part,) = split_micro_batches(batch, make_step_rng(0, total_step=9), SINGLE_PROCESS)
    x_in, sigma = algorithm._generator_input(part)
    x0 = algorithm.generate(x_in, sigma, batch.cond)
    dmd, gan, _ = algorithm._output_gradients(x0.detach(), part)
    assert gan is not None
    net = algorithm.state.networks["generator"]
    two_stage = torch.autograd.grad(x0, list(net.parameters()), dmd + 0.1 * gan, retain_graph=True)
    g = dmd * dmd.numel()  # L_DMD's gradient is g / n
    written = 0.5 * (x0 - (x0 - g).detach()).square().mean() + (0.1 * gan * x0).sum()
    direct = torch.autograd.grad(written, list(net.parameters()))
    for a, b in zip(two_stage, direct, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_rollout_inputs_follow_the_generators_own_trajectory():
    algorithm = distillation(generator_input="rollout")
    batch, levels = next(batches()), set()
    for step in range(40):
        (part,) = split_micro_batches(batch, make_step_rng(0, total_step=step), SINGLE_PROCESS)
        x, sigma = algorithm._generator_input(part)
        levels.add(round(float(sigma[0]), 3))
        assert not x.requires_grad
        assert x.shape == batch.x0.shape
    assert len(levels) == 4  # every input of four-step sampling
    assert max(levels) == 80.0


@pytest.mark.parametrize(
    "make",
    [
        distillation,
        lambda: distillation(shared_taps=True),
        lambda: TeacherTraining(TeacherConfig(), tiny_dit(), sigma_data=1.0),
    ],
)
@pytest.mark.parametrize("killed_at", [3, 6, 7])
def test_resumed_run_ends_with_the_same_bits(make, killed_at: int, tmp_path):
    whole = make()
    rows = run(whole, 12)
    first, folder = make(), local_folder(tmp_path)
    rows_first = run(first, killed_at)
    save_checkpoint(folder, first.state, keep=1)
    second = make()
    assert load_checkpoint(folder, second.state)
    rows_second = run(second, 12)
    for name, net in whole.state.networks.items():
        assert are_equal(weights(net), weights(second.state.networks[name])), name
    for name, ema in whole.state.emas.items():
        assert are_equal(weights(ema.network), weights(second.state.emas[name].network)), name
    assert drop_times(rows) == drop_times(rows_first + rows_second)


def local_folder(path) -> Folder:
    from pyarrow.fs import LocalFileSystem

    return Folder(LocalFileSystem(), str(path), str(path))


def drop_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not is_time(k)} for row in rows]


def test_step_generators_differ_by_seed_and_step():
    draws = {
        float(torch.rand(1, generator=make_step_rng(seed, total_step=step)))
        for seed, step in itertools.product(range(3), range(9))
    }
    assert len(draws) == 27


def test_learning_rate_schedule():
    config = OptimConfig(learning_rate=1.0, warmup_steps=4, decay="cosine")
    rates = [learning_rate(config, update=u, total_updates=104) for u in (0, 3, 4, 54, 104)]
    assert rates == pytest.approx([0.2, 0.8, 1.0, 0.525, 0.05])


def test_clipping_reports_the_norm_before_it():
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
    parameter.grad = torch.full((4,), 3.0)
    config = OptimConfig(learning_rate=1.0, max_grad_norm=1.0)
    assert optim.step({"x": (optimizer, config)}, update=0, total_updates=1)["x"].item() == pytest.approx(6.0)
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.5))


def test_ema_in_closed_form():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    ema = Ema(net, decay=0.3)
    torch.nn.init.ones_(net.weight)
    ema.update(net)  # d = 1/10
    ema.update(net)  # d = 2/11
    assert float(ema.network.get_parameter("weight")) == pytest.approx(1 - 0.1 * 2 / 11)
    for _ in range(50):
        ema.update(net)
    assert ema.updates == 52


def test_taps_beyond_the_network_are_refused():
    with pytest.raises(ValueError, match=r"blocks \[7\].*0 to 2"):
        distillation(**{"gan.taps": [1, 7]})


def test_critic_and_generator_steps_are_timed_apart():
    """The weighted mean of both kinds is at most the mean of all steps."""
    algorithm, rows = distillation(), []
    hooks = Hooks(log=lambda step, metrics: rows.append(metrics))
    ratio = algorithm.config.fake_updates_per_generator_update
    loop = LoopConfig(log_every=ratio + 1, checkpoint_every=1000)
    train(algorithm, batches(cursor=algorithm.state.cursor), seed=0, config=loop, hooks=hooks)
    for row in rows:
        critic, generator = row["critic_step_seconds"], row["generator_step_seconds"]
        assert critic > 0
        assert generator > 0
        assert ratio * critic + generator <= (ratio + 1) * row["step_seconds"]
