"""Read the components of a diffusers folder: each of an allowed (library, class) pair, with safetensors alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from presto_core.errors import UserError
from presto_core.models.teacher_kind import Component
from presto_core.models.teacher_table import TEACHERS

INDEX = "model_index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


class TeacherError(UserError):
    """A folder holds no teacher that can be imported; the message names the component and the fix."""


@dataclass(frozen=True)
class ComponentFiles:
    """A component as it is in the folder."""

    name: str
    library: str
    kind: str
    settings: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weights)

    @cached_property
    def digest(self) -> str:
        """sha256 over class, settings and weights."""
        kept = {name: value for name, value in self.settings.items() if not name.startswith("_")}
        hasher = hashlib.sha256(json.dumps([self.library, self.kind, kept], sort_keys=True).encode())
        for path in self.weights:
            with path.open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
        return hasher.hexdigest()


def read_index(path: Path) -> dict[str, Any]:
    if (path / INDEX).is_file():
        return _read_json(path / INDEX)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    found = f"it holds {pickles[0]}, a pickle, which can run code when it is loaded; " if pickles else ""
    raise TeacherError(
        f"teacher {path} has no {INDEX}; {found}convert it to a diffusers folder with safetensors (save_pretrained)"
    )


def find_components(path: Path, index: Mapping[str, Any]) -> dict[str, Component]:
    """Return the components of the folder's family, all of which it must name, and no other."""
    pipeline, pair = index.get("_class_name"), index.get("transformer")
    if not isinstance(pipeline, str):
        raise TeacherError(f"pipeline of {path} is {pipeline}, which needs code of its own; no such code is run")
    kind = pair[1] if isinstance(pair, list) and len(pair) == 2 else None
    if kind not in TEACHERS:
        raise TeacherError(f"transformer of {path} is {pair}; a teacher can be one of {', '.join(TEACHERS)}")
    present = {name for name, value in index.items() if not name.startswith("_") and value not in (None, [None, None])}
    components = TEACHERS[kind].components
    required = [name for name, component in components.items() if component.default is None]
    if missing := [name for name in required if name not in present or not (path / name).is_dir()]:
        raise TeacherError(f"teacher {path} lacks {', '.join(missing)}; download all of it again")
    if unknown := sorted(present - set(components) - set(TEACHERS[kind].unused)):
        raise TeacherError(f"teacher {path} has {unknown[0]} {index[unknown[0]]}, which no {kind} teacher has")
    return components


def read_component(path: Path, name: str, pair: Any, component: Component, *, with_weights: bool) -> ComponentFiles:
    if component.default is not None and pair in (None, [None, None]):
        pair = list(component.pairs[0])
    if not isinstance(pair, list) or tuple(pair) not in component.pairs:
        allowed = ", ".join(".".join(known) for known in component.pairs)
        raise TeacherError(f"{name} of {path} is {pair}; it must be {allowed}")
    if component.default is not None and not (path / name).is_dir():
        return ComponentFiles(name, pair[0], pair[1], dict(component.default), ())
    settings = _read_json(path / name / component.settings)
    named = settings.get("_class_name", pair[1])
    if named != pair[1]:
        raise TeacherError(f"{name} of {path} is {pair[1]} in {INDEX} and {named} in its own {component.settings}")
    weights = _find_weights(path / name) if component.weights and with_weights else ()
    return ComponentFiles(name, pair[0], pair[1], settings, weights)


def check_installed(components: Mapping[str, ComponentFiles]) -> None:
    """Refuse classes that the installed diffusers does not have, as one of an older version; raises TeacherError."""
    try:
        import diffusers
    except ImportError:
        raise TeacherError("an imported teacher needs diffusers; run pip install 'presto-distill[oobleck]'") from None
    for part in components.values():
        if part.library == "diffusers" and getattr(diffusers, part.kind, None) is None:
            raise TeacherError(
                f"{part.name} is a {part.kind}, which diffusers {diffusers.__version__} lacks; install a newer one"
            )


def _find_weights(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors of a component: those that an index lists, else the file of full precision.

    Raises:
        TeacherError: there is none, or a listed one is missing.
    """
    if indices := sorted(folder.glob("*.safetensors.index.json")):
        listed = sorted(set(_read_json(indices[0]).get("weight_map", {}).values()))
        if any(Path(str(name)).name != name for name in listed):
            raise TeacherError(f"{indices[0]} lists files outside its folder; download the teacher again")
        paths = tuple(folder / name for name in listed)
    else:
        paths = tuple(sorted(folder.glob("*.safetensors"), key=lambda file: (file.name.count("."), file.name))[:1])
    if missing := [file.name for file in paths if not file.is_file()]:
        raise TeacherError(f"{folder} lacks {missing[0]}; download the teacher again")
    if not paths:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        found = f"only {pickles[0]}, a pickle, which can run code when it is loaded" if pickles else "no weights"
        raise TeacherError(
            f"{folder} holds {found}; save it with safetensors (save_pretrained, safe_serialization=True)"
        )
    return paths


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise TeacherError(f"{path} cannot be read ({error.strerror}); download the teacher again") from None
    except ValueError as error:
        raise TeacherError(f"{path} is not JSON ({error}); download the teacher again") from None
    if not isinstance(content, dict):
        raise TeacherError(f"{path} is not a JSON object; download the teacher again")
    return content
