"""Workers and micro-batches change nothing but rounding: two ranks against one on the joined batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from presto_core.config.noise import LogNormalNoise
from presto_core.training.parallel import Parallel
from presto_core.training.row_rng import Draws
from presto_core.training.state import step_generator
from tests.support.process_group import ALGORITHMS, alone, difference, double_precision, in_processes, result, together

FP64 = 1e-10  # of a tensor's largest number; what is measured is below 2e-12
Results = dict[str, dict[str, Tensor]]


def every_algorithm(parallel: Parallel, micro_batch_size: int) -> Results:
    with double_precision():
        return {name: result(name, parallel, micro_batch_size=micro_batch_size) for name in ALGORITHMS}


def two_ways() -> list[Results]:
    return [every_algorithm(together(), 0), every_algorithm(together(), 3)]


@pytest.fixture(scope="module")
def joined() -> Results:
    return every_algorithm(alone(), 0)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[list[Results]]:
    """By rank: whole shares, and micro-batches of 3 and 1 rows."""
    return in_processes(2, two_ways, tmp_path_factory.mktemp("group") / "two")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str, joined: Results):
    with double_precision():
        accumulated = result(name, alone(), micro_batch_size=3)  # of 3, 3 and 2 rows
    assert difference(joined[name], accumulated) < FP64


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("way", [0, 1], ids=["whole shares", "micro-batches"])
def test_two_ranks_are_one_on_the_joined_batch(name: str, way: int, joined: Results, of_two: list[list[Results]]):
    for rank in of_two:
        assert difference(joined[name], rank[way][name]) < FP64


@pytest.mark.parametrize("shared_by", ["workers", "micro-batches"])
def test_a_row_gets_the_same_numbers_whoever_draws_them(shared_by: str):
    """Bit for bit: all rows at once, by three workers, or by one in parts."""
    x0, p, whole = torch.zeros(6, 2, 5), LogNormalNoise(mean=0.0, std=1.0), slice(0, 6)

    def of(rows: slice) -> Draws:
        return Draws(step_generator(0, total_step=7), mine=rows, of=6)

    def drawn(draws: Draws, rows: slice) -> list[Tensor]:
        sigma, index = draws.sigma(p), draws.index(1000)
        return [sigma, draws.noised(x0[rows], sigma), draws.sigma(p), torch.full((len(sigma),), index)]

    thirds = [slice(0, 2), slice(2, 4), slice(4, 6)]
    makers = [of(s) for s in thirds] if shared_by == "workers" else of(whole).split(thirds)
    shares = [drawn(draws, s) for draws, s in zip(makers, thirds)]
    for parts, expected in zip(zip(*shares), drawn(of(whole), whole), strict=True):
        assert torch.equal(torch.cat(parts), expected)
