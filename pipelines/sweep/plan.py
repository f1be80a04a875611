"""What a sweep would try: its space, its trials' settings, and what they cost; known without torch, Ray or a server."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast

from pipelines.presets.resolve import PRESETS, split_preset
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import SweepStage, TeacherStage, foreign_sections, stage_configs
from presto_core.config.stage import NOT_IN_RUN_ID, TrainingStage
from presto_core.config.sweep import RangeConfig
from presto_core.metrics.table import canonical_name, list_validation_metrics
from tune_spaces.domains import Choice, Conditional, Range, Space, Suggest, combinations, list_range_keys, sample
from tune_spaces.layers import list_budgets as list_budgets
from tune_spaces.spaces import SPACES, union

MAX_DUPLICATE_DRAWS = 200  # draws on end that were there before, after which a space is taken for used up
FIRST_REPEAT_SEED = 1000  # of repeats: seeds that the search did not see
# settings that say how far and how surely a sweep goes, not which one it is
_EXTENT = {"samples", "concurrent", "repeats", "register_best", "keep_stopped"}


@dataclass(frozen=True)
class Proposal:
    """Settings to try: what is different from the preset; `run_id` is that of the run they mean."""

    settings: dict[str, Any]
    run_id: str
    role: str = "trial"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep before its first trial.

    Attributes:
        sweep: how it searches, and where it runs.
        base: the swept stage with the preset's own settings.
        preset: name or file, for the override line and the winner's preset.
        words: overrides that the preset was given.
        space: the keys that this stage reads.
        depth: transformer blocks that layer budgets are made for.
        parents: role -> id of the artifacts that trials start from; empty until they are looked up.
    """

    sweep: SweepStage
    base: TrainingStage
    preset: str | None
    overrides: tuple[str, ...]
    space: Space
    depth: int
    parents: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics by their present names; the first ranks trials."""
        return tuple(canonical_name(name) for name in self.sweep.sweep.metrics)

    @property
    def metric(self) -> str:
        return self.metrics[0]

    @property
    def grace(self) -> int:
        """Updates before a trial may be stopped."""
        return self.sweep.sweep.grace or self.base.validation.every

    @property
    def id(self) -> str:
        """Of the sweep: its stage, preset, parents and search; with more samples it stays the same."""
        sweep, validation = self.sweep.sweep.model_dump(mode="json", exclude=_EXTENT), self.base.validation
        validation_settings = {"every": validation.every, **validation.comparison_settings()}
        body = [sweep, self.base.result_config(), validation_settings, self.depth, sorted(self.parents.items())]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def make_config(self, settings: dict[str, Any]) -> TrainingStage:
        """The stage's configuration with some settings changed.

        Raises:
            ConfigError: unknown key, or a value out of range.
        """
        return load_config(type(self.base), None, {**self.base.model_dump(mode="json"), **settings})

    def make_proposal(self, settings: dict[str, Any], role: str = "trial") -> Proposal:
        return Proposal(settings, self.make_config(settings).run_id(self.parents), role)

    def make_repeats(self, settings: dict[str, Any], role: str) -> list[Proposal]:
        """The same settings with the further seeds."""
        seeds = range(FIRST_REPEAT_SEED, FIRST_REPEAT_SEED + self.sweep.sweep.repeats)
        return [self.make_proposal(settings | {"seed": seed}, role) for seed in seeds]

    def iter_proposals(self) -> Iterator[Proposal]:
        """The preset's own settings, then those of a grid or a random search: each run once, always the same ones."""
        sweep, seen = self.sweep.sweep, set()
        for settings in ({}, *combinations(self.space)) if sweep.search == "grid" else self._draw_settings():
            proposal = self.make_proposal(settings)
            if proposal.run_id not in seen:
                seen.add(proposal.run_id)
                yield proposal
                if sweep.search != "grid" and len(seen) == sweep.samples:
                    return

    @property
    def num_trials(self) -> int:
        """Trials there will be, at most."""
        if self.sweep.sweep.search == "grid":
            return sum(1 for _ in self.iter_proposals())
        return self.sweep.sweep.samples

    def _draw_settings(self) -> Iterator[dict[str, Any]]:
        """Settings from a seeded source; ends after many that came before."""
        yield {}
        rng, seen, duplicates = random.Random(self.sweep.sweep.seed), set[str](), 0
        while duplicates < MAX_DUPLICATE_DRAWS:
            settings = sample(self.space, random_suggester(rng))
            key = json.dumps(settings, sort_keys=True)
            duplicates = duplicates + 1 if key in seen else 0
            if key not in seen:
                seen.add(key)
                yield settings


def random_suggester(rng: random.Random) -> Suggest:
    """Values by chance, of four digits, so that they can be read and written again."""

    def suggest(name: str, domain: Choice | Range) -> Any:
        if isinstance(domain, Choice):
            return rng.choice(domain.values)
        if domain.integer:
            return rng.randint(round(domain.low), round(domain.high))
        if domain.log:
            return round_value(math.exp(rng.uniform(math.log(domain.low), math.log(domain.high))), domain)
        return round_value(rng.uniform(domain.low, domain.high), domain)

    return suggest


