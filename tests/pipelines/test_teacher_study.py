"""`presto study teacher`: settings, table, verdict and its warning, on a tiny teacher and a made-up report."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.data.dataset import open_dataset
from pipelines.data.latent_spectrum import measure_spectrum
from pipelines.evaluate.denoising import compare_with_wiener
from pipelines.evaluate.gate_report import make_gate_table, plot_denoising, to_markdown
from pipelines.inference.model import open_model
from pipelines.registry import names
from pipelines.registry.gate_verdict import explain_verdict, read_verdict, record_verdict
from pipelines.stages import distill_layers
from pipelines.storage.filesystem import open_folder
from pipelines.workflows.teacher_study import FOLDER, load_gate_config
from presto_core.artifacts.manifest import Artifact, artifact_folder, commit_artifact
from presto_core.config.loader import load_config
from presto_core.config.schema import LayersStage
from presto_core.diffusion.wiener import denoise_wiener
from presto_core.metrics.denoising import SIGMAS, DenoisingComparison, list_denoising_lines
from presto_core.metrics.teacher_gate import GateLine
from tests.support.tiny_registry import TinyRegistry

MEASURED = {"precision": 0.4, "intervals": {"precision": [0.38, 0.42]}}
LINES = [
    GateLine("clips with clipped samples", 0.123, 0.05, "lower", (0.081, 0.177), "x"),
    GateLine("error / Wiener's, sigma 0.059", 1.234, 1.0, "lower", (1.201, 1.267), "x", ".3f"),
    GateLine("40 steps better than 8", 123.4, 0.0, "higher", (-100.3, 347.1), "x", ".1f"),
    GateLine("precision / real music's", 0.8, 0.5, "higher", None, "x"),
]


@pytest.fixture
def teacher(home: TinyRegistry) -> Iterator[Artifact]:
    """The tiny teacher; its registered version has no verdict after the test."""
    artifact = home.made["base"]
    yield artifact
    for version in home.catalog.list_artifact_versions(artifact.id):
        if version.gate:
            home.client.delete_model_version_tag(version.name, str(version.number), names.GATE)


@pytest.fixture
def report(home: TinyRegistry) -> Iterator[str]:
    """The id of a stored report in which 8 steps beat 40; its folder is gone after the test."""
    artifact_id = "e" * 16
    rows = [
        {"name": f"teacher {n}", "role": "teacher", "model": "teacher", "steps": n, "mmd": 0.1 * n} for n in (40, 8)
    ]
    gate = {"teacher": MEASURED | {"name": "teacher 40"}, "floor": MEASURED, "step_differences": {}}
    content = {"systems": rows, "floor": {}, "gate": gate}
    folder = artifact_folder(open_folder(home.root), artifact_id)
    commit_artifact(
        folder,
        kind="report",
        artifact_id=artifact_id,
        config_yaml="",
        parents={"teacher": home.made["base"].id, "dataset": home.made["data"].id},
        files={"report.json": json.dumps(content).encode()},
        details={"report": {"format": 2}},
    )
    yield artifact_id
    folder.delete()


# --- the command


def test_a_failing_line_ends_with_code_1_and_the_verdict_becomes_a_tag_and_files(
    home: TinyRegistry, teacher: Artifact, report: str, in_registry_folder: None
) -> None:
    done = CliRunner().invoke(app, ["study", "teacher", "--report", report, *home.args()], catch_exceptions=False)
    assert done.exit_code == 1
    verdict = read_verdict(home.client, teacher)
    assert verdict.startswith("failed: ")
    assert "40 steps better than 8" in verdict
    stored = json.loads((FOLDER / teacher.id / "gate.json").read_text())
    assert stored["verdict"] == verdict
    assert (stored["teacher"], stored["report"]) == (teacher.id, report)
    assert [one["sigma"] for one in stored["denoising"]] == list(SIGMAS)
    assert (FOLDER / teacher.id / "denoising.png").read_bytes().startswith(b"\x89PNG")
    assert verdict in " ".join(done.stdout.split())
    again = CliRunner().invoke(app, ["study", "teacher", "--report", teacher.id, *home.args()])
    assert again.exit_code == 1
    assert "kind teacher" in str(again.exception)


def test_study_alone_is_the_study_of_seeds_and_prints_so() -> None:
    plain = CliRunner().invoke(app, ["study", "science", "--dry-run"], catch_exceptions=False)
    named = CliRunner().invoke(app, ["study", "seeds", "science", "--dry-run"], catch_exceptions=False)
    assert (plain.exit_code, plain.stdout) == (0, named.stdout)
    assert "short for presto study seeds" in plain.stderr
    assert "short for" not in named.stderr


def test_the_teacher_is_evaluated_alone_with_each_of_its_samplers_at_40_8_and_4_steps() -> None:
    guided = "{sampler: euler, steps: 1, guidance_scale: 2}, {guidance_scale: 2, guidance_interval: [0.3, 5]}"
    base = f"evaluate.base=[{{sampler: heun, steps: 18}}, {guided}, {{sampler: heun}}]"
    config = load_gate_config("demo", [base, "evaluate.validation_samples=48"])
    found = [(one.sampler, one.steps, one.guidance_label) for one in config.evaluate.base]
    kinds = (("heun", ""), ("euler", " w=2"), ("dpmpp_2m", " w=2 at 0.3-5"))
    assert found == [(sampler, n, guidance) for sampler, guidance in kinds for n in (40, 8, 4)]
    assert set(config.references()) == {"dataset", "teacher"}
    assert config.evaluate.num_samples == 48  # training clips, the floor, at the same number


# --- denoising error


def test_a_model_that_is_the_wiener_denoiser_of_the_data_set_ties_at_every_level(home: TinyRegistry) -> None:
    dataset, model = open_dataset(home.made["data"].uri), open_model(home.made["base"].uri)
    spectrum = measure_spectrum(dataset, model.card)

    def denoise(x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return denoise_wiener(x, sigma, spectrum)

    comparisons = compare_with_wiener(replace(model, denoise=denoise), dataset, rows=8)  # type: ignore[arg-type]
    assert [one.ratio for one in comparisons] == [1.0] * len(SIGMAS)
    assert {line.outcome for line in list_denoising_lines(comparisons)} == {"undecided"}


def test_the_spectrum_of_a_data_set_is_that_of_its_normalised_training_rows(home: TinyRegistry) -> None:
    """The rows are white, and the model normalises them to unit variance."""
    dataset, model = open_dataset(home.made["data"].uri), open_model(home.made["base"].uri)
    spectrum = measure_spectrum(dataset, model.card)
    assert spectrum.shape == (model.card.channels, model.card.frames)
    assert spectrum.mean().item() == pytest.approx(1.0, abs=0.05)


# --- table and figure


def test_the_table_fits_80_columns_with_every_value() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(make_gate_table("gate of teacher 0123456789abcdef", LINES))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for value in ("1.201 to 1.267", "-100.3 to 347.1", "> 0.50", "< 0.05", "undecided", "fail"):
        assert value in text
    rows = [line for line in text.splitlines() if "sigma 0.059" in line]
    assert len(rows) == 1
    assert "error / Wiener's, sigma 0.059" in rows[0]


def test_the_table_of_the_docs_has_a_row_per_line() -> None:
    rows = to_markdown(LINES).splitlines()
    assert len(rows) == 2 + len(LINES)
    assert rows[2] == "| clips with clipped samples | 0.12 | 0.08 to 0.18 | < 0.05 | fail |"


def test_the_figure_is_a_picture_also_without_intervals() -> None:
    comparisons = [DenoisingComparison(s, 0.4, 0.5, 0.8, None) for s in (0.1, 1.0)]
    assert plot_denoising(comparisons).startswith(b"\x89PNG")


# --- the verdict


def test_what_is_distilled_from_a_teacher_without_a_passed_gate_is_warned_of() -> None:
    assert explain_verdict("passed", "t") == ""
    assert "no gate result: presto study teacher" in explain_verdict("", "t")
    assert "failed: 40 steps better than 8" in explain_verdict("failed: 40 steps better than 8", "t")


def test_a_recorded_verdict_is_read_again_and_a_shipped_one_comes_first(home: TinyRegistry, teacher: Artifact) -> None:
    assert read_verdict(home.client, teacher) == ""
    assert record_verdict(home.client, teacher.id, "undecided: x") == 1
    assert read_verdict(home.client, teacher) == "undecided: x"
    assert home.catalog.list_artifact_versions(teacher.id)[0].to_dict()["gate"] == "undecided: x"
    shipped = replace(teacher, manifest=teacher.manifest | {"gate": {"verdict": "passed"}})
    assert read_verdict(home.client, shipped) == "passed"


def test_distilling_prints_one_line_about_the_gate_of_its_teacher(
    home: TinyRegistry, teacher: Artifact, in_registry_folder: None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "storage.root": home.root,
        "inputs.dataset": "presto-dataset@candidate",
        "cluster.num_workers": 0,
        "layers.steps": 1,
        "layers.global_batch_size": 4,
        "name": "gate-test",
        "seed": 5,
    }
    record_verdict(home.client, teacher.id, "failed: precision / real music's")
    made = distill_layers.run(load_config(LayersStage, None, settings))
    lines = [line for line in capsys.readouterr().err.splitlines() if "its gate" in line]
    assert len(lines) == 1
    assert "failed: precision / real music's" in lines[0]
    home.client.delete_registered_model("gate-test")
    artifact_folder(open_folder(home.root), made.id).delete()
