"""Thresholds of `presto registry promote`: what a version must satisfy to become the champion."""

from __future__ import annotations

from pydantic import Field

from presto_core.config.section import Positive, Section


class PromoteConfig(Section):
    """What a version must satisfy to become the champion."""

    max_mmd: Positive | None = None
    """Largest MMD to music of the validation split; empty sets no limit."""
    max_fd: Positive | None = None
    """Largest Fréchet distance to real music; empty sets no limit."""
    max_teacher_ratio: Positive | None = 1.5
    """Largest multiple of the MMD of the teacher that a version was distilled from, at the upper end of the confidence
    interval; empty sets no limit."""
    worse_teacher_ratio: Positive = 1.1
    """A version counts as worse than its teacher if even the lower end of the interval is above this multiple of its
    MMD."""
    max_mmd_ratio: Positive | None = 1.1
    """Largest multiple of the champion's MMD, at the upper end of the confidence interval; empty sets no limit."""
    max_floor_share: Positive | None = 0.5
    """Largest MMD of real music against other real music, as a share of the teacher's or champion's MMD and at the
    upper end of its interval; empty sets no limit."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Probability that an interval covers the true value."""
    interval_groups: int = Field(20, ge=4)
    """Number of groups of tracks that are left out in turn for the interval."""
    max_latency_ms: Positive | None = None
    """Longest sampling time per clip in ms, on the hardware on which it was measured; empty sets no limit."""
    max_latency_ratio: Positive = 1.25
    """Largest ratio to the champion's sampling time, if both were measured on the same hardware."""
    licences: tuple[str, ...] = ()
    """Licences that the data can have, with wildcards; empty allows all."""
    require_licence: bool = True
    """Refuse a version whose data have no known licence."""
    require_health: bool = True
    """Refuse a version whose training ended with health signals out of range, or recorded none."""
