"""Find the HTTP proxy in front of a server, and split URLs of settings."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pipelines.redaction import strip_password
from presto_core.artifacts.store import StoreError


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy; its password is not shown.

    Attributes:
        url: http://host:port, without user and password.
        setting: environment variable that names it.
    """

    url: str
    setting: str
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def url_with_password(self) -> str:
        user = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.username else ""
        return self.url.replace("http://", f"http://{user}", 1)


def find_proxy(target: SplitResult) -> Proxy | None:
    """Return the proxy to a server, as boto3 finds it: HTTP_PROXY or HTTPS_PROXY, unless NO_PROXY names the host.

    A server on this machine is always reached directly, because a proxy elsewhere cannot reach it.
    """
    url = getproxies().get(target.scheme)
    if not url or _is_this_machine(target.hostname or "") or proxy_bypass(target.netloc):
        return None
    variable = f"{target.scheme}_proxy"
    setting = variable if os.environ.get(variable) else variable.upper()
    url = url if "://" in url else f"http://{url.removeprefix('//')}"
    parts, port = split_url(url, setting)
    if parts.scheme != "http":
        raise StoreError(
            f"{setting} names a proxy of scheme {parts.scheme!r}, which not every S3 client can use; write "
            f"http://{parts.hostname}:{port or 3128} if it takes plain connections, or set NO_PROXY={target.hostname}"
        )
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return Proxy(f"http://{host}:{port or 80}", setting, unquote(parts.username or ""), unquote(parts.password or ""))


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_url(url: str, setting: str) -> tuple[SplitResult, int | None]:
    """Split a URL; StoreError if it has no host or an invalid port."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may hold a part of a password
        raise StoreError(f"{setting}={strip_password(url)} is not a URL; write http://host:port") from None
    if not parts.hostname:
        raise StoreError(f"{setting}={strip_password(url)} has no host; write http://host:port")
    return parts, port
