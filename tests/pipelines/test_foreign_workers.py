"""Imported teachers on several workers: replicated, sharded and compiled networks equal one worker's, and resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from pipelines.train.parallel import make_single_process
from presto_core.artifacts.folder import Folder
from presto_core.config.layers import TableBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import KarrasNoise
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.sections import LoopConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.preconditions import read_precondition
from presto_core.models.teacher_folder import read_teacher_folder
from presto_core.models.teacher_import import load_network
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.checkpoint import load_checkpoint
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, Batch, Cursor
from presto_core.training.step_distillation import StepDistillation
from tests.support.checkpoints import save_checkpoint
from tests.support.process_group import SHARDED, difference, double_precision, join_group, run, run_in_processes
from tests.support.tiny_teachers import (
    CHANNELS,
    FRAMES,
    TEXT_DIM,
    TOKENS,
    write_ace_step,
    write_longcat_audio,
    write_stable_audio,
    write_stable_audio_3,
)

WRITERS: dict[str, Callable[[Path], Path]] = {
    "stable-audio-open": write_stable_audio,
    "stable-audio-3": write_stable_audio_3,
    "ace-step": write_ace_step,
    "longcat-audio": write_longcat_audio,
}
RATE_HZ = 8000
# of clips of FRAMES latents; those of Stable Audio Open have one length, which its settings have
SECONDS: dict[str, float | None] = {
    "stable-audio-open": None,
    "stable-audio-3": FRAMES * 16 / RATE_HZ,
    "ace-step": FRAMES * 1024 / RATE_HZ,
    "longcat-audio": FRAMES * 16 / RATE_HZ,
}
# Adam divides the embedding of the budget, which starts at zero, by gradients near rounding; ACE-Step computes the sine
# and cosine of the time in fp32, in any precision
TOLERANCES = dict.fromkeys(WRITERS, 1e-6) | {"ace-step": 1e-5}
KEPT = (2, 2, 3, 3, 4)
Results = dict[str, dict[str, Tensor]]


def make_batches(*, size: int, cursor: Cursor | None = None) -> Iterator[Batch]:
    """Yield an endless stream whose n-th batch depends only on n."""
    row = (cursor or Cursor()).row
    while True:
        rng = torch.Generator().manual_seed(row)
        row += size
        cond = Conditioning(
            torch.randn(size, TEXT_DIM, generator=rng), torch.randn(size, TOKENS, TEXT_DIM, generator=rng),
            torch.arange(TOKENS)[None] < torch.randint(1, TOKENS + 1, (size, 1), generator=rng),
            torch.full((size,), torch.nan), torch.full((size,), UNKNOWN_KEY),
            torch.arange(size) % 4 > 0,  # a row of four without its caption
            torch.tensor([[0.0, 1.0]]).repeat(size, 1),
        )  # fmt: skip
        yield Batch(torch.randn(size, CHANNELS, FRAMES, generator=rng), cond, Cursor(0, row))


def make_algorithm(kind: str, folder: Path, parallel: Parallel) -> Algorithm:
    """Return L, LS, or LS with adapters, of a teacher's folder."""
    torch.manual_seed(0)  # of the discriminator's head
    source = read_teacher_folder(folder, seconds=SECONDS[folder.name])
    network, precondition = load_network(source), read_precondition(source.precondition)
    network = network.to(torch.get_default_dtype())
    if kind == "L":
        keys = {"layers.steps": 2, "layers.budget.kind": "table", "layers.budget.kept": KEPT}
        layers = load_config(LayersStage, overrides=keys).layers
        return LayerDistillation(layers, network, precondition=precondition, parallel=parallel)
    low, high = source.sigma_range
    noise = KarrasNoise(sigma_min=low, sigma_max=high, rho=7.0)
    budget = LayerBudget.from_distribution(noise, TableBudget(kept=KEPT), depth=network.depth)
    keys = {
        "generator_updates": 2, "fake_updates_per_generator_update": 1, "guidance_scale": 3, "gan.head_layers": 1,
        "gan.head_channels": 16, "lora.rank": 2 if kind == "LS, adapters" else 0,
    }  # fmt: skip
    steps = load_config(StepsStage, overrides={f"steps.{name}": value for name, value in keys.items()}).steps
    return StepDistillation(
        steps, network, start=network.with_budget(budget), budget=budget, precondition=precondition, parallel=parallel
    )


KINDS = ("L", "LS", "LS, adapters")


def train_all(root: str, parallel: Parallel) -> Results:
    with double_precision():
        return {
            f"{name}: {kind}": run(make_algorithm(kind, Path(root) / name, parallel), parallel, stream=make_batches)
            for name in WRITERS
            for kind in KINDS
        }


def train_as_member(root: str) -> dict[str, Results]:
    """Train everything as one of the workers, replicated and, but for adapters, sharded."""
    return {"replicated": train_all(root, join_group()), "sharded": train_all(root, join_group(SHARDED))}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of random teachers of all families."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(root: Path) -> Results:
    return train_all(str(root), make_single_process(LoopConfig()))


@cache
def run_two(root: Path) -> dict[str, Results]:
    """Return the results of rank 0 of two."""
    return run_in_processes(2, train_as_member, root / "two", str(root))[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_two_workers_train_an_imported_teacher_as_one_does(
    placement: str, name: str, kind: str, root: Path, alone: Results
):
    case = f"{name}: {kind}"
    assert difference(alone[case], run_two(root)[placement][case]) < TOLERANCES[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITERS)
def test_a_stopped_run_goes_on_with_the_same_bits(name: str, kind: str, root: Path, tmp_path: Path):
    parallel, folder = make_single_process(LoopConfig()), Folder(LocalFileSystem(), str(tmp_path), str(tmp_path))
    whole = run(make_algorithm(kind, root / name, parallel), parallel, stream=make_batches)
    first, second = (make_algorithm(kind, root / name, parallel) for _ in range(2))
    first.total_steps = 1
    run(first, parallel, stream=make_batches)
    save_checkpoint(folder, first.state, keep=1)
    assert load_checkpoint(folder, second.state)
    later = run(second, parallel, stream=make_batches)
    assert later.keys() == {key for key in whole if not key.startswith("step 1:")}
    assert not [key for key in later if not torch.equal(later[key], whole[key])]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_compiled_blocks_train_an_imported_teacher_alike(name: str, root: Path):
    plain, compiled = (
        run(make_algorithm("L", root / name, parallel), parallel, stream=make_batches)
        for parallel in (make_single_process(LoopConfig()), make_single_process(LoopConfig(compile=True)))
    )
    # fused kernels round otherwise, and Adam's first steps are the sign of a gradient, however small
    metrics = [key for key in plain if key.startswith("step 1:")]
    assert difference({k: plain[k] for k in metrics}, {k: compiled[k] for k in metrics}) < 1e-3
