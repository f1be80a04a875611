"""How often a training iteration makes the host wait for a GPU, counted on a fake one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from pipelines.data.collate import Collate
from pipelines.data.shards import TrainColumns
from presto_core.config.layers import TableBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.sections import LoopConfig, TeacherConfig
from presto_core.device import send
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.divergence import STEPS_PER_CHECK, DivergenceError, StepCheck
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.loop import train
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, Batch, Cursor, make_step_rng
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.support.fake_device import CUDA, HostSyncs, fake_cuda, move_to_cuda
from tests.support.toy_networks import batches, tiny_dit

DEPTH, ITERATION = 4, 6  # five critic updates and one generator update
LOOP = LoopConfig(log_every=10_000, checkpoint_every=10_000)
PARALLEL = Parallel(device=CUDA)
TABLE = LayerBudget.from_distribution(KarrasNoise(), TableBudget(kept=(1, 2, 2, 3, 3)), depth=DEPTH)


def make_network(budget: LayerBudget | None = None) -> DiT:
    network = tiny_dit(depth=DEPTH)
    return move_to_cuda(network.with_budget(budget) if budget else network)


def make_teacher_training() -> Algorithm:
    return TeacherTraining(TeacherConfig(steps=1000), make_network(), parallel=PARALLEL)


def make_layers(**overrides: object) -> Algorithm:
    config = load_config(LayersStage, overrides={f"layers.{name}": value for name, value in overrides.items()}).layers
    return LayerDistillation(config, make_network(), parallel=PARALLEL)


def make_steps(budget: LayerBudget | None = None, **overrides: object) -> Algorithm:
    keys = {"generator_updates": 100, "gan.head_layers": 1, "gan.head_channels": 8} | overrides
    config = load_config(StepsStage, overrides={f"steps.{name}": value for name, value in keys.items()}).steps
    return StepDistillation(config, make_network(), start=make_network(budget), budget=budget, parallel=PARALLEL)


ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "teacher": make_teacher_training,
    "L": make_layers,
    "S": make_steps,
    "S with shared taps": lambda: make_steps(shared_taps=True),
    "LS": lambda: make_steps(TABLE),
    "LS with a rollout": lambda: make_steps(TABLE, generator_input="rollout"),
    "LS with R1 and a relativistic loss": lambda: make_steps(
        TABLE, **{"gan.r1_weight": 1.0, "gan.kind": "relativistic"}
    ),
    "LS guided, at levels of a grid": lambda: make_steps(TABLE, **{"guidance_scale": 3.0, "p_gen.kind": "grid"}),
}


def stream_to_cuda() -> Iterator[Batch]:
    for batch in batches():
        yield Batch(batch.x0.to(CUDA), batch.cond.to(CUDA), batch.cursor)


def run_iterations(make: Callable[[], Algorithm], iterations: int, monkeypatch: pytest.MonkeyPatch) -> HostSyncs:
    """Train for whole iterations on the fake device, and return what waited for it."""
    with fake_cuda(monkeypatch) as host:
        algorithm, stream = make(), list(islice(stream_to_cuda(), iterations * ITERATION))
        algorithm.total_steps = len(stream)
        host.syncs.clear()
        train(algorithm, iter(stream), seed=0, config=LOOP, parallel=PARALLEL)
        assert algorithm.state.total_step == len(stream)
    return host


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_never_waits(name: str, monkeypatch: pytest.MonkeyPatch):
    """Neither reads nor copies: blocks follow from noise levels that the host draws, and norms stay on the device."""
    with fake_cuda(monkeypatch) as host:
        algorithm, stream = ALGORITHMS[name](), list(islice(stream_to_cuda(), ITERATION))
        host.syncs.clear()
        for batch in stream:
            rng = make_step_rng(0, total_step=algorithm.state.total_step, device=CUDA)
            algorithm.update(batch, generator=rng)
            algorithm.state.total_step += 1
    assert not host.syncs
    assert host.backward_passes >= ITERATION


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_loop_waits_at_most_once_per_iteration(name: str, monkeypatch: pytest.MonkeyPatch):
    """All but one of the waits are those of checks, each of several steps; the last one is the row at the end."""
    iterations = 4
    host = run_iterations(ALGORITHMS[name], iterations, monkeypatch)
    assert host.syncs.pop("meter.py:reduce tolist") == 1
    assert set(host.syncs) == {"divergence.py:run tolist"}
    assert host.syncs.total() == iterations * ITERATION / STEPS_PER_CHECK <= iterations


def test_a_batch_reaches_the_device_without_a_wait(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(0)
    rows = TrainColumns(
        latents=draw.normal(size=(3, 4, 8)).astype(np.float16),
        text_pooled=draw.normal(size=(3, 8)).astype(np.float16),
        text_tokens=draw.normal(size=(3, 5, 8)).astype(np.float16),
        text_mask=np.ones((3, 5), dtype=bool),
        tempo_bpm=np.full(3, 100, dtype=np.float32),
        key=np.zeros(3, dtype=np.int8),
    )
    with fake_cuda(monkeypatch) as host:
        collate = Collate({"mean": [0.0] * 4, "std": [1.0] * 4}, CUDA, pad_captions=False)
        host.syncs.clear()
        batch = collate(rows, np.ones(3, dtype=bool), Cursor())
    assert not host.syncs
    assert {batch.x0.device, batch.cond.tokens.device, batch.cond.keep.device} == {CUDA}


def test_waits_that_the_count_must_see(monkeypatch: pytest.MonkeyPatch):
    """Reads, copies without `non_blocking`, and indices on the host; a copy that does not wait is none."""
    with fake_cuda(monkeypatch) as host:
        x = torch.zeros(3, device=CUDA)
        calls: dict[str, Callable[[], object]] = {
            "item": lambda: x.sum().item(),
            "tolist": lambda: x.tolist(),
            "__bool__": lambda: bool(x.sum()),
            "cpu": lambda: x.cpu(),
            "nonzero": lambda: x.nonzero(),
            "copy": lambda: torch.tensor([1.0, 2.0], device=CUDA),
            "copy ": lambda: torch.ones(3).to(CUDA),
            "copy  ": lambda: x[torch.tensor([0, 1])],
        }
        for name, call in calls.items():
            host.syncs.clear()
            call()
            assert host.syncs == {f"elsewhere {name.strip()}": 1}, name
        host.syncs.clear()
        send([0, 1], CUDA), send(torch.ones(3), CUDA), torch.full((), 1.0, device=CUDA)
    assert not host.syncs


def test_a_check_of_several_steps_names_the_first_that_diverged():
    check, cpu = StepCheck(Parallel(), steps_per_check=4), torch.ones(2)
    for step, loss in enumerate([cpu, cpu / 0, cpu * torch.nan, cpu]):
        assert not check.is_due
        check.add(step, {"gan_loss": loss}, {"teacher": torch.full((2,), step / 4)})
    assert check.is_due
    with pytest.raises(DivergenceError, match=r"^gan_loss is inf on rank 0, at noise levels sigma 2\.72 .* step 1$"):
        check.run(False, lambda step: f"step {step}")


def test_a_check_clears_its_steps_and_passes_stop_on():
    check = StepCheck(Parallel(), steps_per_check=2)
    check.add(0, {"dsm_loss": torch.ones(2)}, {})
    assert check.run(True, str)
    assert not check.run(False, str)
