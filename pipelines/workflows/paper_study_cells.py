"""The runs and the measured systems of `presto study paper`, by group: plain data, from the paper's ablations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipelines.workflows.study_targets import GENERATOR_STEPS
from presto_core.config.noise import GridNoise, KarrasNoise, NoiseConfig
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.errors import UserError
from tune_spaces.domains import to_overrides

TEACHER, S, LS, L, ASE, CONTROL = "teacher", "S", "LS", "L", "ASE", "full depth"
LS_FROM_ASE = "LS from ASE"
UNCONDITIONED, NO_SELF_TEACHER = "L unconditioned", "L without self-teacher"
LSGAN, NONSAT, NO_GAN = "S lsgan", "S nonsat", "S without GAN"
CONTINUOUS, DISCRETE = "S continuous", "S discrete"
GUIDANCE_SCALES = (1.0, 1.5, 3.0)
ROLES = ("p_dmd", "p_dsm", "p_gan")
INPUT_STEPS, RHO_STEPS, LS_STEPS = (1, 2, 4, 8, 16), (2, 4), (1, 2, 4)
RHOS = (3.0, 5.0, 7.0, 9.0, 12.0)


@dataclass(frozen=True)
class Cell:
    """One distilled model: a run of a stage.

    Attributes:
        settings: overrides of the preset, dotted key=value.
        layers: name of the layer-distilled cell it starts from; empty for the teacher.
    """

    name: str
    stage: str
    settings: tuple[str, ...] = ()
    layers: str = ""


@dataclass(frozen=True)
class StudySystem:
    """One way to sample a cell, or the teacher: a row of the results.

    Attributes:
        cell: name of the cell; `teacher` for the teacher.
        rho: of the noise levels, if not that of evaluate.schedule.
        sampler: of the teacher and of layer-distilled cells; None for few-step generators.
    """

    cell: str
    steps: int
    rho: float | None = None
    sampler: BaseSampler | None = None

    @property
    def key(self) -> str:
        """Its name in results and claims: `S 4`, `S rho=5 4`, `L dpmpp_2m 40`."""
        rho = "" if self.rho is None else f" rho={self.rho:g}"
        sampler = f" {self.sampler.sampler}" if self.sampler else ""
        guidance = self.sampler.guidance_label if self.sampler else ""
        return f"{self.cell}{rho}{sampler} {self.steps}{guidance}"


@dataclass(frozen=True)
class StudySettings:
    """What the groups depend on, from the preset.

    Attributes:
        p_train: sigma^train, the teacher's.
        schedule: sigma^inf, evaluation's.
        samplers: of the teacher; layer-distilled models use the first.
    """

    p_train: NoiseConfig
    schedule: ScheduleConfig
    samplers: tuple[BaseSampler, ...]

    @property
    def p_inf(self) -> KarrasNoise:
        s = self.schedule
        return KarrasNoise(sigma_min=s.sigma_min, sigma_max=s.sigma_max, rho=s.rho)

    @property
    def p_grid(self) -> GridNoise:
        """The levels of the few-step sampler, the discrete baseline of p_gen."""
        s = self.schedule
        return GridNoise(num_steps=GENERATOR_STEPS, sigma_min=s.sigma_min, sigma_max=s.sigma_max, rho=s.rho)


@dataclass(frozen=True)
class Group:
    """One question of the study."""

    name: str
    title: str
    cells: tuple[Cell, ...]
    systems: tuple[StudySystem, ...]


def name_noise_cell(roles: Iterable[str]) -> str:
    """Name of the cell with these families of p_DMD, p_DSM and p_GAN, such as `S train/inf/train`."""
    return f"{S} {'/'.join(roles)}"


def name_guidance_cell(scale: float) -> str:
    """Name of the cell that learns from the real score at this guidance, such as `S w=1.5`."""
    return f"{S} w={scale:g}"


def make_groups(settings: StudySettings, only: Iterable[str] = ()) -> list[Group]:
    """Return the groups of the study, or those named.

    Raises:
        UserError: there is no group of a name.
    """
    groups = {group.name: group for group in _list_groups(settings)}
    names = list(only) or list(groups)
    if unknown := [name for name in names if name not in groups]:
        raise UserError(f"presto study paper has no group {unknown[0]!r}; --only takes {', '.join(groups)}")
    return [group for name, group in groups.items() if name in names]


def _list_groups(settings: StudySettings) -> tuple[Group, ...]:
    few, student = GENERATOR_STEPS, Cell(S, "distill-steps")
    noise = _make_noise_cells(settings)
    gan, inputs = _make_gan_cells(), _make_input_cells(settings)
    guidance, layers = _make_guidance_cells(), _make_layer_cells()
    both = Cell(LS, "distill-steps", layers=L), Cell(LS_FROM_ASE, "distill-steps", layers=ASE)
    return (
        Group("noise", "Noise of p_DMD/p_DSM/p_GAN", noise, tuple(StudySystem(c.name, few) for c in noise)),
        Group("gan", "Adversarial loss", gan, tuple(StudySystem(c.name, few) for c in gan)),
        Group(
            "inputs", "Continuous and discrete generator inputs", inputs,
            tuple(StudySystem(c.name, n) for c in inputs for n in INPUT_STEPS),
        ),
        Group(
            "rho", "Schedule at inference", (student,),
            tuple(StudySystem(S, n, r) for n in RHO_STEPS for r in sorted({*RHOS, settings.schedule.rho})),
        ),
        Group(
            "guidance", "Guidance of the real score", guidance, tuple(StudySystem(c.name, few) for c in guidance)
        ),
        Group(
            "layers", "Layer distillation", layers,
            tuple(StudySystem(c.name, (b := settings.samplers[0]).steps, sampler=b) for c in layers),
        ),
        Group(
            "ls", "Layers and steps", (student, *layers[:2], *both),
            tuple(StudySystem(name, n) for name in (S, LS, LS_FROM_ASE) for n in LS_STEPS),
        ),
    )  # fmt: skip


def _make_noise_cells(settings: StudySettings) -> tuple[Cell, ...]:
    """The {train, inf}^3 table; p_gen stays that of the preset."""
    family = {"train": settings.p_train.to_config(), "inf": settings.p_inf.to_config()}
    return tuple(
        Cell(
            name_noise_cell(choice),
            "distill-steps",
            tuple(to_overrides({f"steps.{role}": family[name] for role, name in zip(ROLES, choice)})),
        )
        for choice in product(family, repeat=len(ROLES))
    )


def _make_gan_cells() -> tuple[Cell, ...]:
    none = {"steps.gan.generator_weight": 0, "steps.gan.fake_score_weight": 0}
    return (
        Cell(LSGAN, "distill-steps", tuple(to_overrides({"steps.gan.kind": "lsgan"}))),
        Cell(NONSAT, "distill-steps", tuple(to_overrides({"steps.gan.kind": "nonsat"}))),
        Cell(NO_GAN, "distill-steps", tuple(to_overrides(none))),
    )


def _make_input_cells(settings: StudySettings) -> tuple[Cell, ...]:
    return tuple(
        Cell(name, "distill-steps", tuple(to_overrides({"steps.p_gen": noise.to_config()})))
        for name, noise in ((CONTINUOUS, settings.p_inf), (DISCRETE, settings.p_grid))
    )


def _make_guidance_cells() -> tuple[Cell, ...]:
    """The student samples without guidance: what it shall have of it, it learns from the guided real score."""
    return tuple(
        Cell(name_guidance_cell(scale), "distill-steps", tuple(to_overrides({"steps.guidance_scale": scale})))
        for scale in GUIDANCE_SCALES
    )


def _make_layer_cells() -> tuple[Cell, ...]:
    """L, its parts left out, ASE, and the control: as many further updates of the teacher at full depth."""
    unconditioned, no_self_teacher = {"layers.budget_conditioning": False}, {"layers.self_teacher_weight": 0}
    plain = unconditioned | no_self_teacher
    variants: dict[str, dict[str, Any]] = {  # L and ASE first: LS starts from each
        L: {},
        ASE: {"layers.mode": "ase"} | plain,
        CONTROL: {"layers.budget": {"kind": "full"}} | plain,
        UNCONDITIONED: unconditioned,
        NO_SELF_TEACHER: no_self_teacher,
    }
    return tuple(Cell(name, "distill-layers", tuple(to_overrides(settings))) for name, settings in variants.items())


def list_teacher_systems(settings: StudySettings) -> tuple[StudySystem, ...]:
    """The teacher's samplers, which every group is compared with."""
    return tuple(StudySystem(TEACHER, b.steps, sampler=b) for b in settings.samplers)
