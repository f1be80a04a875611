"""What a model in the registry may be called: refused here, in the configuration, before a run spends hours on it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

MAX_LENGTH = 100
# MLflow refuses / and :, and its filters cannot quote '; the name is a folder of the store and an argument of a shell
_RULE = f"use 1 to {MAX_LENGTH} letters a-z, digits, hyphens, underscores and dots, with a letter or digit first"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
# alone, these stand for a version of presto-generator, an artifact, or a model of the package
_REFERENCE = re.compile(
    r"(champion|candidate(-\w+)*|archived-\d+|v\d+|[0-9a-f]{16}|presto-tiny-(teacher|l|s|ls))", re.IGNORECASE | re.ASCII
)


def check_registry_name(name: str) -> str:
    """Return a name that a model can be registered under.

    Raises:
        ValueError: it is none; the message has the name and the rule.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_LENGTH or name.endswith("."):
        raise ValueError(f"{_quote(name)} cannot name a model in the registry; {_RULE}")
    if _REFERENCE.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a model in the registry: alone, it stands for a version or an artifact; "
            f"choose another name, such as my-{name[:20]}"
        )
    return name


def _quote(name: str) -> str:
    """A name in quotes, of a very long one the beginning and the length."""
    return repr(name) if len(name) <= MAX_LENGTH else f"{name[:20]!r}… ({len(name)} characters)"


RegistryName = Annotated[str, AfterValidator(check_registry_name)]
