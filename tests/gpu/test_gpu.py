"""What only a GPU can show: the same bits twice, the CPU's audio within rounding, and training steps of each stage."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from pipelines.inference.batch import ClipRequest, sample_latents
from pipelines.inference.generator import load_generator
from presto_core.audio.load_codec import load_codec
from presto_core.config.layers import PrestoLBudget
from presto_core.config.sections import LayersConfig, LoopConfig, StepsConfig, TeacherConfig
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.loop import train
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, Batch
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.support.toy_networks import batches, tiny_dit

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["presto-tiny-teacher", "presto-tiny-l", "presto-tiny-s", "presto-tiny-ls"])
def test_a_seed_gives_the_same_bits_twice_and_all_parts_are_on_the_gpu(name: str):
    generator = load_generator(name, device="cuda")
    first, second = (generator.generate("solo piano", steps=4, seed=1)[0] for _ in range(2))
    assert (first.audio == second.audio).all()
    parts = (generator.model.codec, generator.model.text_encoder)
    assert {part.device for part in parts} == {generator.model.device} == {CUDA}


def test_the_mel_codec_decodes_as_on_the_cpu():
    latents = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found = (load_codec("mel_pca", device=device).decode(latents) for device in ("cpu", "cuda"))
    assert (found.cpu() - expected).std() < 0.02 * expected.std()


@pytest.mark.parametrize(("autocast", "tolerance"), [("none", 1e-3), ("bf16", 0.05)])
@pytest.mark.parametrize("compiled", [False, True])
def test_each_way_of_computing_gives_the_latents_of_the_plain_one(
    autocast: Literal["none", "bf16"], tolerance: float, compiled: bool
):
    plain, other = (
        load_generator("presto-tiny-ls", device="cuda"),
        load_generator("presto-tiny-ls", device="cuda", autocast=autocast, compiled=compiled),
    )
    requests = [ClipRequest("solo piano", seed=seed) for seed in (0, 1)]
    for request in (*requests, *requests):  # graphs are made, then used again
        words = [request.check(plain.model)]
        expected, found = (sample_latents(generator.model, [request], words) for generator in (plain, other))
        assert (found - expected).std() < tolerance * expected.std()


def make_algorithm(name: str, parallel: Parallel) -> Algorithm:
    teacher = tiny_dit().to(CUDA)
    if name == "teacher":
        return TeacherTraining(TeacherConfig(steps=20), teacher, sigma_data=1.0, parallel=parallel)
    if name == "layers":
        config = LayersConfig(steps=20, budget=PrestoLBudget())
        return LayerDistillation(config, teacher, sigma_data=1.0, parallel=parallel)
    steps = StepsConfig(generator_updates=4, fake_updates_per_generator_update=4)
    return StepDistillation(steps, teacher, sigma_data=1.0, parallel=parallel)


@pytest.mark.parametrize("name", ["teacher", "layers", "steps"])
def test_twenty_steps_of_each_stage_move_the_weights_and_stay_finite(name: str):
    parallel = Parallel(device=CUDA)
    algorithm = make_algorithm(name, parallel)
    before = [p.detach().clone() for net in algorithm.state.networks.values() for p in net.parameters()]
    stream = (Batch(b.x0.to(CUDA), b.cond.to(CUDA), b.cursor) for b in batches())
    train(algorithm, stream, seed=0, config=LoopConfig(), parallel=parallel)
    after = [p.detach() for net in algorithm.state.networks.values() for p in net.parameters()]
    assert algorithm.state.total_step == 20
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
