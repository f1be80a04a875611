"""The targets of `--on`: this machine, a Ray head that accepts jobs, or Kubernetes with KubeRay."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from presto_core.config.loader import ConfigError

LOCAL = "local"
API_SERVER = "RAY_API_SERVER_ADDRESS"  # the variable of `ray job`


class Kind(StrEnum):
    LOCAL = "local"
    HEAD = "head"
    KUBERAY = "kuberay"


@dataclass(frozen=True)
class Target:
    """Where a command runs.

    Attributes:
        address: of a Ray head, as given; or the kubectl context, empty if a RayJob is only printed.
    """

    kind: Kind
    address: str = ""

    @property
    def is_this_machine(self) -> bool:
        """Whether loopback addresses mean the same machine there as here."""
        return self.kind is Kind.LOCAL or (self.kind is Kind.HEAD and is_loopback_url(self.address))


def parse_target(on: str) -> Target:
    """Parse the value of `--on`.

    Raises:
        ConfigError: it is not a target.
    """
    if on == LOCAL:
        return Target(Kind.LOCAL)
    scheme, separator, rest = on.partition("://")
    if scheme == "kuberay" and bool(separator) == bool(rest):
        return Target(Kind.KUBERAY, rest)
    if scheme in ("http", "https", "ray") and host_of(on):
        if "@" in urlsplit(on).netloc:
            raise ConfigError("--on contains a password, which logs would show; set RAY_AUTH_TOKEN instead")
        return Target(Kind.HEAD, on.rstrip("/"))
    raise ConfigError(
        f"--on {on!r} is not a target; use local, http://HEAD:8265, https://HEAD, ray://HEAD:10001, kuberay, or "
        "kuberay://CONTEXT"
    )


def host_of(url: str) -> str:
    """Return the host of a URL; empty if it has none or its port is invalid."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.port is None or parts.port else ""
    except ValueError:
        return ""


def is_loopback_url(url: str) -> bool:
    """Whether a URL points to the machine it is used on."""
    host = host_of(url)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
