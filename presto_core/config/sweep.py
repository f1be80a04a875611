"""Configuration of a sweep: which stage, over which settings, how it searches, and when it stops a trial early."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from presto_core.config.section import Count, Section

SweepableStage = Literal["train-teacher", "distill-layers", "distill-steps"]


def _parse_number(value: object) -> object:
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value) else value


class RangeConfig(Section):
    """Numbers between two ends."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    log: bool = False
    """Draw uniformly on a logarithmic scale."""
    integer: bool = False
    """Whole numbers only."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"the domain is empty: low={self.low:g} must be below high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} must be above 0 on a logarithmic scale")
        return self


class SweepConfig(Section):
    """Which stage's settings are tried, over which values, and when a trial is stopped early."""

    stage: SweepableStage = "distill-steps"
    """The stage whose settings are tried."""
    spaces: tuple[str, ...] = ()
    """Predefined spaces, combined: `presto sweep spaces` lists them."""
    domains: dict[str, tuple[JsonValue, ...] | RangeConfig] = Field(default_factory=dict)
    """Your own search domains: dotted key -> list of values, or {low, high, log, integer}; overrides `spaces`."""
    search: Literal["random", "grid", "optuna"] = "random"
    """`random`: independent draws; `grid`: each combination once; `optuna`: later trials learn from earlier ones (TPE).
    """
    samples: Count = 16
    """Number of trials, including the preset's own settings; a larger number continues the same sweep. `grid` ignores
    it."""
    metrics: tuple[str, ...] = ("mmd",)
    """Metrics that validations report; the first ranks trials and stops them. With several, the report shows the Pareto
    front."""
    mode: Literal["min", "max"] = "min"
    """Whether to minimize or maximize the first metric; the others are minimized."""
    scheduler: Literal["asha", "median", "none", "pbt"] = "asha"
    """When a trial is stopped early: `asha` keeps the best 1/reduction at each rung, `median` those better than the
    median of the others, `none` stops none. `pbt` is refused."""
    grace: int = Field(0, ge=0)
    """Updates before a trial can be stopped; 0 means until its first validation."""
    reduction: int = Field(3, ge=2)
    """Each rung of `asha` comes after `reduction` times the updates of the one before."""
    concurrent: int = Field(0, ge=0)
    """Most trials at a time; 0 runs as many as fit on the cluster."""
    seed: int = Field(0, ge=0)
    """Seed of the search; the trials' own seed is `seed`."""
    depth: int = Field(0, ge=0)
    """Number of transformer blocks for which layer budgets are made; 0 uses network.depth of the preset."""
    repeats: int = Field(3, ge=0)
    """Number of further seeds with which the winner and the preset's own settings are trained to the end; 0 repeats
    neither."""
    keep_stopped: bool = False
    """Keep the checkpoints of trials that were stopped early, so that they can be resumed."""
    register_best: int = Field(1, ge=0)
    """Number of best trials to register as candidates, the best one last; 0 registers none."""

    @field_validator("domains", mode="after")
    @classmethod
    def _parse_exponent_numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        """YAML takes 1e-5 for text, where 1.0e-5 is a number."""
        return {
            key: tuple(map(_parse_number, domain)) if isinstance(domain, tuple) else domain
            for key, domain in value.items()
        }

    @field_validator("spaces", "metrics", mode="before")
    @classmethod
    def _wrap_single_value(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_feasible(self) -> Self:
        empty = [key for key, domain in self.domains.items() if domain == ()]
        if empty:
            raise ValueError(f"the domain of {empty[0]!r} is empty; list at least one value")
        if not self.metrics:
            raise ValueError("metrics must name at least one, such as mmd")
        if self.scheduler == "pbt":
            raise ValueError(
                "scheduler=pbt has no effect on trials that train through Ray Train, since Tune has no checkpoint of "
                "theirs to copy; use asha or median, and presto distill-steps --resume RUN_ID --fork to change "
                "settings by hand"
            )
        return self
