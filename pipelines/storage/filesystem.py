"""One URI -> one place in a file system: a local folder, or an S3 bucket of any provider.

Endpoint, region and credentials come from the standard environment and files (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, profiles, roles, ...); they are never part of a configuration, an artifact or a log. Only URIs travel
to workers, which look their credentials up themselves, as often as they expire.
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

if TYPE_CHECKING:
    from pipelines.storage.s3_objects import S3Objects

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 15  # without a byte; a peer that says nothing for 10 s is still waited for
# presto_core.artifacts.retry does the waiting: one quiet repetition serves parts of large uploads and other callers
ATTEMPTS = 2
CLIENT_ATTEMPTS = 4  # of boto3, which only looks for the bucket, once
CREDENTIAL_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}


def open_folder(uri: str) -> Folder:
    """The folder a URI names; it need not exist yet.

    Args:
        uri: s3://bucket/prefix, file:///folder, or a local path.

    Raises:
        StoreError: unknown scheme; for s3, missing bucket, unreachable endpoint or refused credentials.
    """
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError(f"{uri!r} names no bucket; use s3://bucket/prefix")
        url = endpoint()
        _check_bucket(bucket, url)
        # the file system is looked up at every use: temporary credentials would end with it in the middle of a run
        bucket_path = f"{bucket}/{prefix}".rstrip("/")
        return Folder(partial(_s3_filesystem, url), bucket_path, uri.rstrip("/"), fast_path=partial(_s3_objects, url))
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme != "file":
        raise StoreError(f"{uri!r}: scheme {scheme!r} is not supported; use s3://bucket/prefix or a local folder")
    path = Path(uri.removeprefix("file://")).expanduser().absolute()
    return Folder(pafs.LocalFileSystem(), str(path), str(path))


def absolute_uri(uri: str) -> str:
    """A URI that means the same in every working directory: Ray workers run in another one."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def endpoint() -> str | None:
    """The S3 endpoint in use, of the environment or the profile; None means AWS itself."""
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
    """A boto3 client with bounded waiting, and more options of botocore's Config."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=REQUEST_TIMEOUT_S,
        retries={"total_max_attempts": CLIENT_ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": _addressing_style() or ("path" if url else "auto")},
        **options,
    )
    # a fresh session: the default one remembers the first credentials it saw
    return boto3.Session().client("s3", endpoint_url=url, region_name=region(), config=config)


def _s3_objects(url: str | None) -> S3Objects:
    """For one request each, with the credentials of this moment. Raises OSError where none can be found."""
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
    """The region in use, of the environment or the profile."""
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
    """The file system with the credentials of this moment: boto3 renews those that expire some minutes before."""
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
    """Everything but the credentials."""
    options = {
        "region": region,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # delayed, a large upload whose first request fails would leave an empty object under its name
        "allow_delayed_open": False,
        "tls_ca_file_path": os.environ.get("AWS_CA_BUNDLE"),
    }
    if url:
        # S3FileSystem does not read AWS_ENDPOINT_URL: without the override it would talk to AWS
        parsed = urlparse(url)
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
        options |= {"force_virtual_addressing": addressing == "virtual"}
    return options


def _addressing_style() -> str:
    """path, virtual or auto, where the profile says so: `s3 = addressing_style = ...`."""
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
    """All that decides which credentials are found; a session is made anew when it changes."""
    paths = [Path(os.environ.get(name, default)).expanduser() for name, default in CREDENTIAL_FILES.items()]
    mtimes = [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]
    return (*mtimes, *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


def _credentials_error(error: Exception) -> StoreError:
    """What boto3 says of a profile, a role or a login, as one sentence with a mend."""
    message = " ".join(str(error).split()).rstrip(".")
    return StoreError(f"no S3 credentials can be obtained: {message}; mend AWS_PROFILE and its files, or log in again")


_NO_CREDENTIALS = (
    "no S3 credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile), or start the embedded "
    'object store with: eval "$(presto up)"'
)


def _s3_error(error: Exception, bucket: str, url: str | None) -> StoreError:
    """boto3's exception as one sentence with a mend."""
    from botocore import exceptions as boto

    where = url or "AWS"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StoreError(_NO_CREDENTIALS)
    if isinstance(error, boto.CredentialRetrievalError | boto.SSOError | boto.ProfileNotFound):
        return _credentials_error(error)
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError):
        return StoreError(
            f"object store {where} does not answer; start it (embedded one: presto up) or mend AWS_ENDPOINT_URL"
        )
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code"))
        if code in ("404", "NoSuchBucket"):
            return StoreError(f"bucket {bucket!r} does not exist at {where}; create it or mend storage.root")
        if code in ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return StoreError(
                f"object store {where} refuses these credentials for bucket {bucket!r}; "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and that they may use the bucket"
            )
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            return StoreError(
                f"object store {where}, bucket {bucket!r}: the server is overloaded or failing ({code}) "
                f"in {CLIENT_ATTEMPTS} attempts; run the same command again later"
            )
        return StoreError(f"object store {where}, bucket {bucket!r}: {code}")
    return StoreError(f"object store {where}, bucket {bucket!r}: {' '.join(str(error).split())}")
