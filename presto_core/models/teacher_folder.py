"""Read a teacher that was trained elsewhere: a diffusers folder, checked before any of it is loaded.

Components are taken by the (library, class) pairs of model_index.json, from a fixed list; weights are safetensors. No
code of the folder runs, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from presto_core.errors import UserError
from presto_core.models.teacher_kind import Component, Grid, TeacherKind
from presto_core.models.teacher_table import TEACHERS
from presto_core.networks.families import FAMILIES
from presto_core.text.diffusers_encoder import read_length

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


@dataclass(frozen=True)
class TeacherFolder:
    """A folder whose components fit together.

    Attributes:
        licence: from the settings, README.md or a licence file; empty if none says.
        seconds: length of a clip, for a family that makes clips of any length; None takes its default.
    """

    path: Path
    components: dict[str, ComponentFiles]
    licence: str
    seconds: float | None = None

    @property
    def kind(self) -> TeacherKind:
        return TEACHERS[self.transformer.kind]

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """Settings by component."""
        return {name: component.settings for name, component in self.components.items()}

    @property
    def transformer(self) -> ComponentFiles:
        return self.components["transformer"]

    @property
    def projection(self) -> ComponentFiles | None:
        name = self.kind.projection
        return None if name is None else self.components[name]

    @property
    def frames(self) -> int:
        """Latent frames of every clip."""
        return self.kind.count_frames(self.parts, self.seconds)

    @property
    def audio_channels(self) -> int:
        return self.kind.read_audio(self.parts).channels

    @property
    def clip_seconds(self) -> float:
        rate_hz, hop, _ = self.kind.read_audio(self.parts)
        return self.frames * hop / float(rate_hz)

    @property
    def channels(self) -> int:
        return int(self.transformer.settings[FAMILIES[self.transformer.kind].channels])

    @property
    def text_tokens(self) -> int:
        length = read_length(self.path)
        assert length is not None
        return length

    @property
    def grid(self) -> Grid | None:
        """The noise levels of a few-step model, such as `presto export` writes; None for a teacher."""
        scheduler = self.components["scheduler"]
        return self.kind.read_grid(scheduler.kind, scheduler.settings)

    @property
    def sigma_range(self) -> list[float]:
        if grid := self.grid:
            return grid.sigma_range
        return self.kind.read_range(self.components["scheduler"].settings)

    @property
    def precondition(self) -> dict[str, Any]:
        """Parameterisation, as a model card keeps it."""
        return self.kind.read_precondition(self.components["scheduler"].settings)

    @property
    def digest(self) -> str:
        """sha256 over all components."""
        return hashlib.sha256("".join(part.digest for _, part in sorted(self.components.items())).encode()).hexdigest()

    def describe(self) -> list[dict[str, Any]]:
        """Return a row for each component: what was read."""
        return [
            {
                "component": part.name,
                "class": f"{part.library}.{part.kind}",
                "files": [path.name for path in part.weights],
                "bytes": part.bytes,
                "digest": part.digest,
            }
            for part in self.components.values()
        ]


def read_teacher_folder(
    path: Path, *, licence: str = "", with_weights: bool = True, seconds: float | None = None
) -> TeacherFolder:
    """Read and check a folder; nothing but JSON and file sizes is read.

    Args:
        licence: what you know its licence to be, if the folder does not say.
        with_weights: False checks the settings alone, before the weights are fetched.
        seconds: length of a clip, for a family that makes clips of any length; None takes its default.

    Raises:
        TeacherError: there is no such folder, a component is missing, of an unknown class, pickled, or does not fit the
            others; or the licence forbids models made from it.
    """
    if not path.is_dir():
        raise TeacherError(f"teacher {path} is not a folder; name one, or a repository of the hub: ORG/NAME")
    index = _read_index(path)
    kinds = _find_components(path, index)
    components = {
        name: _read_component(path, name, index.get(name), component, with_weights=with_weights)
        for name, component in kinds.items()
    }
    _check_installed(components)
    folder = TeacherFolder(path, components, licence or find_licence(path), seconds)
    _check_sizes(folder)
    _check_scheduler(folder)
    check_licence(folder.licence, path)
    return folder


def _read_index(path: Path) -> dict[str, Any]:
    if (path / INDEX).is_file():
        return _read_json(path / INDEX)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    found = f"it holds {pickles[0]}, a pickle, which can run code when it is loaded; " if pickles else ""
    raise TeacherError(
        f"teacher {path} has no {INDEX}; {found}convert it to a diffusers folder with safetensors (save_pretrained)"
    )


def _find_components(path: Path, index: Mapping[str, Any]) -> dict[str, Component]:
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


def _read_component(path: Path, name: str, pair: Any, component: Component, *, with_weights: bool) -> ComponentFiles:
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


def _check_installed(components: Mapping[str, ComponentFiles]) -> None:
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


def _check_sizes(folder: TeacherFolder) -> None:
    """Refuse components that do not fit together, by their settings; raises TeacherError."""
    kind, parts = folder.kind, folder.parts
    if folder.seconds is not None and kind.default_seconds is None:
        raise TeacherError(
            f"model.seconds={folder.seconds:g} does not fit {folder.path}, whose clips all have one length; remove it"
        )
    try:
        sizes = kind.list_sizes(parts)
        rate_hz, hop, _ = kind.read_audio(parts)
        seconds, longest = folder.clip_seconds, kind.read_longest(parts)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise TeacherError(f"settings in {folder.path} lack {error}; download the teacher again") from None
    for size in sizes:
        if size.value != size.expected:
            raise TeacherError(
                f"{folder.path} does not fit together: {size.name} {size.value} of {size.component} and "
                f"{size.expected} of {size.other}; use components that were trained together"
            )
    if not 8000 <= rate_hz <= 192_000:
        raise TeacherError(f"vae of {folder.path} has a sample rate of {rate_hz} Hz; music has 8000 to 192000 Hz")
    if seconds > longest:
        cause = (
            f"model.seconds={folder.seconds:g} is too long" if folder.seconds else "its vae is of another sample rate"
        )
        raise TeacherError(
            f"clips of {folder.path} have {seconds:.1f} s ({folder.frames} frames of {hop} samples at {rate_hz} Hz), "
            f"and its {kind.projection or 'pipeline'} knows at most {longest:g} s; {cause}"
        )
    if read_length(folder.path) is None:
        raise TeacherError(f"tokenizer of {folder.path} has no model_max_length; set it in tokenizer_config.json")


def _check_scheduler(folder: TeacherFolder) -> None:
    """Refuse what the class would not be trained with, or is trained to be no teacher; raises TeacherError."""
    scheduler = folder.components["scheduler"]
    try:
        folder.kind.check_scheduler(scheduler.kind, scheduler.settings)
    except (ValueError, TypeError) as error:
        raise TeacherError(
            f"scheduler of {folder.path}, a {scheduler.kind}, has {error}; it is neither a teacher's of this class nor "
            "one of presto export"
        ) from None
    if folder.grid is None:
        try:
            folder.kind.check_teacher(folder.parts)
        except ValueError as error:
            raise TeacherError(f"transformer of {folder.path} has {error}") from None


def find_licence(path: Path) -> str:
    """Return the licence that README.md's front matter names, else the first line of a licence file; "" if neither."""
    readme = path / "README.md"
    if readme.is_file():
        front = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found = dict(re.findall(r"^(license(?:_name)?):\s*[\"']?([^\"'\n]+)", front[1], re.MULTILINE)) if front else {}
        licence = found.get("license_name") or found.get("license") or ""
        if licence.strip():
            return licence.strip()[:80]
    for file in sorted(path.glob("LICEN[CS]E*")):
        if lines := [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]:
            return lines[0][:80]
    return ""


def check_licence(licence: str, path: Path) -> None:
    """Refuse a licence without derivatives: a distilled model is one; raises TeacherError."""
    text = licence.lower()
    if re.search(r"(^|[-_ ])nd($|[-_ ])|no.?deriv", text):
        raise TeacherError(
            f"licence {licence} of {path} forbids models made from it, and a distilled model is one; ask its owner, "
            "and with a permission set model.licence to its name"
        )
