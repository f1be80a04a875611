"""The models that come with the package: their names, and the folder that holds each as a whole artifact."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from presto_core.errors import UserError

SCHEME = "pretrained://"  # followed by a name: the same URI on every node, wherever the package is installed
FOLDER_VAR = "PRESTO_PRETRAINED"  # environment variable: another folder of such models, such as those of a test
NAMES = ("presto-tiny-teacher", "presto-tiny-l", "presto-tiny-s", "presto-tiny-ls")
# S, not LS: about half of its MMD on the test split, for 7 % more time (docs/pretrained.md)
DEFAULT_TEACHER, DEFAULT_GENERATOR = "presto-tiny-teacher", "presto-tiny-s"
_MANIFEST = "manifest.json"


def get_pretrained_folder() -> Path:
    """Return the folder with one subfolder per model: `presto_core/pretrained`, or $PRESTO_PRETRAINED."""
    return Path(os.environ.get(FOLDER_VAR) or Path(__file__).parent.parent / "pretrained")


def list_pretrained() -> list[str]:
    """Return the names of the models that this installation holds; a folder without a manifest is none."""
    present = {manifest.parent.name for manifest in get_pretrained_folder().glob(f"*/{_MANIFEST}")}
    return [name for name in NAMES if name in present] + sorted(present - set(NAMES))


def find_pretrained(reference: str) -> str | None:
    """Return the name of the model that a reference names exactly or whose artifact id it is; None for others.

    Raises:
        UserError: a model that the project ships is not in this installation, or a manifest is damaged.
    """
    present = list_pretrained()
    if reference in present:
        return reference
    if reference in NAMES:
        raise UserError(_not_installed_message(reference))
    return next((name for name in present if _read_manifest(name).get("id") == reference), None)


def find_export_of(artifact_id: str) -> str | None:
    """Return the name of the model that is this artifact or was exported from it; None if there is none."""
    for name in list_pretrained():
        manifest = _read_manifest(name)
        if artifact_id in (manifest.get("id"), manifest.get("export", {}).get("source")):
            return name
    return None


def suggest_pretrained(reference: str) -> str | None:
    """Return the name that a mistyped one is nearest to, or None."""
    return next(iter(get_close_matches(reference, list_pretrained(), 1, cutoff=0.75)), None)


def make_pretrained_uri(name: str) -> str:
    """Return the URI of a model's folder, which storage opens."""
    return f"{SCHEME}{name}"


def locate_pretrained(uri: str) -> Path:
    """Return the local folder of a URI `pretrained://NAME`.

    Raises:
        UserError: this installation has no such model.
    """
    name = uri.removeprefix(SCHEME).rstrip("/")
    if name not in list_pretrained():
        raise UserError(_not_installed_message(name))
    return get_pretrained_folder() / name


def _read_manifest(name: str) -> dict[str, Any]:
    path = get_pretrained_folder() / name / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); install the package again, or run make pretrained") from None
    return manifest if isinstance(manifest, dict) else {}


def _not_installed_message(name: str) -> str:
    known = ", ".join(list_pretrained()) or "none"
    how = "make it with: make pretrained" if name in NAMES else "name one of these"
    return f"the pretrained model {name} is not in {get_pretrained_folder()}, which holds {known}; {how}"
