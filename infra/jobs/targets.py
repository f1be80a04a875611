"""What `--on` names: this machine, a Ray head that takes jobs, or Kubernetes with KubeRay."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

import typer

from presto_core.errors import UserError

LOCAL = "local"
API_SERVER = "RAY_API_SERVER_ADDRESS"  # as `ray job` has it

On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="TARGET",
        help="Where it runs: local; http(s)://HEAD:8265 or ray://HEAD:10001, as a Ray job; kuberay, as a RayJob that "
        "is printed, or kuberay://CONTEXT, where kubectl applies it.",
    ),
]


class Kind(StrEnum):
    LOCAL = "local"
    HEAD = "head"
    KUBERAY = "kuberay"


@dataclass(frozen=True)
class Target:
    """Where a verb runs.

    Attributes:
        address: of a Ray head, as given; or the kubectl context, empty where a RayJob is only printed.
    """

    kind: Kind
    address: str = ""

    @property
    def is_this_machine(self) -> bool:
        """Whether addresses on loopback mean the same there as here."""
        return self.kind is Kind.LOCAL or (self.kind is Kind.HEAD and is_loopback_url(self.address))


def parse_target(on: str) -> Target:
    """What `--on` means.

    Raises:
        UserError: it is no target.
    """
    if on == LOCAL:
        return Target(Kind.LOCAL)
    scheme, separator, rest = on.partition("://")
    if scheme == "kuberay" and bool(separator) == bool(rest):
        return Target(Kind.KUBERAY, rest)
    if scheme in ("http", "https", "ray") and host_of(on):
        if "@" in urlsplit(on).netloc:
            raise UserError("--on holds a password, which logs would show; set RAY_AUTH_TOKEN instead")
        return Target(Kind.HEAD, on.rstrip("/"))
    raise UserError(
        f"--on {on!r} is no target; use local, http://HEAD:8265, https://HEAD, ray://HEAD:10001, kuberay, or "
        "kuberay://CONTEXT"
    )


def host_of(url: str) -> str:
    """The host of a URL; empty where it has none, or its port is no number."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.port is None or parts.port else ""
    except ValueError:
        return ""


def is_loopback_url(url: str) -> bool:
    """Whether a URL leads to the machine it is used on."""
    host = host_of(url)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