def round_value(value: float, domain: Range) -> float:
    """To four digits, within the domain."""
    return min(max(float(f"{value:.4g}"), domain.low), domain.high)


def make_plan(args: list[str]) -> SweepPlan:
    """What a preset and overrides mean; every mistake in them is found here.

    Raises:
        ConfigError: unknown preset, key, space or value; an empty space; a metric that would never be reported; a grid
            of endlessly many values.
    """
    preset, overrides = split_preset(args)
    foreign = foreign_sections(SweepStage)
    sweep_overrides = [o for o in overrides if _section_of(o) not in foreign]
    sweep = load_config(SweepStage, preset, sweep_overrides, preset_folder=PRESETS)
    stage_overrides = [o for o in overrides if _section_of(o) != "sweep"]
    base = cast(
        TrainingStage, load_config(stage_configs()[sweep.sweep.stage], preset, stage_overrides, preset_folder=PRESETS)
    )
    depth = sweep.sweep.depth or load_config(TeacherStage, preset, preset_folder=PRESETS).network.depth
    plan = SweepPlan(sweep, base, preset, tuple(stage_overrides), _resolve_space(sweep, base, depth), depth)
    _check_metrics_known(plan)
    _check_metric_reported(plan)
    _check_domain_ends(plan)
    if sweep.sweep.search == "grid" and (endless := list_range_keys(plan.space)):
        raise ConfigError(f"sweep.search=grid needs lists of values, and {endless[0]!r} is a range; use search=random")
    return plan


def _section_of(override: str) -> str:
    return override.partition("=")[0].partition(".")[0]


def _resolve_space(sweep: SweepStage, base: TrainingStage, depth: int) -> Space:
    """The keys of ready spaces that the stage reads, and the user's own."""
    for name in sweep.sweep.spaces:
        if name not in SPACES:
            matches = get_close_matches(name, SPACES, 1)
            hint = f"did you mean {matches[0]!r}?" if matches else f"there are {', '.join(SPACES)}"
            raise ConfigError(f"unknown space {name!r}; {hint}")
    fields = set(type(base).model_fields)
    ready = {k: d for k, d in union(sweep.sweep.spaces, depth=depth).items() if k.partition(".")[0] in fields}
    own = {key: _to_domain(values) for key, values in sweep.sweep.domains.items()}
    for key in own:
        if key.partition(".")[0] in NOT_IN_RUN_ID:
            raise ConfigError(f"{key!r} does not change what {sweep.sweep.stage} makes, so there is nothing to sweep")
    if not ready | own:
        reason = f"; {', '.join(sweep.sweep.spaces)} has no key of this stage" if sweep.sweep.spaces else ""
        raise ConfigError(
            f"a sweep of {sweep.sweep.stage} needs settings to try{reason}: give --space (see presto sweep spaces) "
            "or sweep.domains={dotted.key: [values]}"
        )
    return ready | own


def _to_domain(values: tuple[Any, ...] | RangeConfig) -> Choice | Range:
    if isinstance(values, RangeConfig):
        return Range(values.low, values.high, values.log, values.integer)
    return Choice(values)


def _check_metrics_known(plan: SweepPlan) -> None:
    known = list_validation_metrics()
    for name in plan.metrics:
        if name not in known:
            matches = get_close_matches(name, known, 1)
            hint = f"did you mean {matches[0]!r}?" if matches else f"choose from {', '.join(known)}"
            raise ConfigError(f"sweep.metrics={name} is not a metric that validations report; {hint}")


def _check_metric_reported(plan: SweepPlan) -> None:
    every, updates, stage = plan.base.validation.every, plan.base.updates, plan.sweep.sweep.stage
    if not every:
        raise ConfigError(
            f"metric {plan.metric!r} would never be reported: validation.every=0; set validation.every to some updates "
            f"of {stage}'s {updates}"
        )
    if every > updates:
        raise ConfigError(
            f"metric {plan.metric!r} would be reported once, at the end: validation.every={every} is more than the "
            f"{updates} updates of {stage}; lower validation.every"
        )
    if plan.grace > updates:
        raise ConfigError(f"sweep.grace={plan.grace} is more than the {updates} updates of {stage}; lower it")


def _check_domain_ends(plan: SweepPlan) -> None:
    """Try each end of each domain by itself, so that a wrong key or value is named before anything runs."""
    for key, domain in plan.space.items():
        if isinstance(domain, Conditional):
            for kind, inner in domain.options.items():
                for name, part in inner.items():
                    for value in _list_ends(part):
                        plan.make_config({f"{key}.kind": kind, f"{key}.{name}": value})
        else:
            for value in _list_ends(domain):
                plan.make_config({key: value})


def _list_ends(domain: Choice | Range) -> tuple[Any, ...]:
    if isinstance(domain, Choice):
        return domain.values
    return (round(domain.low), round(domain.high)) if domain.integer else (domain.low, domain.high)
