"""The files a job ships: the local copy of Presto's code, a folder of the user's, and the frozen settings."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pathspec import PathSpec

from presto_core.config.submit import SubmitConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import get_pretrained_folder

SOURCE = Path(__file__).parent.parent.parent
PACKAGES = ("presto_core", "pipelines", "tune_spaces", "infra")
SETTINGS, LAUNCHER = "presto-job.yaml", "presto-job.sh"
PRETRAINED = "/pretrained/"  # megabytes of weights
BIGGEST = 3  # entries that the size error names

# never sent: files that can be regenerated, local state, and anything that looks like credentials
ALWAYS_EXCLUDED = (
    "__pycache__/", "*.pyc", ".git/", ".hg/", ".venv*/", "venv/", ".presto/", "mlruns/", "mlflow.db", "node_modules/",
    ".mypy_cache/", ".pytest_cache/", ".ruff_cache/",
    ".env*", ".netrc", ".pypirc", ".aws/", ".ssh/", ".ray/", ".kube/", "*.pem", "*.key", "*.p12", "id_rsa*",
    "id_ed25519*", "credentials*", "secrets*",
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
    """

    files: dict[str, Path]
    settings: str

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def __str__(self) -> str:
        return f"{len(self.files)} files, {self.size_bytes / 1e6:.1f} MB"

    def write(self, folder: Path) -> None:
        """Copy all files into an empty folder."""
        for name, path in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / SETTINGS).write_text(self.settings)
        (folder / LAUNCHER).write_text(SCRIPT)


def build_package(submit: SubmitConfig, settings: str, *, pretrained: Collection[str] = ()) -> CodePackage:
    """Collect the files to send.

    Args:
        pretrained: names of the models of the package that the job reads; the others stay here.

    Raises:
        UserError: the folder does not exist, or exceeds `submit.max_mb`; the message names its largest entries.
    """
    mine = _select_files(Path(submit.working_dir), (*ALWAYS_EXCLUDED, *submit.excludes)) if submit.working_dir else {}
    _check_size(mine, submit)
    code = {
        f"{name}/{file}": path
        for name in PACKAGES
        for file, path in _select_files(SOURCE / name, (*ALWAYS_EXCLUDED, PRETRAINED)).items()
    }
    models = [path for name in pretrained for path in sorted((get_pretrained_folder() / name).iterdir())]
    code |= {f"presto_core/pretrained/{path.parent.name}/{path.name}": path for path in models}
    return CodePackage(mine | code, settings)


def _select_files(folder: Path, excludes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"submit.working_dir={folder} is not a folder; set it to an existing one, or leave it empty")
    ignored = folder / ".gitignore"
    lines = (*(ignored.read_text().splitlines() if ignored.is_file() else ()), *excludes)
    kept = PathSpec.from_lines("gitignore", lines).match_tree_files(folder, negate=True, follow_links=False)
    return {name: folder / name for name in sorted(kept) if (folder / name).is_file()}


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
