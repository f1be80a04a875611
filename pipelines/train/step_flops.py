"""What a training step of each stage consists of: passes through networks, their FLOPs, and the update afterwards.

Counted from the configuration alone, without torch: `presto plan` predicts with it, and workers compute their
utilization with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import pstdev
from typing import Any, Literal

from presto_core.config.layers import PrestoLSBudget, TableBudget, blocks_per_bin
from presto_core.config.schema import LayersStage, StepsStage, TeacherStage
from presto_core.config.section import Section
from presto_core.config.sections import GanConfig, LoraConfig
from presto_core.config.stage import StageConfig, TrainingStage
from presto_core.networks.flops import LatentShape
from presto_core.networks.table import find_network_kind, kind_of, read_settings

PassKind = Literal["forward", "through", "train"]
# in forward passes: `through` adds gradients of the input, `train` those of the weights as well
FORWARD_EQUIVALENTS: dict[PassKind, int] = {"forward": 1, "through": 2, "train": 3}


@dataclass(frozen=True)
class Pass:
    """A pass through a network.

    Attributes:
        network: role of the network, as in `cluster.parallel`.
        rows: rows of the pass per row of the batch.
        blocks: blocks that run, averaged over rows.
        to_output: whether the pass reaches the network's output, instead of stopping at activations.
        through_discriminator: whether a discriminator head reads those activations.
    """

    network: str
    kind: PassKind
    rows: float
    blocks: float
    to_output: bool = True
    through_discriminator: bool = False

    def flops(self, network: Section, shape: LatentShape) -> float:
        """Return the FLOPs per row of the batch."""
        kind = kind_of(network)
        outer = kind.outer_flops(network, shape) if self.to_output else 0.0
        return self.rows * FORWARD_EQUIVALENTS[self.kind] * (self.blocks * kind.block_flops(network, shape) + outer)


@dataclass(frozen=True)
class PhaseCost:
    """Cost of one kind of step.

    Attributes:
        name: as in the metric `<name>_step_seconds`; empty if all steps are alike.
        share: fraction of all steps.
        passes: passes through networks.
        updated_network: role of the network whose weights the step updates.
        updates_ema: whether its moving average is updated too.
        noise_draws: times that noise is drawn per row.
        blocks_std: standard deviation over rows of the cost of a row's blocks, in forward passes of one block.
    """

    name: str
    share: float
    passes: tuple[Pass, ...]
    updated_network: str
    updates_ema: bool = True
    noise_draws: int = 1
    blocks_std: float = 0.0

    def flops(self, network: Section, shape: LatentShape) -> float:
        """Return the model FLOPs per row of the batch; recomputation that saves memory is not counted."""
        return sum(p.flops(network, shape) for p in self.passes)


@dataclass(frozen=True)
class StageFlops:
    """Cost of all steps of a stage.

    Attributes:
        trained: roles of the networks with gradients and moments; `ema_networks` of them have a moving average too.
        frozen: roles of the networks that are only read.
        lora: adapters that train in place of all weights.
        layered: whether Presto-S starts from a layer-distilled model, whose weights are not the teacher's.
    """

    total_steps: int
    global_batch_size: int
    phases: tuple[PhaseCost, ...]
    trained: tuple[str, ...]
    ema_networks: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    lora: LoraConfig = field(default_factory=LoraConfig)
    layered: bool = False

    def flops(self, network: Section, shape: LatentShape) -> float:
        """Return the model FLOPs per row of the batch, averaged over steps."""
        return sum(phase.share * phase.flops(network, shape) for phase in self.phases)


def count_stage_flops(config: StageConfig, depth: int, *, layered: bool = False) -> StageFlops:
    """Count the cost of a stage that trains.

    Args:
        depth: blocks of the teacher.
        layered: whether Presto-S starts from a layer-distilled model, and so skips blocks (Presto-LS).

    Raises:
        UserError: a layer budget does not fit the depth.
        TypeError: the stage does not train.
    """
    if isinstance(config, TeacherStage):
        passes = (Pass("teacher", "train", 1, depth),)
        steps = (config.teacher.steps, config.teacher.global_batch_size)
        return StageFlops(*steps, (PhaseCost("", 1.0, passes, "teacher"),), ("teacher",), ("teacher",))
    if isinstance(config, LayersStage):
        phase = PhaseCost(
            "", 1.0, tuple(_iter_layer_passes(config, depth)), "layers", blocks_std=_blocks_std(config, depth)
        )
        roles, lora = ("layers",), config.layers.lora
        return StageFlops(config.layers.steps, config.layers.global_batch_size, (phase,), roles, roles, lora=lora)
    if isinstance(config, StepsStage):
        return _count_step_distill_flops(config, depth, layered=layered)
    raise TypeError(f"{type(config).__name__} does not train")


def row_flops(config: TrainingStage, model: dict[str, Any], *, layered: bool = False) -> float:
    """Return the model FLOPs per row of the batch, averaged over steps.

    Args:
        model: the model card, as in an artifact's manifest, with the generator's own layer budget.
    """
    if isinstance(config, StepsStage) and (budget := model.get("layer_budget")):
        steps = config.steps.model_copy(update={"budget": TableBudget(kept=tuple(budget["kept"]))})
        config = config.model_copy(update={"steps": steps})
    kind, text = find_network_kind(model["network"]), model["text"]
    network = read_settings(model["network"])
    frames = config.data.crop_frames or model["frames"]
    shape = LatentShape(model["channels"], frames, text["dim"], text["max_tokens"])
    return count_stage_flops(config, kind.depth(network), layered=layered).flops(network, shape)


def _iter_layer_passes(config: LayersStage, depth: int) -> Iterator[Pass]:
    """Yield the pass at the budget and, for rows that skip blocks, the self-teacher's (METHOD section 4)."""
    kept = blocks_per_bin(config.layers.budget, depth)
    yield Pass("layers", "train", 1, sum(kept) / len(kept))
    skipping = sum(k < depth for k in kept) / len(kept)
    if config.layers.self_teacher_weight and skipping:
        yield Pass("layers", "forward", skipping, depth, to_output=False)


