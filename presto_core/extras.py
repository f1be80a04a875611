"""Packages that only some commands need: extras of pyproject.toml, imported in the functions that use them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from presto_core.errors import UserError

# extra -> module -> package; a test compares this with pyproject.toml
EXTRAS: dict[str, dict[str, str]] = {
    "corpus": {name: name for name in ("music21", "mido", "midirenderer", "pretty_midi")},
    "sweep": {"optuna": "optuna", "sklearn": "scikit-learn"},
    "plots": {"matplotlib": "matplotlib", "PIL": "pillow"},
    "serve": {
        "fastapi": "fastapi",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "prometheus_client": "prometheus-client",
        "python_multipart": "python-multipart",
    },
}
EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}


class MissingPackageError(UserError):
    """Packages of an extra are not installed; the message names them, what needs them and the fix."""


def make_missing_error(packages: Iterable[str], *, extra: str, purpose: str) -> MissingPackageError:
    """Return the error for packages that are not installed."""
    names = ", ".join(packages)
    return MissingPackageError(
        f"{purpose} needs {names}, not installed here; run pip install 'presto-distill[{extra}]'"
    )


def import_extra(module: str, purpose: str) -> Any:
    """Import a module of an extra's package.

    Raises:
        MissingPackageError: the package is not installed.
    """
    package = module.partition(".")[0]
    check_package(package, purpose)
    return import_module(module)


def check_extra(extra: str, purpose: str) -> None:
    """Check that all packages of an extra are installed, without importing them.

    Raises:
        MissingPackageError: some are not.
    """
    missing = [package for module, package in EXTRAS[extra].items() if not _is_installed(module)]
    if missing:
        raise make_missing_error(missing, extra=extra, purpose=purpose)


def check_package(module: str, purpose: str) -> None:
    """Check that one package of an extra is installed; see `check_extra`."""
    if not _is_installed(module):
        extra = EXTRA_OF[module]
        raise make_missing_error([EXTRAS[extra][module]], extra=extra, purpose=purpose)


def find_package_folder(module: str, purpose: str) -> Path:
    """Return the folder of an extra's package, without importing it; see `check_package`."""
    check_package(module, purpose)
    spec = find_spec(module)
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
