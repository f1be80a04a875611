"""Parse s3:// URIs, and refuse what looks like one with the spelling that is meant."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from pipelines.redaction import strip_password
from presto_core.artifacts.store import StoreError

S3_PREFIX = "s3://"
_FORM = "s3://bucket/prefix"
_OTHER_SPELLING = re.compile(r"(?i)(s3[an]?):/*")
_AWS_HOST = re.compile(r"(?:(?P<bucket>[^/]+)\.)?s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?")
# AWS, and buckets made before its rules of today
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class S3Path(NamedTuple):
    """A prefix of a bucket; empty for the whole bucket."""

    bucket: str
    prefix: str


def is_s3_uri(uri: str) -> bool:
    return uri.startswith(S3_PREFIX)


def has_scheme(uri: str) -> bool:
    """Return whether a URI is no local path, even if its scheme is misspelled, as in s3:/bucket."""
    return "://" in uri or _OTHER_SPELLING.match(uri) is not None


def parse_s3_uri(uri: str, setting: str) -> S3Path:
    """Return the bucket and the prefix of an s3:// URI.

    Args:
        setting: what the user typed the URI as, for messages.

    Raises:
        StoreError: it has no valid bucket, a password, or a path that clients read differently.
    """
    bucket, _, prefix = uri.removeprefix(S3_PREFIX).partition("/")
    if "@" in bucket:
        raise StoreError(
            f"{setting} has credentials in its URI; write {_FORM} and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not bucket:
        raise StoreError(f"{setting} {uri!r} has no bucket; use {_FORM}")
    if bucket.lower().startswith("arn:"):
        raise StoreError(
            f"{setting} {uri!r} has an ARN for a bucket, which not every S3 client can use; use the bucket's name, or "
            "the alias of the access point (…-s3alias)"
        )
    if bucket.endswith("--x-s3"):
        raise StoreError(
            f"{setting} {uri!r} has a directory bucket (S3 Express), which not every S3 client can use; use a general "
            "purpose bucket"
        )
    if ":" in bucket:
        raise StoreError(f"{setting} {uri!r} has a host and a port for a bucket; use {_FORM} and set AWS_ENDPOINT_URL")
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(f"{setting} {uri!r} has {bucket!r} for a bucket, which is no name of one; use {_FORM}")
    prefix = prefix.rstrip("/")
    if problem := describe_unsafe_key(prefix) if prefix else "":
        raise StoreError(f"{setting} {uri!r} {problem}; write it without")
    return S3Path(bucket, prefix)


def describe_unsafe_key(key: str) -> str:
    """Return why a key does not mean the same object for every client; empty if it does.

    HTTP libraries resolve `.` and `..` as in a folder, so that they would read or write another object, and Arrow
    refuses an empty part.
    """
    parts = key.split("/")
    if "" in parts:
        return "has an empty part in its path (//)"
    dots = next((part for part in parts if part in (".", "..")), "")
    return f"has {dots!r} as a part of its path" if dots else ""


def check_scheme(uri: str, setting: str) -> None:
    """Refuse a URI that is neither a local path, file:// nor s3://, with the spelling that is probably meant.

    Raises:
        StoreError: the scheme is unknown, or written otherwise.
    """
    shown = strip_password(uri)
    if other := _OTHER_SPELLING.match(uri):
        rest = strip_password(f"{S3_PREFIX}{uri[other.end() :]}")
        raise StoreError(f"{setting} {shown!r} is not written as S3's URIs are; write {rest}")
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme == "file":
        return
    if scheme.lower() in ("http", "https"):
        raise StoreError(f"{setting} {shown!r} is a web address; {_suggest_bucket(uri)}")
    if scheme == "gs":
        raise StoreError(
            f"{setting} {shown!r} has unsupported scheme 'gs'; use {_FORM} with HMAC keys and "
            "AWS_ENDPOINT_URL=https://storage.googleapis.com"
        )
    raise StoreError(f"{setting} {shown!r} has unsupported scheme {scheme!r}; use {_FORM} or a local folder")


def _suggest_bucket(url: str) -> str:
    """Return how the same objects are named by an s3:// URI, if the address is one of AWS."""
    parts = urlsplit(url)
    found = _AWS_HOST.fullmatch(parts.hostname or "")
    if not found:
        return f"use {_FORM}, with the server in AWS_ENDPOINT_URL, or download it to a local folder"
    path = f"{found['bucket']}{parts.path}" if found["bucket"] else parts.path.lstrip("/")
    return f"write {S3_PREFIX}{path}"
