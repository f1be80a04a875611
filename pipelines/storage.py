"""One URI -> one place in a file system: a local folder, or an S3 bucket of any provider.

Endpoint, region and credentials come from the standard environment and files (AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, profiles, ...); they are never part of a configuration, an artifact or a log. Only URIs travel to
workers, which look their credentials up themselves.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pyarrow import fs as pafs

from presto_core.registry.store import Folder, StoreError

CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, ATTEMPTS = 5, 30, 5


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
        _require_bucket(bucket, endpoint())
        return Folder(_s3_filesystem(endpoint()), f"{bucket}/{prefix}".rstrip("/"), uri.rstrip("/"))
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme != "file":
        raise StoreError(f"{uri!r}: scheme {scheme!r} is not supported; use s3://bucket/prefix or a local folder")
    path = Path(uri.removeprefix("file://")).expanduser().absolute()
    return Folder(pafs.LocalFileSystem(), str(path), str(path))


def absolute(uri: str) -> str:
    """A URI that means the same in every working directory: Ray workers run in another one."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def endpoint() -> str | None:
    """The S3 endpoint in use; None means AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def create_bucket(name: str) -> None:
    """Create a bucket unless it exists.

    Raises:
        StoreError: see `open_folder`.
    """
    client = s3_client(endpoint())
    try:
        client.create_bucket(Bucket=name)
    except client.exceptions.BucketAlreadyOwnedByYou:
        pass
    except Exception as error:
        raise _s3_error(error, name, endpoint()) from error


def s3_client(url: str | None) -> Any:
    """A boto3 client with bounded waiting."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=REQUEST_TIMEOUT_S,
        retries={"max_attempts": ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path" if url else "auto"},
    )
    # a fresh session: the default one remembers the first credentials it saw
    return boto3.Session().client("s3", endpoint_url=url, region_name=_region(), config=config)


@lru_cache(maxsize=32)
def _require_bucket(bucket: str, url: str | None) -> None:
    try:
        s3_client(url).head_bucket(Bucket=bucket)
    except Exception as error:
        raise _s3_error(error, bucket, url) from error


@lru_cache(maxsize=4)
def _s3_filesystem(url: str | None) -> pafs.S3FileSystem:
    import boto3

    found = boto3.Session().get_credentials()
    if found is None:
        raise StoreError(_NO_CREDENTIALS)
    keys = found.get_frozen_credentials()
    place: dict[str, Any] = {"region": _region()}
    if url:
        # S3FileSystem does not read AWS_ENDPOINT_URL: without the override it would talk to AWS
        parsed = urlparse(url)
        place |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    return pafs.S3FileSystem(
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        session_token=keys.token,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **place,
    )


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


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
        return StoreError(f"object store {where}, bucket {bucket!r}: {code}")
    return StoreError(f"object store {where}, bucket {bucket!r}: {' '.join(str(error).split())}")
