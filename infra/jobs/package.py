"""The files a job ships: the local copy of Presto's code, a folder of the user's, and the frozen settings."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from infra.jobs.private_files import PRIVATE_NAMES, explain_exclusion
from presto_core.config.submit import SubmitConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import get_pretrained_folder

SOURCE = Path(__file__).parent.parent.parent
PACKAGE = "presto-distill"
PACKAGES = ("presto_core", "pipelines", "tune_spaces", "infra")
SETTINGS, LAUNCHER = "presto-job.yaml", "presto-job.sh"
PRETRAINED = "/pretrained/"  # megabytes of weights
BIGGEST = 3  # entries that the size error names
MAX_NAMED = 20  # files that the notice of what stays here names

# never sent: files that can be regenerated, and local state; private_files.py knows what else stays here
ALWAYS_EXCLUDED = (
    "__pycache__/", "*.pyc", ".git/", ".hg/", ".venv*/", "venv/", ".presto/", "mlruns/", "mlflow.db", "node_modules/",
    ".mypy_cache/", ".pytest_cache/", ".ruff_cache/",
)  # fmt: skip

# `python` on a node may not be the interpreter that runs Ray; the raylet's command line names that one
SCRIPT = r"""python=$PRESTO_PYTHON
if [ -z "$python" ]; then
  raylet=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$PPID/status")
  python=$(tr '\0' '\n' < "/proc/$raylet/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
fi
exec "${python:-python3}" -m infra.cli.main "$@"
"""


@dataclass(frozen=True)
class CodePackage:
    """Files to send with a job.

    Attributes:
        files: path in the package -> local file.
        settings: the settings as YAML.
        left_out: path in the user's folder -> why the file stays here.
    """

    files: dict[str, Path]
    settings: str
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def __str__(self) -> str:
        return f"{len(self.files)} files, {self.size_bytes / 1e6:.1f} MB"

    def describe_left_out(self) -> str:
        """What stays here, with count and names; empty if nothing does."""
        if not self.left_out:
            return ""
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(self.left_out.items())[:MAX_NAMED]:
            reasons.setdefault(reason, []).append(name)
        named = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())
        more = len(self.left_out) - MAX_NAMED
        return (
            f"{len(self.left_out)} files of submit.working_dir are not sent, since they may hold credentials: {named}"
            f"{f'; and {more} more' if more > 0 else ''}. Rename a file that holds none, or list it in submit.excludes"
        )

    def write(self, folder: Path) -> None:
        """Copy all files into an empty folder."""
        for name, path in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / SETTINGS).write_text(self.settings)
        (folder / LAUNCHER).write_text(SCRIPT)
        _write_metadata(folder)


def build_package(submit: SubmitConfig, settings: str, *, pretrained: Collection[str] = ()) -> CodePackage:
    """Collect the files to send.

    Args:
        pretrained: names of the models of the package that the job reads; the others stay here.

    Raises:
        UserError: the folder does not exist, or exceeds `submit.max_mb`; the message names its largest entries.
    """
    mine, left_out = dict[str, Path](), dict[str, str]()
    if submit.working_dir:
        folder = Path(submit.working_dir)
        chosen = _select_files(folder, (*submit.excludes, *ALWAYS_EXCLUDED))
        left_out = {name: reason for name in chosen if (reason := explain_exclusion(folder, name))}
        mine = {name: path for name, path in chosen.items() if name not in left_out}
    _check_size(mine, submit)
    code = {
        f"{name}/{file}": path
        for name in PACKAGES
        for file, path in _select_files(SOURCE / name, (*ALWAYS_EXCLUDED, *PRIVATE_NAMES, PRETRAINED)).items()
    }
    models = [path for name in pretrained for path in sorted((get_pretrained_folder() / name).iterdir())]
    code |= {f"presto_core/pretrained/{path.parent.name}/{path.name}": path for path in models}
    return CodePackage(mine | code, settings, left_out)


def _write_metadata(folder: Path) -> None:
    """Write what an installation of the code would have: what a job makes records, and requires, its exact version."""
    with suppress(metadata.PackageNotFoundError):
        installed = metadata.distribution(PACKAGE)
        own = folder / f"{PACKAGE.replace('-', '_')}-{installed.version}.dist-info"
        own.mkdir()
        (own / "METADATA").write_text(installed.read_text("METADATA") or installed.read_text("PKG-INFO") or "")


def _select_files(folder: Path, excludes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"submit.working_dir={folder} is not a folder; set it to an existing one, or leave it empty")
    ignored = folder / ".gitignore"
    lines = (*(ignored.read_text().splitlines() if ignored.is_file() else ()), *excludes)
    rules = PathSpec.from_lines("gitignore", lines)
    paths = {name: folder / name for name in sorted(_walk(folder, rules))}
    return {name: path for name, path in paths.items() if path.is_symlink() or path.is_file()}


def _walk(folder: Path, rules: PathSpec[Any]) -> Iterator[str]:
    """Yield the files and links below a folder that no rule excludes; links to folders are not followed."""
    for parent, folders, files in os.walk(folder):
        prefix = Path(parent).relative_to(folder)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            if not rules.match_file(path := (prefix / name).as_posix()):
                yield path
        folders[:] = [name for name in folders if not rules.match_file(f"{(prefix / name).as_posix()}/")]


def _check_size(files: dict[str, Path], submit: SubmitConfig) -> None:
    sizes: Counter[str] = Counter()
    for name, path in files.items():
        sizes[name.split("/")[0]] += path.stat().st_size
    total = sizes.total()
    if total > submit.max_mb * 1e6:
        biggest = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.most_common(BIGGEST))
        raise UserError(
            f"submit.working_dir={submit.working_dir} holds {total / 1e6:.0f} MB, more than submit.max_mb="
            f"{submit.max_mb:g}: {biggest}; exclude entries with submit.excludes=[…], and keep data in storage"
        )
