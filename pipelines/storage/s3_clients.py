"""The three clients of S3, made from the same settings: boto3, Arrow's file system, and single signed requests."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3
from pyarrow import fs as pafs

from pipelines.storage.http_proxy import Proxy
from pipelines.storage.s3_session import (
    NO_CREDENTIALS,
    describe_profile_error,
    find_credentials,
    fingerprint_environment,
    get_session,
)
from pipelines.storage.s3_settings import CONFIGURED, S3Settings, load_settings
from presto_core.artifacts.store import StoreError

if TYPE_CHECKING:
    from pipelines.storage.s3_objects import S3Objects

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 15  # without a byte; a pause of 10 s is tolerated
# presto_core.artifacts.retry does the long waits; one retry here serves parts of large uploads and other callers
ATTEMPTS = 2
CLIENT_ATTEMPTS = 4  # of boto3, which only checks the bucket, once
CONNECTIONS = 8  # kept open per server by single requests; more threads open more connections
_CREATION = threading.Lock()  # boto3's sessions are not thread-safe


class BucketAccess(NamedTuple):
    """How a folder of a bucket was opened; travels to workers, which look up settings and credentials themselves.

    Attributes:
        endpoint: URL of the server; None means AWS.
        anonymous: whether requests are not signed.
    """

    bucket: str
    endpoint: str | None
    anonymous: bool = False


def create_s3_client(*, endpoint: str | None = CONFIGURED, anonymous: bool = False, **options: Any) -> Any:
    """Create a boto3 client with bounded waits.

    Args:
        endpoint: replaces the configured one; None means AWS.
        options: further options of botocore's Config.

    Raises:
        StoreError: a setting is invalid.
    """
    from botocore import UNSIGNED
    from botocore.config import Config

    settings = load_settings(endpoint)
    proxy = settings.proxy  # without one, an empty mapping keeps boto3 from looking for one itself
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=REQUEST_TIMEOUT_S,
        retries={"total_max_attempts": CLIENT_ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": settings.addressing},
        signature_version=UNSIGNED if anonymous else "s3v4",
        proxies=dict.fromkeys(("http", "https"), proxy.url_with_password) if proxy else {},
        ignore_configured_endpoint_urls=True,  # it is in the settings
        **options,
    )
    with _CREATION:
        return get_session().client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name=settings.region,
            verify=settings.ca_file,
            config=config,
        )


@lru_cache(maxsize=8)
def _share_client(fingerprint: tuple[object, ...], access: BucketAccess) -> Any:
    return create_s3_client(endpoint=access.endpoint, anonymous=access.anonymous, max_pool_connections=16)


def share_s3_client(access: BucketAccess) -> Any:
    """Return the boto3 client of all threads; it keeps its connections and renews its credentials."""
    return _share_client(fingerprint_environment(), access)


def open_objects(access: BucketAccess) -> S3Objects:
    """Return the single-request client with the current credentials. OSError if none can be found."""
    from botocore.exceptions import BotoCoreError

    try:
        return _open_objects(fingerprint_environment(), access.endpoint, access.anonymous)
    except BotoCoreError as error:
        raise OSError(str(error)) from error


@lru_cache(maxsize=8)
def _open_objects(fingerprint: tuple[object, ...], endpoint: str | None, anonymous: bool) -> S3Objects:
    from pipelines.storage.s3_objects import S3Objects

    client = create_s3_client(endpoint=endpoint, anonymous=anonymous)
    pool = create_http_pool(load_settings(endpoint), maxsize=CONNECTIONS)
    return S3Objects(client, pool, connect_timeout_s=CONNECT_TIMEOUT_S, read_timeout_s=REQUEST_TIMEOUT_S)


def create_http_pool(settings: S3Settings, *, maxsize: int = 1) -> urllib3.PoolManager:
    """Create the connections of plain HTTP requests to the server, through its proxy."""
    proxy = settings.proxy
    if proxy is None:
        return urllib3.PoolManager(maxsize=maxsize, ca_certs=settings.ca_file)
    headers = urllib3.make_headers(proxy_basic_auth=f"{proxy.username}:{proxy.password}") if proxy.username else None
    return urllib3.ProxyManager(proxy.url, maxsize=maxsize, ca_certs=settings.ca_file, proxy_headers=headers)


def open_filesystem(access: BucketAccess) -> pafs.S3FileSystem:
    """Return the file system with the current credentials; boto3 renews them some minutes before they expire."""
    fingerprint, settings = fingerprint_environment(), load_settings(access.endpoint)
    location = _locate_bucket(fingerprint, access)
    if access.anonymous:
        return _open_filesystem(fingerprint, settings, location, None, None, None)
    credentials = find_credentials()
    if credentials is None:
        raise StoreError(NO_CREDENTIALS)
    try:
        keys = credentials.get_frozen_credentials()
    except Exception as error:  # of any provider: a role, a login, a process
        raise describe_profile_error(error) from error
    return _open_filesystem(fingerprint, settings, location, keys.access_key, keys.secret_key, keys.token)


@lru_cache(maxsize=8)
def _open_filesystem(
    fingerprint: tuple[object, ...],
    settings: S3Settings,
    location: ArrowLocation,
    access_key: str | None,
    secret_key: str | None,
    token: str | None,
) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        anonymous=access_key is None,
        region=settings.region,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # with delayed open, a large upload whose first request fails leaves an empty object
        allow_delayed_open=False,
        tls_ca_file_path=settings.ca_file,
        proxy_options=_make_arrow_proxy(settings.proxy),
        scheme=location.scheme,
        endpoint_override=location.host,
        force_virtual_addressing=location.is_virtual,
    )


class ArrowLocation(NamedTuple):
    """Where Arrow sends the requests of a bucket.

    Attributes:
        host: host, port and path without the bucket.
        is_virtual: whether the bucket is put before the host, or after it.
    """

    scheme: str
    host: str
    is_virtual: bool


@lru_cache(maxsize=64)
def _locate_bucket(fingerprint: tuple[object, ...], access: BucketAccess) -> ArrowLocation:
    """Return where boto3 sends the requests of a bucket, so that Arrow sends them there too.

    So whatever boto3 obeys (dual stack, FIPS, acceleration, the addressing style, …), Arrow obeys as well.

    Raises:
        StoreError: Arrow cannot be sent there.
    """
    bucket, key = access.bucket, "k"
    client = create_s3_client(endpoint=access.endpoint, anonymous=True)
    url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))
    path = unquote(url.path)
    if path.endswith(f"/{bucket}/{key}"):
        return ArrowLocation(url.scheme, url.netloc + path.removesuffix(f"/{bucket}/{key}"), is_virtual=False)
    if url.netloc.startswith(f"{bucket}."):
        host = url.netloc.removeprefix(f"{bucket}.")
        return ArrowLocation(url.scheme, host + path.removesuffix(f"/{key}"), is_virtual=True)
    raise StoreError(
        f"bucket {bucket!r} is reached at {url.netloc}{path.removesuffix(f'/{key}')}, where not every S3 client can "
        "be sent; use the bucket's own name and a plain endpoint"
    )


def _make_arrow_proxy(proxy: Proxy | None) -> dict[str, Any] | None:
    if proxy is None:
        return None
    parts = urlsplit(proxy.url)
    options = {"scheme": "http", "host": parts.hostname, "port": parts.port}
    return options | ({"username": proxy.username, "password": proxy.password} if proxy.username else {})
