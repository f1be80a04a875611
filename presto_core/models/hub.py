"""Fetch a teacher from the Hugging Face hub: settings first, weights when nothing speaks against them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from presto_core.errors import UserError
from presto_core.models.teacher_components import INDEX

SMALL_FILES = ("*.json", "*.md", "LICENSE*", "LICENCE*", "*/*.json", "tokenizer/*")
WEIGHTS = "*/*.safetensors"


class HubError(UserError):
    """A repository cannot be fetched; the message names it and the fix."""


@dataclass(frozen=True)
class Source:
    """Where a teacher is: a local folder, and the commit if it is a snapshot of a repository."""

    path: Path
    repository: str = ""
    revision: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return what a manifest records."""
        if self.repository:
            return {"repository": self.repository, "revision": self.revision}
        return {"folder": self.path.name}


def is_repository(source: str) -> bool:
    """Whether a text names a repository of the hub and not a folder: ORG/NAME, and no such folder is there."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not Path(source).exists() and source[0] != "."


def fetch_settings(repository: str, revision: str) -> Source:
    """Fetch all files but weights; return their folder and commit.

    Raises:
        HubError: no network, no such repository or revision, or it needs a token that is missing.
    """
    return _fetch(repository, revision, SMALL_FILES)


def fetch_weights(source: Source) -> None:
    """Fetch the weights of a repository whose settings are there; raises HubError."""
    _fetch(source.repository, source.revision, (WEIGHTS,))


def _fetch(repository: str, revision: str, patterns: tuple[str, ...]) -> Source:
    from huggingface_hub import snapshot_download

    with _explain_errors(repository, revision):
        path = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    return Source(path, repository, path.name)


@contextmanager
def _explain_errors(repository: str, revision: str) -> Iterator[None]:
    """Turn what the hub's client raises into one message."""
    try:
        yield
    except Exception as error:  # of its own classes, of its HTTP client, and of the system
        raise HubError(explain(error, repository, revision)) from None


def explain(error: Exception, repository: str, revision: str) -> str:
    """Return one message for an error of the hub's client."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated: accept its licence at huggingface.co/{repository}, then set HF_TOKEN to one of "
            "your tokens, or download it and name the folder"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; leave --revision out for the newest"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no folder {repository}, and the hub shows no repository of that name; correct it, or set "
            "HF_TOKEN if it is private"
        )
    offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else "no connection"
    return (
        f"{repository} cannot be fetched from the hub ({offline}: {type(error).__name__}); download it elsewhere and "
        f"name its folder, with {INDEX}"
    )
