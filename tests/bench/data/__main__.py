"""What the data plane promises, measured in one run: `make bench-data` (`--only stream wait`, `--rounds 5`)."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.storage import local_s3
from pipelines.storage.filesystem import create_bucket
from tests.bench.data import ingesting, memory, reading, waiting
from tests.bench.data.finding import Finding, save, show

FOLDER = Path(".presto/bench")
PARTS = ("stream", "wait", "memory", "ingest")
BUCKET = "bench"
FAILED = "not measured: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each thing; their median counts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--preset", default="laptop", help="whose network, batch and windows are used")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a server must not outlive this run
    data = FOLDER / "data"
    shutil.rmtree(data, ignore_errors=True)
    server, _ = local_s3.start(data / "object_store")
    try:
        os.environ.update(server.environment())
        create_bucket(BUCKET)
        findings, notes = measure(arguments.only, preset=arguments.preset, rounds=arguments.rounds, scratch=data)
    finally:
        local_s3.stop(data / "object_store")
        shutil.rmtree(data)
    show(findings, notes)
    sys.exit(any(note.startswith(FAILED) for note in notes))


def measure(parts: Sequence[str], *, preset: str, rounds: int, scratch: Path) -> tuple[list[Finding], list[str]]:
    """Every part that was asked for, one after another; one that fails does not stop the others."""
    findings: list[Finding] = []
    notes: list[str] = []
    root, scratch = f"s3://{BUCKET}", scratch.absolute()
    measures = {
        "stream": lambda: reading.measure(root, rounds=rounds, scratch=scratch),
        "wait": lambda: waiting.measure(f"{root}/long/presto", preset=preset, there="stream" in parts),
        "memory": lambda: memory.measure(root),
        "ingest": lambda: ingesting.measure(f"{root}/ingest", preset=preset, rounds=rounds, scratch=scratch),
    }
    for part in (part for part in PARTS if part in parts):
        began = time.monotonic()
        try:
            found, part_notes = measures[part]()
        except RuntimeError as error:
            found, part_notes = [], [f"{FAILED}{part}: {error}"]
        findings, notes = [*findings, *found], [*notes, *part_notes]
        save(findings, notes, FOLDER / "data.json")
        print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)
    return findings, notes


if __name__ == "__main__":
    main()
