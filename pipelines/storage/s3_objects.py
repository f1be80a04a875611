"""Read, write and look up S3 objects in one signed request each; Arrow needs three for a small upload.

Every failure raises OSError: the caller then retries with the file system, which reports the cause.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

URL_EXPIRY_S = 900  # allows for clock skew


class S3Objects:
    """The objects of one server, named by bucket/key; thread-safe.

    Args:
        client: boto3 client that signs with the current credentials, or does not sign.
        pool: connections to the server, or to the proxy in front of it.
        connect_timeout_s: time limit for a connection.
        read_timeout_s: time limit without a byte, and for a whole upload.
    """

    def __init__(
        self, client: Any, pool: urllib3.PoolManager, *, connect_timeout_s: float, read_timeout_s: float
    ) -> None:
        self.client, self.pool = client, pool
        self.read_timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        # urllib3 counts sending as connecting
        self.write_timeout = urllib3.Timeout(connect=read_timeout_s, read=read_timeout_s)

    def exists(self, path: str) -> bool:
        """Return whether the object exists."""
        either = (HTTPStatus.OK, HTTPStatus.NOT_FOUND)
        return self._request("HEAD", "head_object", path, {}, either, timeout=self.read_timeout).status == HTTPStatus.OK

    def get(self, path: str) -> bytes:
        """Return an object's bytes."""
        return bytes(self._request("GET", "get_object", path, {}, timeout=self.read_timeout).data)

    def put(self, path: str, content: bytes) -> None:
        """Write an object atomically."""
        # without it, SeaweedFS creates an empty object if the connection ends before the first byte
        md5 = b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        signed_params, headers = {"ContentMD5": md5}, {"Content-MD5": md5}
        self._request(
            "PUT", "put_object", path, signed_params, timeout=self.write_timeout, headers=headers, body=content
        )

    def _request(
        self,
        http_method: str,
        operation: str,
        path: str,
        signed_params: dict[str, str],
        expected: Sequence[HTTPStatus] = (HTTPStatus.OK,),
        **options: Any,
    ) -> Any:
        bucket, _, key = path.partition("/")
        parameters = {"Bucket": bucket, "Key": key, **signed_params}
        try:
            url = self.client.generate_presigned_url(operation, parameters, ExpiresIn=URL_EXPIRY_S)
            response = self.pool.request(
                http_method, url, retries=False, redirect=False, decode_content=False, **options
            )
        except (BotoCoreError, ClientError, HTTPError) as error:
            raise OSError(str(error)) from error
        if response.status not in expected:
            raise OSError(f"HTTP status {response.status}")
        return response
