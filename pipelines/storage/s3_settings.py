"""The settings of S3, read in one place from the standard environment and files, and handed to every client.

Three clients talk to S3: boto3, Arrow's file system and single signed requests. Each would read the environment in its
own way, so none of them reads it: what boto3 obeys is resolved here, and a value that one client cannot obey is refused
by its name before any work. Credentials are no part of it; they are looked up on every use, because they expire.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from pipelines.redaction import strip_password
from pipelines.storage.http_proxy import Proxy, find_proxy, split_url
from pipelines.storage.s3_session import (
    describe_profile_error,
    fingerprint_environment,
    get_core_session,
    read_profile,
)
from presto_core.artifacts.store import StoreError

ADDRESSING_STYLES = ("auto", "path", "virtual")
AWS_URL = "https://s3.{region}.amazonaws.com"
CONFIGURED = "configured"  # the endpoint of the environment or the profile


@dataclass(frozen=True)
class S3Settings:
    """How S3 is reached, by every client.

    Attributes:
        endpoint: URL of the server; None means AWS itself.
        endpoint_setting: what names it.
        addressing: where the bucket is: in the `path`, in the host name (`virtual`), or as AWS does it (`auto`).
        ca_file: PEM file of the authorities that are trusted.
        ca_setting: what names it; empty for the default.
    """

    endpoint: str | None
    endpoint_setting: str
    region: str
    addressing: str
    proxy: Proxy | None
    ca_file: str
    ca_setting: str

    @property
    def where(self) -> str:
        """The server's name for messages."""
        return self.endpoint or "AWS"

    @property
    def url(self) -> str:
        """The server's URL, without buckets."""
        return self.endpoint or AWS_URL.format(region=self.region)

    def describe(self) -> str:
        """Return the settings in one line, without passwords."""
        endpoint = f"{self.where} ({self.endpoint_setting})" if self.endpoint_setting else self.where
        proxy = f"{self.proxy.url} ({self.proxy.setting})" if self.proxy else "none"
        authorities = f"{self.ca_file} ({self.ca_setting})" if self.ca_setting else "certifi's"
        return (
            f"endpoint {endpoint}, region {self.region}, addressing style {self.addressing}, proxy {proxy}, "
            f"certificate authorities {authorities}"
        )


def load_settings(endpoint: str | None = CONFIGURED) -> S3Settings:
    """Return the settings of the environment and the profile, as they are now.

    Args:
        endpoint: replaces the configured one; None means AWS.

    Raises:
        StoreError: a setting is invalid, or cannot be obeyed by every client.
    """
    return _load_settings(fingerprint_environment(), endpoint)


def endpoint() -> str | None:
    """Return the S3 endpoint from the environment or the profile; None means AWS itself."""
    return load_settings().endpoint


@lru_cache(maxsize=32)
def _load_settings(fingerprint: tuple[object, ...], endpoint: str | None) -> S3Settings:
    session, profile = get_core_session(), read_profile()
    url, setting = _find_endpoint(session)
    if endpoint not in (CONFIGURED, url):
        url, setting = endpoint, ""
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    _check_region(region)
    style = _read_addressing_style(profile) or ("path" if url else "auto")
    if style == "auto" and not url:  # means the same for AWS, but boto3 signs `auto` for another host than it sends to
        style = "virtual"
    settings = S3Settings(url, setting, region, style, proxy=None, ca_file="", ca_setting="")
    ca_file, ca_setting = _find_ca_file(session, needed=settings.url.startswith("https:"))
    return replace(settings, proxy=find_proxy(urlsplit(settings.url)), ca_file=ca_file, ca_setting=ca_setting)


def _find_endpoint(session: Any) -> tuple[str | None, str]:
    """Return the endpoint, in boto3's order, and what names it."""
    from botocore.configprovider import ConfiguredEndpointProvider

    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None, ""
    try:
        url = ConfiguredEndpointProvider(
            full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
        ).provide()
    except Exception as error:  # a profile names `services` that do not exist
        raise describe_profile_error(error) from error
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    setting = next((name for name in variables if os.environ.get(name)), "the profile's endpoint_url")
    return (_check_endpoint(url, setting), setting) if url else (None, "")


def _check_endpoint(url: str, setting: str) -> str:
    """Return the URL of an endpoint without a final slash.

    Raises:
        StoreError: it is no URL of a server.
    """
    url = url.strip()
    if "@" in url:
        raise StoreError(
            f"{setting} has a user or a password, which S3 does not take; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and remove them from the URL"
        )
    if "://" not in url:
        raise StoreError(f"{setting}={strip_password(url)} has no scheme; write http://{url} or https://{url}")
    parts, _ = split_url(url, setting)
    if parts.scheme not in ("http", "https"):
        raise StoreError(f"{setting}={strip_password(url)} has scheme {parts.scheme!r}; write http:// or https://")
    if parts.query or parts.fragment:
        raise StoreError(f"{setting}={url} has a query or a fragment; write the server's URL only")
    return url.rstrip("/")


def _check_region(region: str) -> None:
    from botocore.exceptions import InvalidRegionError
    from botocore.utils import validate_region_name

    try:
        validate_region_name(region)
    except InvalidRegionError:
        raise StoreError(f"region {region!r} is no name of one; correct AWS_REGION or the profile's region") from None


def _read_addressing_style(profile: Mapping[str, Any]) -> str:
    """Return the profile's `s3.addressing_style`, or an empty string."""
    nested = profile.get("s3")
    style = str(nested.get("addressing_style", "")) if isinstance(nested, Mapping) else ""
    if style and style not in ADDRESSING_STYLES:
        choices = ", ".join(ADDRESSING_STYLES)
        raise StoreError(f"the profile's s3 addressing_style={style} is unknown; use one of {choices}")
    return style


def _find_ca_file(session: Any, *, needed: bool) -> tuple[str, str]:
    """Return the file of trusted authorities, and what names it: boto3's order, then SSL_CERT_FILE."""
    from botocore.httpsession import get_cert_path

    configured = session.get_config_variable("ca_bundle")
    found = {
        "AWS_CA_BUNDLE" if os.environ.get("AWS_CA_BUNDLE") else "the profile's ca_bundle": configured,
        "REQUESTS_CA_BUNDLE": os.environ.get("REQUESTS_CA_BUNDLE"),
        "SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE"),
    }
    for setting, path in found.items():
        if path and path.strip():
            path = os.path.expanduser(path.strip())
            if needed:
                _check_ca_file(path, setting)
            return path, setting
    return str(get_cert_path(True)), ""


def _check_ca_file(path: str, setting: str) -> None:
    if not os.path.isabs(path):
        raise StoreError(
            f"{setting}={path} is relative, but workers run in other folders; write {os.path.abspath(path)}"
        )
    if not os.path.exists(path):
        raise StoreError(f"{setting}={path} does not exist; name a PEM file of certificates, or unset it")
    if os.path.isdir(path):
        raise StoreError(f"{setting}={path} is a folder; name one PEM file with all certificates")
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{setting}={path} cannot be read as certificates ({why}); name a PEM file") from None
