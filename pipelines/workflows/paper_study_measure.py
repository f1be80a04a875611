"""Measure the systems of `presto study paper`: all on the same prompts, noise and real music, each of them once.

Samples and rows are kept in a folder by artifact and settings, so that a later run measures only what is new. A row has
a system's metrics, and for claims their replicates without each group of tracks (metrics/intervals).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipelines.cluster.actor_pool import open_pool
from pipelines.data.dataset import LatentDataset, open_dataset
from pipelines.evaluate.comparison import select_prompts
from pipelines.evaluate.quality import Compared, make_sets, measure_row, measure_validation
from pipelines.evaluate.sampling import sample_systems
from pipelines.evaluate.systems import EvaluatedSystem, count_evaluations, list_real_systems, make_sampled_system
from pipelines.workflows.heldout_loss import measure_heldout_loss
from pipelines.workflows.paper_study_cells import TEACHER, StudySystem
from pipelines.workflows.paper_study_plan import Study
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import read_bytes, write_bytes
from presto_core.config.noise import NoiseDistribution
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import EvaluateStage
from presto_core.metrics.embedders.embedder import Embedder
from presto_core.metrics.embedders.table import load_embedders
from presto_core.metrics.intervals import explain_missing_intervals
from presto_core.metrics.replicates import Folds, Replicates, replicate_metrics
from presto_core.models.model_card import ModelCard
from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas

CLAIM_METRICS = ("mmd", "precision", "recall", "density", "coverage", "sample_distance")
LOSS = "loss_at_budget"
ROW_FORMAT, DEFAULT_GROUPS = 1, 20
FLOOR_FILE = "floor.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class StudyEvaluation:
    """One evaluation of many models of a teacher.

    Attributes:
        config: its `evaluate` section; audio is not kept, and intervals come from replicates.
        p_train: distribution of the noise levels of the held-out loss.
        root: folder that keeps samples and rows.
    """

    config: EvaluateStage
    dataset: Artifact
    teacher: Artifact
    p_train: NoiseDistribution
    root: Folder

    def measure(self, systems: Mapping[StudySystem, Artifact]) -> dict[StudySystem, Row]:
        """The row of each system of a model; those measured before are read."""
        pending = {s: a for s, a in systems.items() if not self._folder(s.rho).exists(_row_file(s, a))}
        if pending:
            with open_pool(self.config.cluster, len(pending)):  # once for all schedules
                for rho in sorted({system.rho for system in pending}, key=lambda value: value or 0.0):
                    self._measure({s: a for s, a in pending.items() if s.rho == rho}, rho)
        return {s: json.loads(read_bytes(self._folder(s.rho), _row_file(s, a))) for s, a in systems.items()}

    def is_measured(self, system: StudySystem, artifact_id: str) -> bool:
        return self._folder(system.rho).exists(_row_file_of(system, artifact_id))

    def measure_floor(self) -> Row:
        """The row of real music of the training split."""
        if not self._folder().exists(FLOOR_FILE):
            reference, floor, _, _ = self._yardstick
            write_bytes(self._folder(), FLOOR_FILE, json.dumps(self._make_row(floor, reference, None)).encode())
        row: Row = json.loads(read_bytes(self._folder(), FLOOR_FILE))
        return row

    def _config(self, rho: float | None = None) -> EvaluateStage:
        settings = self.config.evaluate
        schedule = settings.schedule or ScheduleConfig()  # of all models, whatever they store
        schedule = schedule if rho is None else schedule.model_copy(update={"rho": rho})
        update = {"schedule": schedule, "save_audio": 0, "interval_groups": 0}
        return self.config.model_copy(update={"evaluate": settings.model_copy(update=update)})

    def _folder(self, rho: float | None = None) -> Folder:
        """Where samples of these settings are kept."""
        body = [ROW_FORMAT, self._config(rho).result_config(), self.dataset.id, self.teacher.id]
        body += [self.p_train.to_config(), self.config.evaluate.interval_groups]
        return self.root.child(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16])

    @cached_property
    def _latents(self) -> LatentDataset:
        return open_dataset(self.dataset.uri)

    @cached_property
    def _embedders(self) -> list[Embedder]:
        return list(load_embedders(self.config.evaluate.embedders))

    @cached_property
    def _yardstick(self) -> tuple[Compared, Compared, Compared, Compared | None]:
        """Test clips, training clips, the teacher's by its first sampler, and validation clips if there are any."""
        data, first = self._latents, self.config.evaluate.base[0]
        teacher = to_evaluated(
            StudySystem(TEACHER, first.steps, sampler=first), self.teacher, self._config().evaluate.schedule
        )
        listed = [*list_real_systems(data.test_split)[:2], teacher.on_split(data.test_split)]
        if self._is_validated:
            listed.append(list_real_systems(data.validation_split)[0])
        pairs = self._sample(listed, {}, None)
        return pairs[0], pairs[1], pairs[2], pairs[3] if self._is_validated else None

    @property
    def _is_validated(self) -> bool:
        data = self._latents
        has_rows = any(shard["split"] == data.validation_split for shard in data.info["shards"])
        return has_rows and data.validation_split != data.test_split and self.config.evaluate.validation_samples > 0

    def _sample(self, systems: Sequence[EvaluatedSystem], models: dict[str, str], rho: float | None) -> list[Compared]:
        config = self._config(rho)
        prompts = select_prompts(config.evaluate, list(systems), {}, self._latents)
        uris = {"dataset": self.dataset.uri, "teacher": self.teacher.uri} | models
        samples = sample_systems(config, list(systems), uris, self._folder(rho), {})
        return [Compared(system, samples[system], prompts[system]) for system in systems]

    def _measure(self, systems: dict[StudySystem, Artifact], rho: float | None) -> None:
        """Sample and measure systems of one schedule, and write their rows."""
        reference, _, teacher, validation = self._yardstick
        evaluated = {s: to_evaluated(s, a, self._config(rho).evaluate.schedule) for s, a in systems.items()}
        splits = [self._latents.test_split] + ([self._latents.validation_split] if validation else [])
        unique = list(dict.fromkeys(e.on_split(split) for e in evaluated.values() for split in splits))
        models = {a.id: a.uri for a in systems.values() if a.id != self.teacher.id}
        found = {one.system: one for one in self._sample(unique, models, rho)}
        for system, artifact in systems.items():
            test, *validated = (found[evaluated[system].on_split(split)] for split in splits)
            row = self._make_row(test, reference, teacher)
            if validation:
                row["validation"] = measure_validation(validated[0], validation)
            if system.sampler:
                row["replicates"][LOSS] = self._measure_loss(artifact)
                row[LOSS] = row["replicates"][LOSS]["value"]
            blocks = count_blocks(system, artifact, self._config().evaluate.schedule or ScheduleConfig())
            if blocks is not None:
                row["blocks_run"] = blocks
            write_bytes(self._folder(rho), _row_file(system, artifact), json.dumps(row).encode())

    def _make_row(self, one: Compared, reference: Compared, teacher: Compared | None) -> Row:
        row = measure_row(one, reference, teacher, self._embedders, self._config().evaluate)
        sets = make_sets(one, reference, teacher, nearest_k=self.config.evaluate.nearest_k)
        groups = self.config.evaluate.interval_groups or DEFAULT_GROUPS
        replicates = {name: Replicates(row[name], (), ()) for name in CLAIM_METRICS if name in row}
        if not explain_missing_intervals(sets):
            replicates |= replicate_metrics(sets, Folds.of(sets, groups), CLAIM_METRICS)
        del row["by_embedder"]
        return row | {"replicates": {name: asdict(found) for name, found in replicates.items()}}

    def _measure_loss(self, artifact: Artifact) -> dict[str, Any]:
        groups = self.config.evaluate.interval_groups or DEFAULT_GROUPS
        return asdict(measure_heldout_loss(artifact.uri, self._latents, self.p_train, groups=groups))


