"""Open the folder of a URI: a local folder, or a prefix of an S3 bucket of any provider.

Endpoint, region and credentials come from the standard environment and files (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, profiles, roles, ...); they are never part of a configuration, an artifact or a log. Workers receive
URIs only and look up their credentials themselves, whenever these expire.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pyarrow import fs as pafs

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.models.pretrained import SCHEME, locate_pretrained

if TYPE_CHECKING:
    from pipelines.storage.s3_objects import S3Objects

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 15  # without a byte; a pause of 10 s is tolerated
# presto_core.artifacts.retry does the long waits; one retry here serves parts of large uploads and other callers
ATTEMPTS = 2
CLIENT_ATTEMPTS = 4  # of boto3, which only checks the bucket, once
CREDENTIAL_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}


def open_folder(uri: str) -> Folder:
    """Open the folder of a URI; it need not exist yet.

    Args:
        uri: s3://bucket/prefix, file:///folder, a local path, or pretrained://NAME for a model of the package.

    Raises:
        StoreError: unknown scheme; for s3, missing bucket, unreachable endpoint or rejected credentials.
        UserError: the package has no such model.
    """
    if uri.startswith(SCHEME):
        return Folder(pafs.LocalFileSystem(), str(locate_pretrained(uri)), uri)
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError(f"URI {uri!r} has no bucket; use s3://bucket/prefix")
        url = endpoint()
        _check_bucket(bucket, url)
        # the file system is looked up on every use: a stored one would lose temporary credentials during a run
        bucket_path = f"{bucket}/{prefix}".rstrip("/")
        return Folder(partial(_s3_filesystem, url), bucket_path, uri.rstrip("/"), fast_path=partial(_s3_objects, url))
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme != "file":
        raise StoreError(f"URI {uri!r} has unsupported scheme {scheme!r}; use s3://bucket/prefix or a local folder")
    path = Path(uri.removeprefix("file://")).expanduser().absolute()
    return Folder(pafs.LocalFileSystem(), str(path), str(path))


def absolute_uri(uri: str) -> str:
    """Make a URI independent of the working directory, because Ray workers run in another one."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def endpoint() -> str | None:
    """Return the S3 endpoint from the environment or the profile; None means AWS itself."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return url or _profile().get("endpoint_url") or None


def create_bucket(name: str) -> None:
    """Create a bucket unless it exists.

    Raises:
        StoreError: see `open_folder`.
    """
    client = create_s3_client(endpoint())
    try:
        client.create_bucket(Bucket=name)
    except client.exceptions.BucketAlreadyOwnedByYou:
        pass
    except Exception as error:
        raise _s3_error(error, name, endpoint()) from error


def create_s3_client(url: str | None, **options: Any) -> Any:
    """Create a boto3 client with bounded waits; `options` are further options of botocore's Config."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=REQUEST_TIMEOUT_S,
        retries={"total_max_attempts": CLIENT_ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": _addressing_style() or ("path" if url else "auto")},
        **options,
    )
    # a new session: the default one keeps the first credentials it found
    return boto3.Session().client("s3", endpoint_url=url, region_name=region(), config=config)


def _s3_objects(url: str | None) -> S3Objects:
    """Return the single-request client with the current credentials. OSError if none can be found."""
    from botocore.exceptions import BotoCoreError

    try:
        return _s3_objects_cached(url, _credential_fingerprint())
    except BotoCoreError as error:
        raise OSError(str(error)) from error


@lru_cache(maxsize=8)
def _s3_objects_cached(url: str | None, fingerprint: tuple[object, ...]) -> S3Objects:
    from pipelines.storage.s3_objects import S3Objects

    client = create_s3_client(url, signature_version="s3v4")
    return S3Objects(client, connect_timeout_s=CONNECT_TIMEOUT_S, read_timeout_s=REQUEST_TIMEOUT_S)


def region() -> str:
    """Return the region from the environment or the profile."""
    return (
        os.environ.get("AWS_REGION") or _session(_credential_fingerprint()).get_config_variable("region") or "us-east-1"
    )


