"""Thresholds of `presto registry promote`: what a version must satisfy to become the champion."""

from __future__ import annotations

from pydantic import Field

from presto_core.config.section import Count, Positive, Section


class PromoteConfig(Section):
    max_fd: Positive | None = None
    """Largest Fréchet distance to held-out music; empty sets no limit."""
    max_fd_ratio: Positive = 1.05
    """Largest ratio to the champion's distance, at the upper end of the confidence interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap_draws: Count = 200
    """Bootstrap resamples for the interval."""
    max_latency_ms: Positive | None = None
    """Longest sampling time per clip, on the hardware it was measured on; empty sets no limit."""
    max_latency_ratio: Positive = 1.25
    """Largest ratio to the champion's sampling time, if both were measured on the same hardware."""
    licences: tuple[str, ...] = ()
    """Licences the data may have, with wildcards; empty allows all."""
    require_licence: bool = True
    """Refuse a version whose data have no known licence."""
    require_health: bool = True
    """Refuse a version whose training ended with health signals out of range, or recorded none."""
