"""Checks before a promotion that compare clips: enough of them, the noise floor, the teacher and the champion.

`--accept-worse` accepts these, and only these: a failure is then recorded with its numbers, not hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pipelines.registry.model_comparison import NOISE_SHARE, Comparison, Evidence, NotComparableError
from pipelines.registry.promotion_check import PromotionCheck
from presto_core.metrics.table import METRICS

_format = METRICS["mmd"].format_value


def check_samples(evidence: Evidence) -> PromotionCheck:
    """Whether there are enough clips and tracks to decide each comparison; if not, how many would do."""
    name, enough = "samples", "enough to tell"
    if evidence.is_champion:
        return PromotionCheck(name, True, "it is the champion", "any")
    reference, candidate = evidence.samples.reference, evidence.candidate.artifact_id
    mine = evidence.samples.select(candidate)
    comparisons = evidence.list_comparisons()
    counts = {
        "clips": mine.clips,
        "tracks": mine.embeddings.tracks,
        "reference_clips": reference.clips,
        "reference_tracks": reference.embeddings.tracks,
    }
    found = f"{mine.clips} clips of {counts['tracks']} tracks, real music of {counts['reference_tracks']}"
    open_ones = [comparison for comparison in comparisons if not _is_decided(comparison, evidence)]
    if not open_ones:
        return PromotionCheck(name, True, found, enough if comparisons else "any", numbers=counts)
    growth = max(comparison.compute_growth() for comparison in open_ones)
    labels = " and ".join(comparison.label for comparison in open_ones)
    found += f": too few to tell from {labels}"
    if not math.isfinite(growth):
        return PromotionCheck(name, False, found, enough, fix=f"{labels} is as close as real music", numbers=counts)
    needed = {"needed_clips": _round_up(growth * mine.clips), "needed_tracks": _round_up(growth * counts["tracks"])}
    with_champion = evidence.champion is not None and evidence.champion.label in labels
    fix = evidence.describe_evaluation(
        with_champion=with_champion, settings=[f"evaluate.validation_samples={needed['needed_clips']}"]
    )
    if needed["needed_tracks"] > counts["reference_tracks"]:
        fix += f" (on a validation split of {needed['needed_tracks']} tracks or more: ingest.validation_fraction)"
    wanted = f"about {needed['needed_clips']} clips of {needed['needed_tracks']} tracks"
    return PromotionCheck(name, False, found, wanted, fix=fix, numbers=counts | needed)


def check_noise_floor(evidence: Evidence) -> PromotionCheck:
    """Whether the report can tell anything: its metric is fit, and real music is close to other real music."""
    name, share = "noise floor", evidence.limits.max_floor_share
    if share is None or evidence.is_champion:
        return PromotionCheck(name, True, "it is the champion" if evidence.is_champion else "not compared", "any")
    fitness, fix = evidence.samples.fitness, evidence.describe_evaluation()
    if not fitness:
        return PromotionCheck(name, False, "whether MMD is fit for this music was not tested", "tested", fix=fix)
    if fitness["state"] == "failed":
        return PromotionCheck(name, False, f"MMD is not fit for this music: {fitness['reason']}", "fit")
    floor, noise = evidence.floor, evidence.noise
    limits = {f"{NOISE_SHARE:g} of that with noise": evidence.floor_limit}
    if not evidence.is_like_real:
        limits |= {f"{share:g} of {c.label}": share * max(c.ratio.theirs, 0.0) for c in evidence.list_comparisons()}
    of, limit = min(limits.items(), key=lambda item: item[1])
    wanted = f"≤ {_format(limit)}, {of}"
    found = f"MMD x 1000 of other real music: {_format(floor.value)} ({_format(floor.low)} to {_format(floor.high)})"
    found += "; the version cannot be told from it" if evidence.is_like_real else ""
    numbers = {
        "floor": floor.value,
        "interval": [floor.low, floor.high],
        "noise": noise.value,
        "limits": limits,
        "like_real_music": evidence.is_like_real,
    }
    if floor.high <= limit:
        return PromotionCheck(name, True, found, wanted, numbers=numbers)
    return PromotionCheck(name, False, found, wanted, fix=_fix_floor(evidence, limit), numbers=numbers)


def _fix_floor(evidence: Evidence, limit: float) -> str:
    """More samples if they would do; otherwise the splits or the embedding are to blame."""
    floor, reference = evidence.floor, evidence.samples.reference.embeddings.tracks
    room = limit - max(floor.value, 0.0)
    if room <= 0:
        return "the splits hold different music, or the embedding does not fit it: presto report, evaluate.embedders"
    growth = (floor.half / room) ** 2
    clips = _round_up(growth * evidence.samples.select(evidence.candidate.artifact_id).clips)
    settings = [f"evaluate.num_samples={clips}", f"evaluate.validation_samples={clips}"]
    return (
        f"{evidence.describe_evaluation(settings=settings)} (on {_round_up(growth * reference)} tracks of real music)"
    )


def compare_with_teacher(evidence: Evidence) -> PromotionCheck:
    """Against the best setting of what the candidate was distilled from."""
    name, limits = "against teacher", evidence.limits
    wanted = "any"
    if limits.max_teacher_ratio is not None:
        wanted = f"up to {limits.max_teacher_ratio:g} x, not all above {limits.worse_teacher_ratio:g} x"
    if evidence.is_champion:
        return PromotionCheck(name, True, "it is the champion", wanted)
    if evidence.candidate.kind == "teacher":
        return PromotionCheck(name, True, "it is a teacher, which has none but the champion", "any")
    if not evidence.teacher_id:
        return _pass_or_fail(name, limits.max_teacher_ratio, "its parents name no teacher", "a teacher among parents")
    if limits.max_teacher_ratio is None:
        return _describe_unlimited(name, lambda: evidence.with_teacher)
    comparison = evidence.with_teacher
    passed = comparison.outcome == "good enough" or evidence.is_like_real
    return PromotionCheck(name, passed, _describe(comparison), wanted, numbers=comparison.to_dict())


def compare_with_champion(evidence: Evidence) -> PromotionCheck:
    """Against the champion's chosen setting."""
    name, ratio = "against champion", evidence.limits.max_mmd_ratio
    wanted = "any" if ratio is None else f"up to {ratio:g} x"
    if evidence.champion is None:
        return PromotionCheck(name, True, "there is no champion yet", wanted)
    if evidence.is_champion:
        return PromotionCheck(name, True, "it is the champion", wanted)
    if ratio is None:
        return _describe_unlimited(name, lambda: evidence.with_champion)
    comparison = evidence.with_champion
    return PromotionCheck(
        name, comparison.outcome == "good enough", _describe(comparison), wanted, numbers=comparison.to_dict()
    )


