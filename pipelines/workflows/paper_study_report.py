"""Results of `presto study paper`: rows by teacher, seed and system, and verdicts; JSON, Markdown, figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from pipelines.console import console
from pipelines.workflows.paper_study_cells import S, StudySystem, list_teacher_systems
from pipelines.workflows.paper_study_claims import (
    CHOSEN_RHO,
    CLAIMS,
    DEFAULT_RHO,
    FIRST_SAMPLER,
    TEACHER_FEW,
    TEACHER_MANY,
    Estimate,
    PaperClaim,
    combine_verdicts,
    decide,
    estimate_contrast,
)
from pipelines.workflows.paper_study_figures import plot_group
from pipelines.workflows.paper_study_plan import FOLDER, Study
from pipelines.workflows.paper_study_tables import print_claims, to_markdown
from pipelines.workflows.study_targets import GENERATOR_STEPS, TEACHER_FEW_NFE, TEACHER_MANY_STEPS
from presto_core.artifacts.durable import make_folders
from presto_core.metrics.table import headline_metric

Row = dict[str, Any]
SHOWN = (
    "mmd", "precision", "recall", "density", "coverage", "sample_distance", "loss_at_budget", "fd_inf", "key_hits",
    "key_hits_shuffled", "tempo_hits", "tempo_hits_shuffled", "tag_hits", "clipped", "blocks_run", "nfe",
)  # fmt: skip


class StudyResults:
    """What was measured so far.

    Attributes:
        rows: teacher -> seed -> system -> row.
        failures: cell -> why it failed.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rows: dict[str, dict[int, dict[StudySystem, Row]]] = {}
        self.floors: dict[str, Row] = {}
        self.failures: dict[str, str] = {}

    def add(self, teacher: str, seed: int, rows: dict[StudySystem, Row], floor: Row) -> None:
        self.rows.setdefault(teacher, {}).setdefault(seed, {}).update(rows)
        self.floors[teacher] = floor

    def summarize(self) -> dict[str, Any]:
        """The content of results.json."""
        study, evaluate = self.study, self.study.evaluate.evaluate
        teachers = [self._summarize_teacher(reference) for reference in self.rows]
        return {
            "preset": study.preset,
            "overrides": list(study.overrides),
            "seeds": study.seeds,
            "dataset": study.dataset.id if study.dataset else "",
            "clips": evaluate.num_samples,
            "validation_clips": evaluate.validation_samples,
            "confidence": evaluate.confidence,
            "teachers": teachers,
            "claims": _combine_claims(teachers),
            "failures": self.failures,
        }

    def write(self) -> dict[str, Any]:
        """Write results.json, results.md and a figure per group and teacher, of what is measured so far."""
        result = self.summarize()
        make_folders(FOLDER)
        (FOLDER / "results.json").write_text(json.dumps(result, indent=2))
        (FOLDER / "results.md").write_text(to_markdown(result))
        for number, teacher in enumerate(result["teachers"], 1):
            for group in teacher["groups"]:
                (FOLDER / f"{group['name']}-{number}.png").write_bytes(plot_group(group, teacher["floor"]))
        return result

    def finish(self) -> dict[str, Any]:
        """Print the verdicts and where everything is."""
        result = self.write()
        print_claims(result)
        for cell, reason in self.failures.items():
            console.print(f"paper study: {cell} failed: {reason}", style="yellow", markup=False)
        console.print(f"paper study: tables, figures and all numbers are in {FOLDER}")
        return result

    def _summarize_teacher(self, reference: str) -> dict[str, Any]:
        seeds = [self.rows[reference][seed] for seed in sorted(self.rows[reference])]
        confidence = self.study.evaluate.evaluate.confidence
        named = name_rows(self.study, seeds)
        claims = [
            _summarize_claim(c, estimate_contrast(c.weights, c.metric, named, confidence=confidence))
            for c in CLAIMS
            if c.group in {group.name for group in self.study.groups}
        ]
        groups = [
            {"name": g.name, "title": g.title, "systems": _summarize_systems(g.systems, seeds, confidence)}
            for g in self.study.groups
        ]
        return {
            "reference": reference,
            "id": self.study.teachers[reference].id,
            "floor": {name: self.floors[reference][name] for name in SHOWN if name in self.floors[reference]},
            "samplers": _summarize_systems(list_teacher_systems(self.study.settings), seeds, confidence),
            "chosen": {alias: rows[alias]["system"] for rows in named for alias in ALIASES if alias in rows},
            "groups": [group for group in groups if group["systems"]],
            "claims": claims,
        }


