"""`presto benchmark`: its numbers belong together, and follow the work that they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from infra.cli.main import app
from infra.planning.generation_benchmark import benchmark_generation
from pipelines.inference.generator import load_generator
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR
from tests.support.pretrained_models import export_untrained


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    export_untrained(str(tmp_path / "store"), tmp_path, name=DEFAULT_GENERATOR)
    monkeypatch.setenv("PRESTO_PRETRAINED", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_numbers_follow_the_work():
    generator = load_generator(DEFAULT_GENERATOR)
    one, four = (benchmark_generation(generator, steps=steps, budget_s=0.1) for steps in (1, 4))
    assert [found["network_calls"] for found in (one, four)] == [1, 4]
    assert four["blocks_run"] == 4 * one["blocks_run"] == 4 * generator.model.network.depth
    assert four["flops"] == pytest.approx(4 * one["flops"], rel=0.01)
    assert 3 < four["launches"] / one["launches"] < 5
    for found in (one, four):
        parts = sum(found["ms"][name]["p50"] for name in ("text", "network", "decode", "wav"))
        assert parts == pytest.approx(found["ms"]["total"]["p50"], rel=0.5)
        achieved = found["flops"] / (found["ms"]["network"]["p50"] / 1e3) / 1e9
        assert found["gflops"] == pytest.approx(achieved)
        assert 0 < found["roofline_share"] < 1.5  # of a tiny network; nothing is faster than the product but by noise
        assert found["cost_model"]["flops"] == pytest.approx(found["flops"], rel=0.5)


@pytest.mark.usefixtures("package")
def test_the_command_prints_json_for_a_plan_and_refuses_more_threads_than_cores(tmp_path: Path):
    threads = torch.get_num_threads()
    done = CliRunner().invoke(app, ["benchmark", "--steps", "1", "--json"], catch_exceptions=False)
    torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["model"] == load_generator(DEFAULT_GENERATOR).artifact.id
    assert found["start_ms"]["command until here"] > found["start_ms"]["codec"] > 0
    (tmp_path / "measured.json").write_text(done.stdout)
    words = ["plan", "demo", "--device", "here", "--gpus", "1", "--measured", "measured.json", "--json"]
    planned = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert planned["measured"] == "measured.json"
    assert found["hardware"]["device"] in " ".join(planned["assumptions"])
    with pytest.raises(UserError, match="--threads=1000"):
        CliRunner().invoke(app, ["benchmark", "--threads", "1000"], catch_exceptions=False)