def _is_decided(comparison: Comparison, evidence: Evidence) -> bool:
    """Whether more samples would change nothing; like real music is good enough, whatever the teacher."""
    is_of_champion = evidence.champion is not None and comparison.label == evidence.champion.label
    return comparison.outcome != "undecided" or (evidence.is_like_real and not is_of_champion)


def _pass_or_fail(name: str, limit: float | None, found: str, wanted: str) -> PromotionCheck:
    return PromotionCheck(name, limit is None, found, "any" if limit is None else wanted)


def _describe_unlimited(name: str, compare: Callable[[], Comparison]) -> PromotionCheck:
    """A check without a limit passes, whatever is found and even if nothing can be."""
    try:
        comparison = compare()
    except NotComparableError as error:
        return PromotionCheck(name, True, f"not compared: {error}", "any")
    return PromotionCheck(name, True, _describe(comparison), "any", numbers=comparison.to_dict())


def _describe(comparison: Comparison) -> str:
    ratio = comparison.ratio
    low, high = ratio.interval
    values = f"MMD x 1000: {_format(ratio.mine)}, {_format(ratio.theirs)} of {comparison.label}"
    ends = f"{low:.2f} to {high:.2f}" if math.isfinite(high) else f"{low:.2f} or more"
    verdict = {"good enough": "", "worse": ": worse", "undecided": ": undecided"}[comparison.outcome]
    return f"{values}: {ratio.ratio:.2f} x ({ends}){verdict}"


def _round_up(value: float) -> int:
    """To two significant digits: needs are estimates."""
    unit = 10 ** max(math.floor(math.log10(max(value, 1.0))) - 1, 0)
    return math.ceil(value / unit) * unit
