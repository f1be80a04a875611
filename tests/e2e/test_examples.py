"""The examples run as written, from a folder of their own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile

from pipelines.inference.generator import load_generator

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_python(arguments: Sequence[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Clips that the teacher knows the like of: it refuses to be distilled on sounds that are far from its music."""
    folder, generator = tmp_path / "music", load_generator("presto-tiny-s")
    folder.mkdir()
    for number in range(24):
        (clip,) = generator.generate("solo piano", steps=1, seed=number, seconds=7)
        (folder / f"{number}.wav").write_bytes(clip.to_wav())
    return folder


# over 10 s: the whole flow of three stages, in one process
@pytest.mark.slow
def test_your_own_music_is_distilled(music: Path, tmp_path: Path):
    command = [str(EXAMPLES / "distill_your_music.py"), str(music), "solo piano", "--updates", "1"]
    printed = run_python(command, tmp_path)
    (wav,) = (tmp_path / ".presto/out").glob("*.wav")
    assert soundfile.info(wav).duration > 5
    assert printed.splitlines()[-1].endswith(wav.name)


@pytest.mark.slow
def test_two_models_are_compared(tmp_path: Path):
    run_python([str(EXAMPLES / "compare_models.py"), "presto-tiny-s", "presto-tiny-ls", "organ", "--steps=1"], tmp_path)
    found = {path.name for path in (tmp_path / "compared").iterdir()}
    assert found == {"presto-tiny-s.wav", "presto-tiny-ls.wav", "spectrograms.png"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("noise_levels", "blocks of 6"), ("edit_and_extend", "kept bit for bit: [True, True]")],
)
def test_a_notebook_runs_from_top_to_bottom(name: str, words: str, tmp_path: Path):
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    program = "\n\n".join(["import matplotlib", 'matplotlib.use("Agg")', *cells])
    ast.parse(program)  # no magics: any Python runs it
    printed = run_python(["-c", program], tmp_path)
    assert words in printed
    assert (tmp_path / "clip.wav").exists()
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_a_mistake_is_one_line(tmp_path: Path):
    command = [sys.executable, str(EXAMPLES / "compare_models.py"), "presto-tiny-s", "no-such-model", "organ"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no-such-model" in done.stderr
    assert "Traceback" not in done.stderr
