"""Create a file exclusively among concurrent writers: `If-None-Match: *` on S3, a hard link in a local folder."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from pipelines.storage.s3_clients import BucketAccess, share_s3_client
from pipelines.storage.s3_settings import endpoint
from presto_core.artifacts.durable import make_folders, name_partial, sync_folder, write_synced
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes

_CONFLICT_CODES = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")


def create_exclusive(folder: Folder, name: str, content: bytes) -> bool:
    """Write a file atomically unless it exists; return whether this call created it.

    Args:
        content: differs from that of any other writer, so that a retry after a lost response recognizes its own file.

    Raises:
        StoreError: the folder cannot be written, or the store does not support conditional writes.
    """
    folder.check_holder()
    put = _put_if_none if folder.is_remote else _link
    return folder.with_retries(partial(put, folder, name, content), f"create {folder.uri}/{name}")


def _put_if_none(folder: Folder, name: str, content: bytes) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = folder.file_path(name).partition("/")
    try:
        share_s3_client(BucketAccess(bucket, endpoint())).put_object(
            Bucket=bucket, Key=key, Body=content, IfNoneMatch="*"
        )
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        if code in _CONFLICT_CODES:
            return folder.exists(name) and read_bytes(folder, name) == content
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise OSError(f"HTTP status 503 ({code})") from error
        raise StoreError(
            f"conditional put to {folder.uri} fails ({code}); use a store that supports If-None-Match"
        ) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error
    return True


def _link(folder: Folder, name: str, content: bytes) -> bool:
    path = Path(folder.file_path(name))
    make_folders(path.parent)
    temporary = name_partial(path)
    try:
        write_synced(temporary, content)
        os.link(temporary, path)  # atomic, and never overwrites
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True
