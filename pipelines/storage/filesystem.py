"""Open the folder of a URI: a local folder, or a prefix of an S3 bucket of any provider.

Endpoint, region and credentials come from the standard environment and files (s3_settings.py); they are never part of a
configuration, an artifact or a log. Workers receive URIs only and look up their credentials themselves, whenever these
expire.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

from pyarrow import fs as pafs

from pipelines.storage.s3_clients import BucketAccess, create_s3_client, open_filesystem, open_objects
from pipelines.storage.s3_errors import explain_s3_error, name_other_region
from pipelines.storage.s3_session import find_credentials, fingerprint_environment
from pipelines.storage.s3_settings import load_settings
from pipelines.storage.s3_uri import check_scheme, has_scheme, is_s3_uri, parse_s3_uri
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError
from presto_core.models.pretrained import SCHEME, locate_pretrained


def open_folder(uri: str, *, setting: str = "the URI") -> Folder:
    """Open the folder of a URI; it need not exist yet.

    Args:
        uri: s3://bucket/prefix, file:///folder, a local path, or pretrained://NAME for a model of the package.
        setting: what the user typed it as, for messages.

    Raises:
        StoreError: unknown scheme; for s3, an invalid setting, missing bucket, unreachable endpoint or rejected
            credentials.
        UserError: the package has no such model.
    """
    if uri.startswith(SCHEME):
        return Folder(pafs.LocalFileSystem(), str(locate_pretrained(uri)), uri)
    if is_s3_uri(uri):
        return _open_bucket(uri, setting, anonymous=False)
    check_scheme(uri, setting)
    path = Path(uri.removeprefix("file://")).expanduser().absolute()
    return Folder(pafs.LocalFileSystem(), str(path), str(path))


def open_source(uri: str, *, setting: str = "ingest.source") -> Folder:
    """Open a folder that is only read: without credentials, an S3 bucket is read anonymously.

    Raises:
        StoreError: see `open_folder`.
    """
    return _open_bucket(uri, setting, anonymous=True) if reads_anonymously(uri) else open_folder(uri, setting=setting)


def reads_anonymously(uri: str) -> bool:
    """Return whether `open_source` reads a URI without credentials."""
    return is_s3_uri(uri) and not _has_credentials(fingerprint_environment())


def absolute_uri(uri: str) -> str:
    """Make a URI independent of the working directory, because Ray workers run in another one."""
    return uri if has_scheme(uri) else str(Path(uri).expanduser().absolute())


def create_bucket(name: str) -> None:
    """Create a bucket unless it exists.

    Raises:
        StoreError: see `open_folder`.
    """
    client = create_s3_client()
    try:
        client.create_bucket(Bucket=name)
    except client.exceptions.BucketAlreadyOwnedByYou:
        pass
    except Exception as error:
        raise explain_s3_error(error, name, load_settings(), "the bucket's name") from error


def _open_bucket(uri: str, setting: str, *, anonymous: bool) -> Folder:
    bucket, prefix = parse_s3_uri(uri, setting)
    access = BucketAccess(bucket, load_settings().endpoint, anonymous)
    check_bucket(access, setting)
    # the file system is looked up on every use: a stored one would lose temporary credentials during a run
    return Folder(
        partial(open_filesystem, access),
        f"{bucket}/{prefix}".rstrip("/"),
        uri.rstrip("/"),
        fast_path=partial(open_objects, access),
    )


def check_bucket(access: BucketAccess, setting: str) -> None:
    """Check that a bucket can be reached with the current settings and credentials, once for each of these.

    Raises:
        StoreError: it cannot; the message names the setting to correct.
    """
    _check_bucket(fingerprint_environment(), access, setting)


@lru_cache(maxsize=32)
def _check_bucket(fingerprint: tuple[object, ...], access: BucketAccess, setting: str) -> None:
    settings = load_settings(access.endpoint)
    try:
        client = create_s3_client(endpoint=access.endpoint, anonymous=access.anonymous)
        answer = client.head_bucket(Bucket=access.bucket)
    except StoreError:
        raise
    except Exception as error:
        raise explain_s3_error(error, access.bucket, settings, setting, anonymous=access.anonymous) from error
    region = answer.get("BucketRegion")
    # boto3 follows a bucket to its region, the other clients do not; servers without regions may name any
    was_redirected = access.endpoint is None or answer["ResponseMetadata"]["RetryAttempts"] > 0
    if region and region != settings.region and was_redirected:
        raise name_other_region(access.bucket, region, settings)


@lru_cache(maxsize=8)
def _has_credentials(fingerprint: tuple[object, ...]) -> bool:
    """Return whether there are credentials; asked once, because asking a cloud's metadata service takes seconds."""
    return find_credentials() is not None