@lru_cache(maxsize=32)
def _check_bucket(bucket: str, url: str | None) -> None:
    try:
        create_s3_client(url).head_bucket(Bucket=bucket)
    except StoreError:
        raise
    except Exception as error:
        raise _s3_error(error, bucket, url) from error


def _s3_filesystem(url: str | None) -> pafs.S3FileSystem:
    """Return the file system with the current credentials; boto3 renews them some minutes before they expire."""
    try:
        credentials = _session(_credential_fingerprint()).get_credentials()
        keys = credentials and credentials.get_frozen_credentials()
    except Exception as error:
        raise _credentials_error(error) from error
    if keys is None:
        raise StoreError(_NO_CREDENTIALS)
    return _s3_filesystem_cached(url, region(), _addressing_style(), keys.access_key, keys.secret_key, keys.token)


@lru_cache(maxsize=8)
def _s3_filesystem_cached(
    url: str | None, region: str, addressing: str, access_key: str, secret_key: str, token: str | None
) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        **_filesystem_options(url, region, addressing),
    )


def _filesystem_options(url: str | None, region: str, addressing: str) -> dict[str, Any]:
    """Return the options of the file system except for the credentials."""
    options = {
        "region": region,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # with delayed open, a large upload whose first request fails leaves an empty object
        "allow_delayed_open": False,
        "tls_ca_file_path": os.environ.get("AWS_CA_BUNDLE"),
    }
    if url:
        # S3FileSystem ignores AWS_ENDPOINT_URL: without the override it would connect to AWS
        parsed = urlparse(url)
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
        options |= {"force_virtual_addressing": addressing == "virtual"}
    return options


def _addressing_style() -> str:
    """Return the profile's `s3.addressing_style` (path, virtual or auto), or an empty string."""
    settings = _profile().get("s3")
    return str(settings.get("addressing_style", "")) if isinstance(settings, Mapping) else ""


def _profile() -> Mapping[str, Any]:
    try:
        return _session(_credential_fingerprint()).get_scoped_config()
    except Exception as error:
        raise _credentials_error(error) from error


@lru_cache(maxsize=8)
def _session(fingerprint: tuple[object, ...]) -> Any:
    import botocore.session

    return botocore.session.get_session()


def _credential_fingerprint() -> tuple[object, ...]:
    """Return everything that determines which credentials are found; a change creates a new session."""
    paths = [Path(os.environ.get(name, default)).expanduser() for name, default in CREDENTIAL_FILES.items()]
    mtimes = [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]
    return (*mtimes, *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


def _credentials_error(error: Exception) -> StoreError:
    """Convert boto3's error about a profile, a role or a login to one message with a fix."""
    message = " ".join(str(error).split()).rstrip(".")
    return StoreError(f"S3 credentials cannot be obtained: {message}; check AWS_PROFILE and its files, or log in again")


_NO_CREDENTIALS = (
    "no S3 credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile), or start the local "
    'object store: eval "$(presto s3 start)"'
)


def _s3_error(error: Exception, bucket: str, url: str | None) -> StoreError:
    """Convert boto3's exception to one message with a fix."""
    from botocore import exceptions as boto

    where = url or "AWS"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StoreError(_NO_CREDENTIALS)
    if isinstance(error, boto.CredentialRetrievalError | boto.SSOError | boto.ProfileNotFound):
        return _credentials_error(error)
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError):
        return StoreError(
            f"object store {where} does not answer; start it (locally: presto s3 start) or correct AWS_ENDPOINT_URL"
        )
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code"))
        if code in ("404", "NoSuchBucket"):
            return StoreError(f"bucket {bucket!r} does not exist at {where}; create it or correct storage.root")
        if code in ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return StoreError(
                f"object store {where} rejects these credentials for bucket {bucket!r}; "
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their access to the bucket"
            )
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            return StoreError(
                f"object store {where}, bucket {bucket!r}: the server is overloaded or failing ({code}) "
                f"in {CLIENT_ATTEMPTS} attempts; re-run the same command later"
            )
        return StoreError(f"object store {where} fails for bucket {bucket!r} ({code}); check its logs")
    why = " ".join(str(error).split())
    return StoreError(f"object store {where} fails for bucket {bucket!r}: {why}; check AWS_ENDPOINT_URL")
