"""The version of this installation: that of the package, and the commit in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = "presto-distill"
CHECKOUT = Path(__file__).resolve().parents[2]


def describe_version() -> str:
    """Return e.g. `presto 0.1.0 (commit 7a6a098, with changes)`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version(PACKAGE)
    except PackageNotFoundError:  # sources on the path of another environment
        number = "of a source tree that is not installed"
    commit = read_commit(CHECKOUT)
    return f"presto {number}" + (f" (commit {commit})" if commit else "")


def read_commit(folder: Path) -> str:
    """The commit of a checkout, and whether files differ from it; empty if the folder is none, or without git."""
    if not (folder / ".git").exists():
        return ""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=, with changes", "--exclude=*", "--abbrev=10"],
            cwd=folder, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