def _blocks_std(config: LayersStage, depth: int) -> float:
    teacher = depth if config.layers.self_teacher_weight else 0
    return pstdev(
        FORWARD_EQUIVALENTS["train"] * k + teacher * (k < depth) for k in blocks_per_bin(config.layers.budget, depth)
    )


def _count_step_distill_flops(config: StepsStage, depth: int, *, layered: bool) -> StageFlops:
    """Count Presto-S and Presto-LS (METHOD section 3): R critic steps, then one generator step."""
    steps = config.steps
    budget = steps.budget or (PrestoLSBudget() if layered else None)
    kept = blocks_per_bin(budget, depth) if budget else (depth,)
    blocks, ratio = sum(kept) / len(kept), steps.fake_updates_per_generator_update
    rollout_passes = (steps.rollout.steps - 1) / 2 if steps.generator_input == "rollout" else 0.0
    extra_passes = 1.0 if _has_extra_generator_pass(config) else 0.0
    gan_draws = 2 if steps.gan.generator_weight > 0 else 0  # real latents and generated ones
    # with shared_taps, passes of the fake score serve the discriminator too: generated latents need no others
    shared = steps.shared_taps and gan_draws > 0
    real_rows = 2 if steps.gan.r1_weight else 1
    critic = PhaseCost(
        "critic",
        ratio / (ratio + 1),
        (
            Pass("generator", "forward", 1 + rollout_passes, blocks),
            Pass("fake_score", "train", 1, depth, through_discriminator=shared),
            *_iter_discriminator_passes(steps.gan, depth, "train", rows=real_rows if shared else real_rows + 1),
        ),
        "fake_score",
        updates_ema=False,
        noise_draws=2 + gan_draws - shared + (steps.gan.r1_weight > 0),
        blocks_std=pstdev(kept),
    )
    generator = PhaseCost(
        "generator",
        1 / (ratio + 1),
        (
            Pass("generator", "train", 1, blocks),
            Pass("generator", "forward", rollout_passes + extra_passes, blocks),
            Pass("real_score", "forward", 1 if steps.guidance_scale == 1 else 2, depth),
            # the blocks before the discriminator's are part of the pass through it
            Pass("fake_score", "forward", 1, depth - _count_tapped_blocks(steps.gan, depth) if shared else depth),
            *_iter_discriminator_passes(steps.gan, depth, "through", rows=1),
        ),
        "generator",
        noise_draws=2 + (0 if shared else gan_draws // 2),
        blocks_std=(FORWARD_EQUIVALENTS["train"] + extra_passes) * pstdev(kept),
    )
    total = config.total_steps
    trained = ("generator", "fake_score")
    return StageFlops(
        total,
        steps.global_batch_size,
        (critic, generator),
        trained,
        ("generator",),
        ("real_score",),
        lora=steps.lora,
        layered=layered,
    )


def _iter_discriminator_passes(gan: GanConfig, depth: int, kind: PassKind, *, rows: int) -> Iterator[Pass]:
    """Yield the passes of the fake score up to the last block that the discriminator reads."""
    if gan.generator_weight > 0:
        blocks = _count_tapped_blocks(gan, depth)
        yield Pass("fake_score", kind, rows, blocks, to_output=False, through_discriminator=True)
        if kind == "through" and gan.kind == "relativistic":
            yield Pass("fake_score", "forward", 1, blocks, to_output=False, through_discriminator=True)


def _count_tapped_blocks(gan: GanConfig, depth: int) -> int:
    """Return how many blocks run for the discriminator."""
    return max(gan.taps or (depth // 2,)) + 1


def _has_extra_generator_pass(config: StepsStage) -> bool:
    """Whether the ratio of gradient norms needs its own generator pass, as it does over several micro-batches."""
    steps, accumulation_steps = config.steps, int(config.derive_values()["gradient_accumulation_steps"])
    return accumulation_steps > 1 and steps.gan.generator_weight > 0 and steps.gan.weight_mode == "grad_ratio"
