"""A newcomer's first hour, written down: `make first-hour` runs each command in an empty folder and rewrites the page.

From an installation to a model that is promoted, on recordings of a Debian package; with a few mistakes on the way.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "wesnoth-1.16-music"
MUSIC = "music/usr/share/games/wesnoth/1.16/data/core/music"
PROMPT = "orchestra with horns and drums, heroic, 110 bpm"
INGEST = f"ingest demo ingest.source={MUSIC} ingest.name=wesnoth ingest.licence=GPL-2+ ingest.validation_fraction=0.3"
INGEST += " ingest.test_fraction=0.3"
DATASET = "inputs.dataset=wesnoth@candidate"
MAX_LINES = 40  # of one command's output on the page


@dataclass(frozen=True)
class Step:
    """One command: what a newcomer wants, what is typed, and the exit code it must have."""

    why: str
    command: str
    code: int = 0


TRAINED = "wesnoth-generator@candidate"
STEPS = (
    Step("Which version is installed?", "presto --version"),
    Step("Make music at once, with a model of the package.", 'presto generate "solo piano, slow, A minor"'),
    Step("Does this machine have what the preset needs?", "presto doctor demo"),
    Step("Make a typing mistake.", "presto ingset demo", 2),
    Step("Make another.", "presto distill-steps demo steps.p_dmd.kind=karas", 2),
    Step("What does that setting mean?", "presto explain steps.p_dmd.kind demo"),
    Step("Get 41 recordings by other people.", f"apt-get download {PACKAGE} && dpkg-deb -x {PACKAGE}_*.deb music"),
    Step("What would ingest make of it?", f"presto {INGEST} --dry-run"),
    Step("Make the data set. One of the 41 files is silence, more than 1 %: ingest refuses.", f"presto {INGEST}", 1),
    Step("Raise the limit, so that bad files are left out.", f"presto {INGEST} ingest.max_bad_fraction=0.05"),
    Step("How much of the sound does the codec keep?", f"presto codec roundtrip {MUSIC}/knolls.ogg"),
    Step("Listen to what the model will be trained on.", "presto dataset listen wesnoth@candidate --rows 6"),
    Step("Distill a few-step generator for this music.", f"presto distill-steps demo {DATASET} name=wesnoth-generator"),
    Step("Compare it with its teacher.", f"presto evaluate demo {DATASET} inputs.generator={TRAINED}"),
    Step("What is registered?", "presto registry list"),
    Step("Promote it.", 'presto registry promote wesnoth-generator@candidate demo --why "first on this music"', 1),
    Step(
        "It is refused, with the reasons. Promote it all the same, which is recorded.",
        'presto registry promote wesnoth-generator@candidate demo --why "first on this music" --accept-worse',
    ),
    Step("Use it.", f'presto generate "{PROMPT}" --model wesnoth-generator@champion'),
    Step("Where does it come from?", "presto registry lineage wesnoth-generator@champion"),
)
HEADING = """# The first hour

Written by `make first-hour`. It shows every command as typed in an empty folder, its output, and how long it took on
{machine}.
Outputs are as printed into a file, where tables take the width that they need. Long ones are cut where a line such as
`[69 lines]` says how many lines are missing. Lines of the package manager itself are left out.

"""


def run_steps(home: Path) -> str:
    """Run all steps in a folder and return the page; SystemExit if one has another exit code."""
    binaries = Path(sys.executable).parent
    foreign = ("AWS_", "RAY_", "MLFLOW_", "PRESTO_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment |= {"PATH": f"{binaries}:{os.environ['PATH']}", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    parts, began = [HEADING.format(machine=describe_machine())], time.monotonic()
    for step in STEPS:
        print(f"$ {step.command}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            step.command,
            shell=True,
            cwd=home,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        seconds = time.monotonic() - started
        if done.returncode != step.code:
            raise SystemExit(f"{step.command}: exit code {done.returncode} instead of {step.code}\n{done.stdout}")
        output = cut(done.stdout.replace(str(home), "~").replace(str(binaries.parent), ".venv"))
        parts.append(f"{step.why} ({seconds:.0f} s)\n\n```console\n$ {step.command}\n{output}\n```\n\n")
    parts.append(f"All commands together took {(time.monotonic() - began) / 60:.0f} minutes.\n")
    return "".join(parts)


def cut(output: str) -> str:
    """Leave out control sequences, and the middle of long outputs with a line that says how much."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output).strip("\n").splitlines()
    lines = [line.rstrip() for line in plain if not re.match(r"Get:\d|Fetched |W: ", line)]
    if len(lines) <= MAX_LINES:
        return "\n".join(lines)
    half = MAX_LINES // 2
    return "\n".join([*lines[:half], f"[{len(lines) - 2 * half} lines]", *lines[-half:]])


def describe_machine() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return f"{os.cpu_count()} cores ({names[0] if names else 'unknown'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="Markdown file to write, docs/first_hour.md")
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory(prefix="first-hour-") as home:
        page.write_text(run_steps(Path(home)))


if __name__ == "__main__":
    main()
