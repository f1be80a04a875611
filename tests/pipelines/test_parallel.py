"""Workers and micro-batches change nothing but rounding: two ranks against one on the joined batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.train.parallel import make_single_process
from presto_core.config.noise import LogNormalNoise
from presto_core.config.sections import LoopConfig
from presto_core.training.parallel import Parallel
from presto_core.training.row_rng import RowRng
from presto_core.training.state import make_step_rng
from tests.support.process_group import ALGORITHMS, difference, double_precision, join_group, result, run_in_processes

FP64 = 1e-10  # of a tensor's largest number; measured below 2e-12
Results = dict[str, dict[str, Tensor]]


def run_every_algorithm(parallel: Parallel, micro_batch_size: int) -> Results:
    with double_precision():
        return {name: result(name, parallel, micro_batch_size=micro_batch_size) for name in ALGORITHMS}


def run_both_ways() -> list[Results]:
    return [run_every_algorithm(join_group(), 0), run_every_algorithm(join_group(), 3)]


@pytest.fixture(scope="module")
def joined() -> Results:
    return run_every_algorithm(make_single_process(LoopConfig()), 0)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[list[Results]]:
    """Results by rank: without micro-batches, and with micro-batches of 3 and 1 rows."""
    return run_in_processes(2, run_both_ways, tmp_path_factory.mktemp("group") / "two")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str, joined: Results):
    with double_precision():
        accumulated = result(name, make_single_process(LoopConfig()), micro_batch_size=3)  # of 3, 3 and 2 rows
    assert difference(joined[name], accumulated) < FP64


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("way", [0, 1], ids=["whole shares", "micro-batches"])
def test_two_ranks_are_one_on_the_joined_batch(name: str, way: int, joined: Results, of_two: list[list[Results]]):
    for rank in of_two:
        assert difference(joined[name], rank[way][name]) < FP64


@pytest.mark.parametrize("shared_by", ["workers", "micro-batches"])
def test_a_row_gets_the_same_numbers_whoever_draws_them(shared_by: str):
    """Bit for bit: all rows at once, by three workers, or in three micro-batches."""
    x0, p, whole = torch.zeros(6, 2, 5), LogNormalNoise(mean=0.0, std=1.0), slice(0, 6)

    def make_rng(rows: slice) -> RowRng:
        return RowRng(make_step_rng(0, total_step=7), local_rows=rows, global_rows=6)

    def draw_all(draws: RowRng, rows: slice) -> list[Tensor]:
        sigma, index = draws.sample_sigma(p), draws.sample_index(1000)
        return [sigma, draws.add_noise(x0[rows], sigma), draws.sample_sigma(p), torch.full((len(sigma),), index)]

    thirds = [slice(0, 2), slice(2, 4), slice(4, 6)]
    makers = [make_rng(s) for s in thirds] if shared_by == "workers" else make_rng(whole).split(thirds)
    shares = [draw_all(draws, s) for draws, s in zip(makers, thirds)]
    for parts, expected in zip(zip(*shares), draw_all(make_rng(whole), whole), strict=True):
        assert torch.equal(torch.cat(parts), expected)
