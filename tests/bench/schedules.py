"""A Presto-S iteration against independent DMD2 iterations: same network, batch, precision and number of updates.

The plain iterations are in `dmd2.py`; tests/core/test_independent_dmd2.py shows that they compute the same losses and
weights. Compiled means torch.compile on each transformer block (`loop.compile`), for either side.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
import torch._dynamo
from torch import nn

from pipelines.train.parallel import make_single_process
from presto_core.config.sections import LoopConfig, NetworkConfig, StepsConfig
from presto_core.networks.dit import DiT
from presto_core.training.state import make_step_rng
from presto_core.training.step_distillation import StepDistillation
from tests.bench.clock import PairedComparison, time_rounds
from tests.bench.dmd2 import Features, PlainDmd2
from tests.bench.iteration import CHANNELS, TEXT_DIM, example_batch

PLAIN, TEACHER = "plain DMD2", "plain DMD2, discriminator on the teacher"
COMPILED = ", compiled"
OURS, SHARED = "Presto-S", "Presto-S, shared_taps"
EAGER_PAIRS = ((OURS, PLAIN), (SHARED, PLAIN), (SHARED, TEACHER))
COMPILED_PAIRS = (
    (OURS + COMPILED, PLAIN),
    (OURS + COMPILED, PLAIN + COMPILED),
    (SHARED + COMPILED, TEACHER),
    (SHARED + COMPILED, TEACHER + COMPILED),
)


def measure(network: NetworkConfig, steps: StepsConfig, *, compiled: bool, rounds: int) -> list[PairedComparison]:
    """Time R critic updates and one generator update of each, in turn, by the CPU clock of this one thread.

    Args:
        compiled: compare compiled iterations, with plain ones that are and that are not; compiling takes minutes.
    """
    # all these networks share the code of a block, of which a run alone compiles no more than the default allows
    torch._dynamo.config.recompile_limit = 64
    pairs = COMPILED_PAIRS if compiled else EAGER_PAIRS
    names = sorted({name for pair in pairs for name in pair})
    seconds = time_rounds(
        {name: make_iteration(name, network, steps) for name in names}, rounds=rounds, clock=time.process_time
    )
    return [PairedComparison(ours, seconds[ours], theirs, seconds[theirs]) for ours, theirs in pairs]


def make_iteration(name: str, network: NetworkConfig, steps: StepsConfig) -> Callable[[], None]:
    # the weight of the papers: the ratio of gradient norms is Presto's own addition
    gan = steps.gan.model_copy(update={"weight_mode": "absolute"})
    config = steps.model_copy(update={"gan": gan, "shared_taps": name.startswith(SHARED)})
    compiles = name.endswith(COMPILED)
    if name.startswith(OURS):
        return make_presto_iteration(config, network, compiles=compiles)
    features: Features = "teacher" if name.startswith(TEACHER) else "fake_score"
    return make_plain_iteration(config, network, features, compiles=compiles)


def make_presto_iteration(config: StepsConfig, network: NetworkConfig, *, compiles: bool) -> Callable[[], None]:
    parallel = make_single_process(LoopConfig(compile=compiles))
    algorithm = StepDistillation(config, make_teacher(network), sigma_data=1.0, parallel=parallel)
    batch = example_batch(config.global_batch_size)

    def iterate() -> None:
        for _ in range(config.fake_updates_per_generator_update + 1):
            algorithm.update(batch, generator=make_step_rng(0, total_step=algorithm.state.total_step))
            algorithm.state.total_step += 1

    return iterate


def make_plain_iteration(
    config: StepsConfig, network: NetworkConfig, features: Features, *, compiles: bool
) -> Callable[[], None]:
    teacher = make_teacher(network)
    head = StepDistillation(config, make_teacher(network), sigma_data=1.0).state.networks["head"]
    plain = PlainDmd2(config, teacher, head, features=features)
    if compiles:
        for net in (plain.real, plain.fake, plain.generator):
            for block in net.blocks:
                block.compile()
    batch, rngs = example_batch(config.global_batch_size), (make_step_rng(0, total_step=n) for n in itertools.count())
    return lambda: plain.iterate(lambda: batch, lambda: next(rngs))


def make_teacher(network: NetworkConfig) -> DiT:
    """A network whose weights are all random: products with zeros may take another time."""
    torch.manual_seed(0)
    net = DiT(network, channels=CHANNELS, text_dim=TEXT_DIM)
    for weight in net.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return net
