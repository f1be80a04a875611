"""S3 objects read, written and looked for in one signed request each: Arrow makes three of a small upload.

What goes wrong raises OSError and no more: the caller asks the file system again, which tells why.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

URL_EXPIRY_S = 900  # as far as clocks may differ
CONNECTIONS = 8  # kept open to each server; more are opened where more threads read


class S3Objects:
    """Objects of one server, each named by bucket/key; for any number of threads.

    Args:
        client: of boto3, signing with the credentials of the moment.
        connect_s: for a connection.
        silence_s: without a byte, and for a whole upload.
    """

    def __init__(self, client: Any, *, connect_timeout_s: float, read_timeout_s: float) -> None:
        self.client = client
        self.read_timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self.write_timeout = urllib3.Timeout(
            connect=read_timeout_s, read=read_timeout_s
        )  # sending is part of connecting here
        self.pool = urllib3.PoolManager(maxsize=CONNECTIONS, ca_certs=os.environ.get("AWS_CA_BUNDLE"))

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        either = (HTTPStatus.OK, HTTPStatus.NOT_FOUND)
        return self._request("HEAD", "head_object", path, {}, either, timeout=self.read_timeout).status == HTTPStatus.OK

    def get(self, path: str) -> bytes:
        """An object's bytes."""
        return bytes(self._request("GET", "get_object", path, {}, timeout=self.read_timeout).data)

    def put(self, path: str, content: bytes) -> None:
        """Write an object, whole or not at all."""
        # without it, SeaweedFS makes an empty object of a connection that ends before the first byte
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
