"""What a training step of each stage consists of: passes through networks, their FLOPs, and what is moved afterwards.

Counted from the configuration alone, without torch: `presto plan` predicts with it, and workers report their
utilisation by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import pstdev
from typing import Any, Literal

from presto_core.config.layers import PrestoLSBudget, kept_in_bins
from presto_core.config.schema import (
    LayersStage,
    StageConfig,
    StepsStage,
    TeacherStage,
)
from presto_core.config.section import Section
from presto_core.config.sections import GanConfig
from presto_core.networks.flops import LatentShape
from presto_core.networks.table import find_network_kind, kind_of

Work = Literal["forward", "through", "train"]
# in forward passes: `through` also goes back to its input, `train` to its weights as well
FACTOR: dict[Work, int] = {"forward": 1, "through": 2, "train": 3}


@dataclass(frozen=True)
class Pass:
    """A pass through a network.

    Attributes:
        network: role of the network, as `cluster.parallel` names it.
        rows: for each row of the batch.
        blocks: that run, a mean over rows.
        whole: whether it ends in the network's output, instead of in activations.
        judged: whether a discriminator head reads those.
    """

    network: str
    work: Work
    rows: float
    blocks: float
    whole: bool = True
    judged: bool = False

    def flops(self, network: Section, shape: LatentShape) -> float:
        """A row of the batch."""
        kind = kind_of(network)
        outer = kind.outer_flops(network, shape) if self.whole else 0.0
        return self.rows * FACTOR[self.work] * (self.blocks * kind.block_flops(network, shape) + outer)


@dataclass(frozen=True)
class Phase:
    """One kind of step.

    Attributes:
        name: as the metric `<name>_step_seconds` has it; empty where all steps are alike.
        share: of all steps.
        passes: through networks.
        moved: role of the network whose weights the step moves.
        averaged: whether its moving average is updated too.
        draws: times that each row gets noise of its own.
        spread: standard deviation over rows of what the blocks of a row cost, in forward passes of one block.
    """

    name: str
    share: float
    passes: tuple[Pass, ...]
    moved: str
    averaged: bool = True
    draws: int = 1
    spread: float = 0.0

    def flops(self, network: Section, shape: LatentShape) -> float:
        """Model FLOPs a row of the batch; what is computed again to save memory does not count."""
        return sum(p.flops(network, shape) for p in self.passes)


@dataclass(frozen=True)
class StageWork:
    """All of a stage's steps.

    Attributes:
        trained: roles of the networks with gradients and moments; `averaged` of them have a moving average too.
        frozen: roles of those that are only read.
    """

    total_steps: int
    global_batch_size: int
    phases: tuple[Phase, ...]
    trained: tuple[str, ...]
    averaged: tuple[str, ...]
    frozen: tuple[str, ...] = ()

    def flops(self, network: Section, shape: LatentShape) -> float:
        """A row of the batch, a mean over steps."""
        return sum(phase.share * phase.flops(network, shape) for phase in self.phases)


def stage_work(config: StageConfig, depth: int, *, layered: bool = False) -> StageWork:
    """The work of a stage that trains.

    Args:
        depth: blocks of the base model.
        layered: whether Presto-S starts from a layer-distilled model, and so drops blocks (Presto-LS).

    Raises:
        UserError: a layer budget does not fit the depth.
        TypeError: the stage does not train.
    """
    if isinstance(config, TeacherStage):
        passes = (Pass("teacher", "train", 1, depth),)
        steps = (config.teacher.steps, config.teacher.global_batch_size)
        return StageWork(*steps, (Phase("", 1.0, passes, "teacher"),), ("teacher",), ("teacher",))
    if isinstance(config, LayersStage):
        phase = Phase("", 1.0, tuple(_layer_passes(config, depth)), "layers", spread=_layer_spread(config, depth))
        return StageWork(config.layers.steps, config.layers.global_batch_size, (phase,), ("layers",), ("layers",))
    if isinstance(config, StepsStage):
        return _steps_work(config, depth, layered=layered)
    raise TypeError(f"{type(config).__name__} does not train")


def row_flops(
    config: TeacherStage | LayersStage | StepsStage, model: dict[str, Any], *, layered: bool = False
) -> float:
    """Model FLOPs of a row of the batch, a mean over steps.

    Args:
        model: the model's card, as an artifact's manifest holds it.
    """
    kind, text = find_network_kind(model["network"]), model["text"]
    network = kind.config(**model["network"])
    frames = config.data.crop_frames or model["frames"]
    shape = LatentShape(model["channels"], frames, text["dim"], text["max_tokens"])
    return stage_work(config, kind.depth(network), layered=layered).flops(network, shape)


def _layer_passes(config: LayersStage, depth: int) -> Iterator[Pass]:
    """At the budget, and, for rows that skip blocks, at full depth as their own teacher (METHOD section 4)."""
    kept = kept_in_bins(config.layers.budget, depth)
    yield Pass("layers", "train", 1, sum(kept) / len(kept))
    skipping = sum(k < depth for k in kept) / len(kept)
    if config.layers.self_teacher_weight and skipping:
        yield Pass("layers", "forward", skipping, depth, whole=False)


def _layer_spread(config: LayersStage, depth: int) -> float:
    teacher = depth if config.layers.self_teacher_weight else 0
    return pstdev(FACTOR["train"] * k + teacher * (k < depth) for k in kept_in_bins(config.layers.budget, depth))


def _steps_work(config: StepsStage, depth: int, *, layered: bool) -> StageWork:
    """Presto-S and Presto-LS (METHOD section 3): R critic steps, then one generator step."""
    steps = config.steps
    budget = steps.budget or (PrestoLSBudget() if layered else None)
    kept = kept_in_bins(budget, depth) if budget else (depth,)
    blocks, ratio = sum(kept) / len(kept), steps.fake_updates_per_generator_update
    rolled = (steps.rollout.steps - 1) / 2 if steps.generator_input == "rollout" else 0.0
    again = 1.0 if _generates_twice(config) else 0.0
    judged = 2 if steps.gan.generator_weight > 0 else 0  # real latents and generated ones
    critic = Phase(
        "critic",
        ratio / (ratio + 1),
        (
            Pass("generator", "forward", 1 + rolled, blocks),
            Pass("fake_score", "train", 1, depth),
            *_judged(steps.gan, depth, "train", rows=3 if steps.gan.r1_weight else 2),
        ),
        "fake_score",
        averaged=False,
        draws=2 + judged + (steps.gan.r1_weight > 0),
        spread=pstdev(kept),
    )
    generator = Phase(
        "generator",
        1 / (ratio + 1),
        (
            Pass("generator", "train", 1, blocks),
            Pass("generator", "forward", rolled + again, blocks),
            Pass("real_score", "forward", 1 if steps.guidance_scale == 1 else 2, depth),
            Pass("fake_score", "forward", 1, depth),
            *_judged(steps.gan, depth, "through", rows=1),
        ),
        "generator",
        draws=2 + judged // 2,
        spread=(FACTOR["train"] + again) * pstdev(kept),
    )
    total = int(config.derived()["total_steps"])
    trained = ("generator", "fake_score")
    return StageWork(total, steps.global_batch_size, (critic, generator), trained, ("generator",), ("real_score",))


def _judged(gan: GanConfig, depth: int, work: Work, *, rows: int) -> Iterator[Pass]:
    """Passes of the fake score up to the last block that the discriminator reads."""
    if gan.generator_weight > 0:
        blocks = max(gan.taps or (depth // 2,)) + 1
        yield Pass("fake_score", work, rows, blocks, whole=False, judged=True)
        if work == "through" and gan.kind == "relativistic":
            yield Pass("fake_score", "forward", 1, blocks, whole=False, judged=True)


def _generates_twice(config: StepsStage) -> bool:
    """Whether the ratio of gradient norms over several micro-batches asks for a pass of its own."""
    steps, share = config.steps, int(config.derived()["gradient_accumulation_steps"])
    return share > 1 and steps.gan.generator_weight > 0 and steps.gan.weight_mode == "grad_ratio"
