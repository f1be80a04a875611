"""`make bench-gpu` on a CPU, at toy size: every part gives figures, and what is known of them holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.bench import gpu


def test_every_part_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out" / "gpu.json"
    size = ["--preset", "from_scratch", "--frames", "8", "--calls", "1", "--rows", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--eager", "--output", str(output), *size])
    gpu.main()
    rows = {row["what"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == [
        "network, fp32, 4 steps", "network, bf16, 4 steps", "decoder, bf16, mono", "decoder, bf16, stereo",
        "distill-steps, bf16, 1 rows: a step",
    ]  # fmt: skip
    assert all(row["median"] > 0 for row in rows.values())
    apart = [float(rows[f"network, {how}, 4 steps"]["note"].partition(" ")[0]) for how in ("fp32", "bf16")]
    assert apart[0] == 0 < apart[1] < 0.1
    printed = capsys.readouterr().out
    assert all(f"| {what} |" in printed for what in rows)


def test_a_projection_is_marked_as_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["gpu", "--project", "h100"])
    gpu.main()
    printed = capsys.readouterr().out
    assert "h100, not measured, paper network, 689 frames" in printed
    median = {line.split("|")[1].strip(): float(line.split("|")[2]) for line in printed.splitlines()[5:] if "|" in line}
    assert median["network, bf16, CUDA graphs, 4 steps"] < median["network, bf16, 4 steps"]
