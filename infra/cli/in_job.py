"""Entry point of a job in a container image: runs a command whose preset is the YAML in PRESTO_SETTINGS."""

from __future__ import annotations

import os
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

from infra.cli import main as cli

SETTINGS = "PRESTO_SETTINGS"  # YAML in base64; in the arguments, this name stands for a file that holds it


def decode_settings(text: str) -> str:
    """Return the YAML of the settings; a job of an earlier version has them as they are."""
    try:
        return b64decode(text, validate=True).decode()
    except ValueError:  # YAML has a colon, which base64 has not
        return text


def main() -> None:
    settings = os.environ.pop(SETTINGS, "")
    if not settings:
        sys.exit(f"presto: {SETTINGS} is not set; start the job with presto <command> --on …")
    with tempfile.TemporaryDirectory(prefix="presto-job-") as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(decode_settings(settings))
        sys.argv = ["presto", *(str(path) if arg == SETTINGS else arg for arg in sys.argv[1:])]
        cli.main()


if __name__ == "__main__":
    main()
