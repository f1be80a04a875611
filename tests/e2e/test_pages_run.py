"""Commands of the pages that are marked `run: slow`, as bash reads them, in the homes of two users (`make test-pages`).

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
ON_S3 = ("docs/quickstart.md",)  # starts an object store, whose keys the shells of other pages would need
SHIM = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.e2e.small_presto "$@"\n'


def list_slow_pages() -> list[str]:
    pages = [path.relative_to(ROOT).as_posix() for path in list_pages()]
    return [page for page in pages if read_slow_blocks(page)]


def read_slow_blocks(page: str) -> list[Block]:
    return [b for b in read_blocks((ROOT / page).read_text(encoding="utf-8"), page) if b.kind == "run: slow"]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Path]]:
    """Whether a page uses S3 -> the folder of a user who does."""
    folders = {on_s3: make_home(tmp_path_factory.mktemp("home")) for on_s3 in (True, False)}
    yield folders
    run_bash("presto s3 stop", folders[True])


def make_home(folder: Path) -> Path:
    """Write the music, the song and the prompts that pages name, made by a model of the package."""
    generator = load_generator("presto-tiny-s")
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
    return folder


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
def test_a_pages_commands_succeed_from_top_to_bottom(page: str, homes: dict[bool, Path]):
    blocks = read_slow_blocks(page)
    assert blocks
    shells = [line for block in blocks if block.language != "python" for line in block.lines]
    programs = ["\n".join(block.lines) for block in blocks if block.language == "python"]
    program = [shlex.join([sys.executable, "-c", "\n".join(programs)])] if programs else []
    run_bash("\n".join([*shells, *program]), homes[page in ON_S3])