ALIASES = (CHOSEN_RHO, DEFAULT_RHO, TEACHER_MANY, TEACHER_FEW)


def name_rows(study: Study, seeds: list[dict[StudySystem, Row]]) -> list[dict[str, Row]]:
    """The rows of each seed by the names that claims use; the validation split makes the choices among them."""
    systems = list(dict.fromkeys(system for rows in seeds for system in rows))
    rhos = [s for s in systems if s.cell == S and s.steps == GENERATOR_STEPS and s.rho is not None]
    samplers = [s for s in list_teacher_systems(study.settings) if s in systems and s.sampler]
    names = {system.key: system for system in systems}
    first = study.settings.samplers[0]
    names |= {f"{s.cell} {FIRST_SAMPLER}": s for s in systems if s.sampler == first}
    fitting = {
        DEFAULT_RHO: [s for s in rhos if s.rho == study.settings.schedule.rho],
        CHOSEN_RHO: rhos,
        TEACHER_MANY: [s for s in samplers if s.steps >= TEACHER_MANY_STEPS],
        TEACHER_FEW: [s for s in samplers if s.sampler and s.sampler.nfe == TEACHER_FEW_NFE],
    }
    names |= {alias: _choose_by_validation(found, seeds) for alias, found in fitting.items() if found}
    return [{name: rows[s] | {"system": s.key} for name, s in names.items() if s in rows} for rows in seeds]


def _choose_by_validation(systems: list[StudySystem], seeds: list[dict[StudySystem, Row]]) -> StudySystem:
    """The lowest mean over seeds of the headline metric on validation clips; the first system without any."""
    name = headline_metric().name
    return min(systems, key=lambda s: mean(r[s].get("validation", {}).get(name, 0.0) for r in seeds if s in r))


def _summarize_systems(
    systems: tuple[StudySystem, ...], seeds: list[dict[StudySystem, Row]], confidence: float
) -> list[dict[str, Any]]:
    return [
        _summarize_system(system, rows, confidence)
        for system in systems
        if (rows := [seed[system] for seed in seeds if system in seed])
    ]


def _summarize_system(system: StudySystem, rows: list[Row], confidence: float) -> dict[str, Any]:
    """A system over seeds: metric -> mean, standard deviation, values and interval."""
    described: dict[str, Any] = {"key": system.key, "cell": system.cell, "steps": system.steps, "rho": system.rho}
    described |= {"artifacts": [row["label"].split()[0] for row in rows]}
    for name in SHOWN:
        if values := [row[name] for row in rows if row.get(name) is not None]:
            described[name] = _summarize_values(values)
            estimate = estimate_contrast({"": 1.0}, name, [{"": row} for row in rows], confidence=confidence)
            if estimate and estimate.half_width == estimate.half_width:
                described[name]["interval"] = list(estimate.interval)
    headline = headline_metric().name
    if validated := [row["validation"][headline] for row in rows if row.get("validation")]:
        described["validation"] = _summarize_values(validated)
    return described


def _summarize_values(values: list[float]) -> dict[str, Any]:
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "by_seed": values}


def _summarize_claim(claim: PaperClaim, estimate: Estimate | None) -> dict[str, Any]:
    described = asdict(claim) | {"verdict": decide(estimate, claim.sign)}
    if estimate:
        half = estimate.half_width
        interval = list(estimate.interval) if half == half else None
        described |= {"value": estimate.value, "interval": interval, "by_seed": list(estimate.by_seed)}
    return described


def _combine_claims(teachers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each claim with the verdict that all teachers share."""
    return [
        {name: found[0][name] for name in ("group", "text", "metric", "paper")}
        | {"verdict": combine_verdicts([one["verdict"] for one in found]), "by_teacher": [c["verdict"] for c in found]}
        for found in zip(*(teacher["claims"] for teacher in teachers))
    ]
