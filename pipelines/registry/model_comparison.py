"""Compares a candidate with its teacher and with the champion, by clips that their reports hold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.report_samples import FLOOR, NOISE, ChosenSamples, ReportSamples, read_samples
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import read_artifact
from presto_core.config.promotion import PromoteConfig
from presto_core.errors import UserError
from presto_core.metrics.mmd_ratio import GroupedEmbeddings, MmdEstimate, MmdRatio, compare_mmd, estimate_mmd
from presto_core.models.pretrained import find_export_of

Outcome = Literal["good enough", "worse", "undecided"]
POWER = 0.8
NOISE_SHARE = 0.1
"""Of the MMD that noise at 10 dB gives real music: what lies below is close to real music."""


class NotComparableError(UserError):
    """Models cannot be compared by the reports that there are; `fix` is the command that makes one."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class TooFewTracksError(NotComparableError):
    """Clips or real music are of too few tracks for an interval."""


@dataclass(frozen=True)
class Comparison:
    """A candidate's MMD in relation to that of another model.

    Attributes:
        label: what tables call the other model.
        low_limit: a ratio whose lower end lies above it is worse.
        high_limit: a ratio whose upper end lies above it is not good enough.
    """

    label: str
    mine: ChosenSamples
    theirs: ChosenSamples
    reference: ChosenSamples
    ratio: MmdRatio
    low_limit: float
    high_limit: float

    @property
    def outcome(self) -> Outcome:
        if self.ratio.compute_excess(self.low_limit).low > 0:
            return "worse"
        return "good enough" if self.ratio.compute_excess(self.high_limit).high <= 0 else "undecided"

    def compute_growth(self) -> float:
        """How many times as many samples would decide, with a probability of `POWER`: intervals shrink with the root.

        The distance to a limit, in which half an interval has to fit, is that which was found, or that of a model
        equal to the other one, whichever is larger.
        """
        at_low, at_high = (self.ratio.compute_excess(limit) for limit in (self.low_limit, self.high_limit))
        of_equals = (self.high_limit - 1) * self.ratio.theirs
        pairs = ((at_low.half, at_low.value), (at_high.half, -at_high.value), (at_high.half, of_equals))
        reach = 1 + NormalDist().inv_cdf(POWER) / self.ratio.quantile
        return min(((reach * half / distance) ** 2 for half, distance in pairs if distance > 0), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.ratio.interval
        ends = [low, high if math.isfinite(high) else None]  # JSON has no infinity
        return {
            "against": self.label,
            "settings": [self.mine.system, self.theirs.system],
            "mmd": self.ratio.mine,
            "mmd_against": self.ratio.theirs,
            "ratio": self.ratio.ratio if math.isfinite(self.ratio.ratio) else None,
            "interval": ends,
            "limits": [self.low_limit, self.high_limit],
            "outcome": self.outcome,
        }


@dataclass
class Evidence:
    """What the checks of one candidate compare, each read once.

    Its properties raise UserError if reports lack something: NotComparableError with the command that makes it.
    """

    client: Any
    candidate: Version
    champion: Version | None
    limits: PromoteConfig

    @property
    def is_champion(self) -> bool:
        return self.champion is not None and self.champion.content == self.candidate.content

    @property
    def teacher_id(self) -> str:
        """What the candidate was distilled from; empty for a teacher, and if its parents are unknown."""
        return "" if self.candidate.kind == "teacher" else self.candidate.parents.get("teacher", "")

    @cached_property
    def samples(self) -> ReportSamples:
        return self._read_report(self.candidate)

    @cached_property
    def with_teacher(self) -> Comparison:
        """Against the best setting of its teacher, in the candidate's own report."""
        found = self.samples.find_model(self.teacher_id)
        if found is None:
            other = self.samples.report.manifest["parents"].get("teacher")
            raise NotComparableError(
                f"report {self.samples.report.id} compares it with teacher {other}, and its own is {self.teacher_id}",
                fix=self.describe_evaluation(),
            )
        theirs = self._select(self.samples, found)
        low, high = self.limits.worse_teacher_ratio, self.limits.max_teacher_ratio or self.limits.worse_teacher_ratio
        return self._compare(theirs.system, theirs, low, high)

    @cached_property
    def with_champion(self) -> Comparison:
        """Against the champion's chosen setting, from one report or two comparable ones."""
        assert self.champion is not None
        samples, champion = self.samples, self.champion
        found = samples.find_model(champion.artifact_id)
        other = samples if found else self._read_report(champion)
        fix = self.describe_evaluation(with_champion=True)
        if other.comparison_key != samples.comparison_key:
            raise NotComparableError(
                f"{self.candidate.label} and the champion were evaluated with different measures "
                f"({_describe_measure(samples, self.candidate)}; {_describe_measure(other, champion)})",
                fix=fix,
            )
        if not np.isin(other.reference.embeddings.groups, samples.reference.embeddings.groups).any():
            raise NotComparableError(
                f"{self.candidate.label} and the champion were evaluated on different splits of the data set", fix=fix
            )
        ratio = self.limits.max_mmd_ratio or 1.0
        return self._compare(champion.label, self._select(other, found or champion.artifact_id), ratio, ratio)

    @cached_property
    def floor(self) -> MmdEstimate:
        """Real music of the training split against that of the validation split."""
        return self._estimate(self._get_control(FLOOR))

    @cached_property
    def noise(self) -> MmdEstimate:
        """The same music with noise."""
        return self._estimate(self._get_control(NOISE))

    @property
    def floor_limit(self) -> float:
        """What real music must stay below: a report in which noise is hardly worse than music tells too little."""
        return NOISE_SHARE * max(self.noise.low, 0.0)

    @cached_property
    def is_like_real(self) -> bool:
        """Whether the candidate is shown to be close to real music and cannot be told from it: none can be better.

        False if the report cannot tell, or has no limit for it.
        """
        if self.limits.max_floor_share is None:
            return False
        try:
            mine = self._estimate(self._select(self.samples, self.candidate.artifact_id).embeddings)
            is_close = max(mine.high, self.floor.high) <= self.floor_limit
            return is_close and mine.low <= self.floor.high and self.samples.fitness.get("state", "failed") != "failed"
        except UserError:  # the check of the floor has the message
            return False

    def list_comparisons(self) -> list[Comparison]:
        """Return those that limits ask for and reports allow; raises TooFewTracksError."""
        wanted = {
            "with_teacher": bool(self.teacher_id) and self.limits.max_teacher_ratio is not None,
            "with_champion": self.champion is not None and self.limits.max_mmd_ratio is not None,
        }
        found = []
        for name in (name for name, is_wanted in wanted.items() if is_wanted and not self.is_champion):
            try:
                found.append(getattr(self, name))
            except TooFewTracksError:
                raise
            except UserError:  # its own check has the message
                continue
        return found

    def describe_evaluation(self, *, with_champion: bool = False, settings: Iterable[str] = ()) -> str:
        """Return the command that evaluates the candidate with its teacher, and the champion if wanted."""
        candidate, champion = self.candidate.artifact_id, self.champion if with_champion else None
        if self.candidate.kind == "teacher":
            teachers = [candidate, *([champion.artifact_id] if champion else [])]
            inputs = [f"inputs.teacher={teacher} inputs.generator=\"''\"" for teacher in teachers]
        else:
            teacher = find_export_of(self.teacher_id) or self.teacher_id
            parts = [f"inputs.teacher={teacher}"] if teacher else []
            parts += [f"inputs.generator={candidate}"]
            parts += [f"inputs.compared=[{champion.artifact_id}]"] if champion else []
            inputs = [" ".join(parts)]
        return " && ".join(" ".join(("presto evaluate", one, *settings)) for one in inputs)

    def _compare(self, label: str, theirs: ChosenSamples, low: float, high: float) -> Comparison:
        mine, reference = self._select(self.samples, self.candidate.artifact_id), self.samples.reference
        sides = (mine.embeddings, theirs.embeddings, reference.embeddings)
        try:
            ratio = compare_mmd(*sides, groups=self.limits.interval_groups, confidence=self.limits.confidence)
        except ValueError as error:
            raise self._explain_few_tracks(error) from None
        return Comparison(label, mine, theirs, reference, ratio, low, high)

    def _estimate(self, one: GroupedEmbeddings) -> MmdEstimate:
        real, limits = self.samples.reference.embeddings, self.limits
        try:
            return estimate_mmd(one, real, groups=limits.interval_groups, confidence=limits.confidence)
        except ValueError as error:
            raise self._explain_few_tracks(error) from None

    def _explain_few_tracks(self, error: ValueError) -> TooFewTracksError:
        fix = self.describe_evaluation(settings=["evaluate.validation_samples=512"])
        return TooFewTracksError(f"report {self.samples.report.id}: {error}", fix=f"use more tracks: {fix}")

    def _select(self, samples: ReportSamples, artifact_id: str) -> ChosenSamples:
        try:
            return samples.select(artifact_id)
        except UserError as error:
            raise NotComparableError(str(error), fix=self.describe_evaluation()) from None

    def _get_control(self, key: str) -> GroupedEmbeddings:
        try:
            return self.samples.get_control(key)
        except UserError as error:
            raise NotComparableError(str(error), fix=self.describe_evaluation()) from None

    def _read_report(self, version: Version) -> ReportSamples:
        fix = self.describe_evaluation(with_champion=version is not self.candidate)
        if "report" not in version.measurements:
            raise NotComparableError(f"{version.label} is not evaluated", fix=fix)
        try:
            report = read_artifact(open_folder(Catalog(self.client).find(str(version.measurements["report"])).uri))
            return read_samples(report)
        except UserError as error:
            raise NotComparableError(str(error), fix=fix) from None


def _describe_measure(samples: ReportSamples, version: Version) -> str:
    """What the distances of a version depend on, to read."""
    name, _, digest = str(version.measurements.get("embedding", "an embedding unknown")).rpartition(" ")
    return f"{name} {digest[:12]} on data set {samples.dataset_id}"
