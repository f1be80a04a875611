"""Mutated files of every format: nothing is lost in silence, and no decoder crashes, hangs or takes much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.many_examples import FACTOR
from tests.support.sound_examples import WRITERS

EACH = 8  # mutated files per format
TIMEOUT_S = 300


@pytest.mark.timeout(TIMEOUT_S * FACTOR + 60)
def test_mutated_files_give_what_ffmpeg_decodes_or_are_refused(tmp_path: Path):
    """In a process of its own, whose memory is limited and whose crash names the file."""
    notes = tmp_path / "notes"
    command = [sys.executable, "-m", "tests.support.decoder_fuzz", "--each", str(EACH * FACTOR), "--notes", str(notes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S * FACTOR, check=False)
    assert done.returncode == 0, f"{notes.read_text()}\n{done.stderr[-2000:]}"
    result = json.loads(done.stdout)
    assert result["tried"] == len(WRITERS) * EACH * FACTOR
    assert result["findings"] == []