def make_evaluation(study: Study, teacher: Artifact, root: Folder) -> StudyEvaluation:
    """The evaluation of a teacher's cells."""
    assert study.dataset
    return StudyEvaluation(study.evaluate, study.dataset, teacher, study.settings.p_train, root)


def count_blocks(system: StudySystem, artifact: Artifact, schedule: ScheduleConfig) -> int | None:
    """Transformer blocks executed per clip, from the model's card; None for Heun, which visits levels twice."""
    card, how = ModelCard(**artifact.manifest["model"]), system.sampler
    if how and how.sampler == "heun":
        return None
    levels = (karras_sigmas if how else few_step_sigmas)(
        system.steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=system.rho or schedule.rho
    )[: system.steps]
    return sum(
        (card.budget.blocks_at(level) if card.budget else card.depth) * (how.count_passes(level) if how else 1)
        for level in levels.tolist()
    )


def to_evaluated(system: StudySystem, artifact: Artifact, schedule: ScheduleConfig | None) -> EvaluatedSystem:
    """The system of an artifact as evaluation samples it, named by the artifact: cells of one run are one system."""
    how, kind = system.sampler, artifact.kind
    if how is None:
        name = f"{artifact.id} {system.steps}"
        return EvaluatedSystem(name, "generator", system.steps, system.steps, artifact.id, artifact.id)
    model, nfe = "teacher" if kind == "teacher" else artifact.id, count_evaluations(how, artifact, schedule)
    return make_sampled_system(artifact.id, kind, model, how, nfe)


def _row_file(system: StudySystem, artifact: Artifact) -> str:
    return _row_file_of(system, artifact.id)


def _row_file_of(system: StudySystem, artifact_id: str) -> str:
    how = f"{system.sampler.sampler}-{system.sampler.guidance_scale:g}" if system.sampler else "ping_pong"
    if system.sampler and (restraints := system.sampler.guidance_label.split()[1:]):
        how = "-".join([how, *restraints])
    return f"row-{artifact_id}-{how}-{system.steps}.json"
