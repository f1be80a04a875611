"""What a job in an image runs: the verb, with the settings that its environment holds as its preset."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from infra.cli import main as cli

SETTINGS = "PRESTO_SETTINGS"  # YAML; among the words, this name stands for the file of it


def main() -> None:
    settings = os.environ.pop(SETTINGS, "")
    if not settings:
        sys.exit(f"presto: {SETTINGS} is not set; a job in an image is started by presto <verb> --on …")
    with tempfile.TemporaryDirectory(prefix="presto-job-") as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(settings)
        sys.argv = ["presto", *(str(path) if arg == SETTINGS else arg for arg in sys.argv[1:])]
        cli.main()


if __name__ == "__main__":
    main()
