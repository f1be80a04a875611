"""Read a teacher that was trained elsewhere: a diffusers folder, checked before any of it is loaded.

Nothing but JSON and file sizes is read, no code of the folder runs, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presto_core.models.teacher_components import (
    ComponentFiles,
    TeacherError,
    check_installed,
    find_components,
    read_component,
    read_index,
)
from presto_core.models.teacher_kind import Grid, TeacherKind
from presto_core.models.teacher_licence import check_licence, find_licence
from presto_core.models.teacher_table import TEACHERS
from presto_core.networks.families import FAMILIES
from presto_core.text.diffusers_encoder import read_length


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
    index = read_index(path)
    kinds = find_components(path, index)
    components = {
        name: read_component(path, name, index.get(name), component, with_weights=with_weights)
        for name, component in kinds.items()
    }
    check_installed(components)
    folder = TeacherFolder(path, components, licence or find_licence(path), seconds)
    _check_sizes(folder)
    _check_scheduler(folder)
    check_licence(folder.licence, path)
    return folder


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
