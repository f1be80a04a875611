"""`presto study teacher`: the gate that a teacher must pass before anything is distilled from it."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console import console, make_console
from pipelines.data.dataset import open_dataset
from pipelines.evaluate.denoising import compare_with_wiener
from pipelines.evaluate.gate_report import make_gate_table, plot_denoising, to_markdown
from pipelines.evaluate.report import read_report
from pipelines.inference.model import open_model
from pipelines.presets.resolve import PRESETS
from pipelines.registry.compatibility import check_teacher_matches_dataset
from pipelines.registry.gate_verdict import record_verdict
from pipelines.registry.presence import check_references
from pipelines.registry.resolve import resolve
from pipelines.stages import evaluate
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.manifest import Artifact
from presto_core.config.loader import load_config
from presto_core.config.schema import EvaluateStage
from presto_core.device import resolve_device
from presto_core.errors import UserError
from presto_core.extras import check_extra
from presto_core.metrics.denoising import DenoisingComparison, list_denoising_lines
from presto_core.metrics.teacher_gate import GateLine, list_report_lines, summarize_verdict

FOLDER = Path(".presto/studies/teacher")
STEPS = (40, 8, 4)  # the first sampler is the reference for speed
CLIPS = 128  # per sampler, of each split; presets are for evaluations on the test split, so that an override changes it
DENOISED_ROWS = 512


@dataclass(frozen=True)
class Gate:
    """The result of a teacher's gate.

    Attributes:
        teacher, dataset, report: ids of the artifacts it was measured on.
        sampler: the sampler with most steps that is best on the validation split.
        lines: the requirements.
        comparisons: denoising errors per noise level.
    """

    teacher: str
    dataset: str
    report: str
    sampler: str
    lines: tuple[GateLine, ...]
    comparisons: tuple[DenoisingComparison, ...]

    @property
    def verdict(self) -> str:
        """`passed`, `failed: ...` or `undecided: ...` with the lines that decide it."""
        return summarize_verdict(self.lines)

    @property
    def has_failed(self) -> bool:
        return any(line.outcome == "fail" for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON and for the manifest of a shipped teacher."""
        return {
            "verdict": self.verdict,
            "teacher": self.teacher,
            "dataset": self.dataset,
            "report": self.report,
            "sampler": self.sampler,
            "lines": [line.to_dict() for line in self.lines],
            "denoising": [one.to_dict() for one in self.comparisons],
        }


def run(preset: str | None, overrides: list[str], *, report: str = "") -> Gate:
    """Measure the gate of a teacher: evaluate it alone, or read a report that holds it.

    Args:
        report: registry name, id or URI of a report to read; empty evaluates `inputs.teacher`.

    Raises:
        UserError: an artifact is unknown or does not fit, or the evaluation failed.
    """
    config = load_gate_config(preset, overrides)
    if not report:
        check_references(config.tracking, config.references())
        return check_teacher(config)
    artifact = _resolve(config, report)
    if artifact.kind != "report":
        raise UserError(f"--report {report} is of kind {artifact.kind}; name a report of presto evaluate")
    return measure_gate(config, artifact)


def load_gate_config(preset: str | None, overrides: list[str]) -> EvaluateStage:
    """Return the settings of the evaluation of a teacher alone; raises ConfigError."""
    own = [f"evaluate.validation_samples={CLIPS}"]
    return select_teacher(load_config(EvaluateStage, preset, [*own, *overrides], preset_folder=PRESETS))


def select_teacher(config: EvaluateStage) -> EvaluateStage:
    """Return settings that evaluate the teacher alone: each kind of `evaluate.base` at 40, 8 and 4 steps.

    A kind is a sampler with its guidance. Test clips are as few as validation clips, which decide.
    """
    kinds = dict.fromkeys(sampler.model_copy(update={"steps": STEPS[0]}) for sampler in config.evaluate.base)
    base = tuple(kind.model_copy(update={"steps": steps}) for kind in kinds for steps in STEPS)
    clips = config.evaluate.validation_samples or config.evaluate.num_samples
    settings = config.evaluate.model_copy(update={"base": base, "num_samples": clips, "folders": {}})
    inputs = config.inputs.model_copy(update={"generator": "", "compared": ()})
    return config.model_copy(update={"evaluate": settings, "inputs": inputs})


def check_teacher(config: EvaluateStage) -> Gate:
    """Evaluate the teacher of `config.inputs` alone, which reuses a finished evaluation, and measure its gate."""
    check_extra("plots", "presto study teacher")
    return measure_gate(config, evaluate.run(select_teacher(config)))


def measure_gate(config: EvaluateStage, report: Artifact) -> Gate:
    """Measure the denoising error of a report's teacher, print its gate, write it to a folder and tag the teacher."""
    parents = report.manifest["parents"]
    dataset, teacher = (_resolve(config, parents[role]) for role in ("dataset", "teacher"))
    check_teacher_matches_dataset(teacher, dataset)
    model = open_model(teacher.uri, device=resolve_device(config.cluster.device, setting="cluster.device"))
    comparisons = compare_with_wiener(model, open_dataset(dataset.uri), rows=DENOISED_ROWS, seed=config.seed)
    result = read_report(report)
    lines = [*list_denoising_lines(comparisons), *list_report_lines(result)]
    sampler = str(result.get("gate", {}).get("teacher", {}).get("name", ""))
    gate = Gate(teacher.id, dataset.id, report.id, sampler, tuple(lines), tuple(comparisons))
    folder = write_gate(gate)
    num_versions = record_verdict(open_tracker(config.tracking).client, teacher.id, gate.verdict)
    print_gate(gate)
    tagged = f"; the verdict is a tag of {num_versions} version(s) of it" if num_versions else ""
    console.print(f"study: table, figure and all numbers are in {folder}{tagged}", markup=False)
    return gate


def _resolve(config: EvaluateStage, reference: str) -> Artifact:
    return resolve(open_tracker(config.tracking).client, reference, absolute_uri(config.storage.root))


def write_gate(gate: Gate) -> Path:
    """Write gate.json, gate.md and denoising.png to a folder of the teacher, and return it."""
    folder = FOLDER / gate.teacher
    make_folders(folder)
    (folder / "gate.json").write_text(json.dumps(gate.to_dict(), indent=2))
    (folder / "gate.md").write_text(f"{to_markdown(gate.lines)}\n{gate.verdict}\n")
    (folder / "denoising.png").write_bytes(plot_denoising(gate.comparisons))
    return folder


def print_gate(gate: Gate) -> None:
    """Print the table on standard output, what it means, and the verdict."""
    output = make_console()
    output.print(make_gate_table(f"gate of teacher {gate.teacher}", gate.lines))
    for text in (describe_gate(gate), f"teacher {gate.teacher}: {gate.verdict}"):
        output.print(textwrap.fill(text, max(output.width, 80)), markup=False, highlight=False)


def describe_gate(gate: Gate) -> str:
    """What the lines of the table compare."""
    sampler = f" of {gate.sampler}, the best sampler with most steps," if gate.sampler else ""
    return (
        "All on the validation split, since the gate chooses. Error: the teacher's mean square denoising error over "
        "that of the Wiener denoiser of the training rows. Steps: MMD x 1000 of fewer steps minus that of more, each "
        f"with its best sampler. The other lines are of clips{sampler} and of training music at the same number of "
        "clips. Undecided: the interval crosses what is needed; more clips (evaluate.validation_samples) narrow it."
    )
