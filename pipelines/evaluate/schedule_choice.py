"""Choose a few-step generator's noise levels on the validation split, to be stored with the generator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.console import console
from pipelines.evaluate.validator import Validator
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.validation import ValidationConfig
from presto_core.metrics.table import headline_metric

STEPS, RHOS, SIGMAS_MAX = (1, 2, 4), (3.0, 5.0, 7.0), (10.0, 20.0, 40.0, 80.0)


@dataclass(frozen=True)
class ScheduleChoice:
    """The best noise levels for a number of steps.

    Attributes:
        distance: headline metric of validation clips with them; it chose them, so that it is lower than a new one.
        default_distance: the same with the default noise levels.
        tried: number of schedules.
    """

    steps: int
    schedule: ScheduleConfig
    distance: float
    default_distance: float
    tried: int


def choose_schedules(
    uri: str,
    dataset_uri: str,
    *,
    steps: Sequence[int] = STEPS,
    rhos: Sequence[float] = RHOS,
    sigmas_max: Sequence[float] = SIGMAS_MAX,
    validation: ValidationConfig = ValidationConfig(samples=128, reference_samples=512, batch_size=16),
) -> list[ScheduleChoice]:
    """Sample validation clips with each schedule, from the same noise, and choose the lowest headline metric.

    The default schedule is always tried, and kept if none is better. Prints a line per number of steps.

    Args:
        uri: folder of a few-step generator.
        validation: number of clips, reference and embedding; its steps and schedule are not used.

    Raises:
        UserError: the data set has no validation rows, or the model is missing or not finite.
    """
    validator, name = Validator(validation, dataset_uri), headline_metric().name
    choices = []
    for number in steps:
        found = {}
        for schedule in list_schedules(number, rhos=rhos, sigmas_max=sigmas_max):
            # one validator, so that its reference is embedded once
            validator.config = validation.model_copy(update={"steps": number, "schedule": schedule})
            found[schedule] = validator(uri)[name]
        best = min(found, key=lambda schedule: found[schedule])
        choices.append(ScheduleChoice(number, best, found[best], found[ScheduleConfig()], len(found)))
        console.print(f"schedule for {_format_choice(choices[-1])}")
    return choices


def list_schedules(steps: int, *, rhos: Iterable[float], sigmas_max: Iterable[float]) -> list[ScheduleConfig]:
    """The schedules to try, the default first; with one step, rho changes nothing."""
    default = ScheduleConfig()
    tried_rhos = list(rhos) if steps > 1 else [default.rho]
    listed = [default.model_copy(update={"sigma_max": top, "rho": rho}) for top in sigmas_max for rho in tried_rhos]
    return list(dict.fromkeys([default, *listed]))


def to_card_entry(choices: Iterable[ScheduleChoice]) -> dict[str, dict[str, float]]:
    """The choices as a model card stores them: `ModelCard.few_step_schedules`."""
    return {str(choice.steps): choice.schedule.model_dump() for choice in choices}


def _format_choice(choice: ScheduleChoice) -> str:
    metric, schedule = headline_metric(), choice.schedule
    best, default = (metric.format_value(value) for value in (choice.distance, choice.default_distance))
    return (
        f"{choice.steps} step(s): sigma_max {schedule.sigma_max:g}, rho {schedule.rho:g}: {metric.title} {best} on "
        f"validation clips, {default} by default ({choice.tried} tried)"
    )
