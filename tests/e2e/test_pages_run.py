"""Commands of the pages that are marked `run: slow`, as bash reads them, in the home of one user (`make test-pages`).

Sizes are those of a toy: `presto` on the path is `small_presto.py`, which adds them. Everything else is as typed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from pipelines.inference.generator import load_generator
from tests.e2e.page_commands import ROOT, Block, list_pages, read_blocks

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(3600)]
FIRST = ("docs/quickstart.md",)  # makes what other pages use
SHIM = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.e2e.small_presto "$@"\n'


def list_slow_pages() -> list[str]:
    pages = [path.relative_to(ROOT).as_posix() for path in list_pages()]
    return [*FIRST, *(page for page in pages if page not in FIRST and read_slow_blocks(page))]


def read_slow_blocks(page: str) -> list[Block]:
    return [b for b in read_blocks((ROOT / page).read_text(encoding="utf-8"), page) if b.kind == "run: slow"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the music, the song and the prompts that pages name, made by a model of the package."""
    folder, generator = tmp_path_factory.mktemp("home"), load_generator("presto-tiny-s")
    for name in ("bin", "my_music", "album"):
        (folder / name).mkdir()
    for number in range(24):
        (clip,) = generator.generate("solo piano", steps=1, seed=number, seconds=7)
        (folder / f"my_music/{number}.wav").write_bytes(clip.to_wav())
    shutil.copy(folder / "my_music/0.wav", folder / "song.wav")
    audio, rate_hz = soundfile.read(folder / "song.wav")
    for name in ("song.flac", "album/one.flac"):
        soundfile.write(folder / name, audio, rate_hz)
    (folder / "prompts.csv").write_text("prompt,seed\nsolo piano,1\norgan,2\n")
    (folder / "bin/presto").write_text(SHIM)
    (folder / "bin/presto").chmod(0o755)
    yield folder
    run_bash("presto s3 stop", folder)


def run_bash(script: str, home: Path) -> str:
    foreign = ("AWS_", "RAY_", "MLFLOW_", "PRESTO_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {"PATH": f"{home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}", "BROWSER": "true"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "dumb", "HOME": str(home)}
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", f"set -x\n{script}"],
        cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("page", list_slow_pages())
def test_a_pages_commands_succeed_from_top_to_bottom(page: str, home: Path):
    blocks = read_slow_blocks(page)
    assert blocks
    shells = [line for block in blocks if block.language != "python" for line in block.lines]
    programs = ["\n".join(block.lines) for block in blocks if block.language == "python"]
    program = [shlex.join([sys.executable, "-c", "\n".join(programs)])] if programs else []
    run_bash("\n".join([*shells, *program]), home)
