"""Retries for storage: transient errors are retried a few times, permanent ones are reported at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential, wait_random

from presto_core.errors import UserError

ATTEMPTS = 5
# no attempt starts later: if every request times out, the run fails instead of hanging
RETRY_TIMEOUT_S = 60
# waits of 0.5, 1, 2 and 3 s plus jitter: below 10 s in total, and different for every worker of an overloaded store
_WAIT = wait_exponential(multiplier=0.5, max=3) + wait_random(0, 0.75)

Result = TypeVar("Result")


class StoreError(UserError):
    """Stored data is missing, damaged, or cannot be written; the message names it and the fix."""


class DamagedError(StoreError):
    """Stored bytes are missing or differ from those written; reading them again does not help."""


def with_retries(action: Callable[[], Result], *, operation: str, is_remote: bool) -> Result:
    """Run a storage operation; retry it after transient errors if the storage is remote.

    Args:
        action: idempotent operation.
        operation: what the action does, for the message: "read s3://latents/a".
        is_remote: whether to retry; an operation on a local disk runs once.

    Raises:
        StoreError: the error is permanent, or every attempt failed.
    """
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS if is_remote else 1) | stop_after_delay(RETRY_TIMEOUT_S),
        wait=_WAIT,
        retry=retry_if_exception(is_transient),
        reraise=True,
    )
    try:
        return retrying(action)
    except OSError as error:
        attempts = int(retrying.statistics["attempt_number"])
        attempts_text = f" in {attempts} attempts" if attempts > 1 else ""
        raise StoreError(f"cannot {operation}{attempts_text}: {explain(error)}") from error


def is_transient(error: BaseException | None) -> bool:
    """Return whether a retry may help: not after denied access, a missing file, or a full disk."""
    if not isinstance(error, OSError) or isinstance(error, _PERMANENT_TYPES):
        return False
    return not any(sign in str(error).lower() for sign in _PERMANENT)


def has_expired_credentials(error: BaseException | None) -> bool:
    """Return whether the store refuses credentials that whoever made them may renew."""
    return isinstance(error, OSError) and any(
        sign in str(error).lower() for sign, clause in _PERMANENT.items() if clause == _EXPIRED_HINT
    )


def explain(error: OSError) -> str:
    """Describe a system error and its fix in one clause."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    for sign, clause in {**_PERMANENT, **_TRANSIENT}.items():
        if sign in lowered:
            return clause
    return text


_PERMANENT_TYPES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_CREDENTIALS_HINT = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
_CERTIFICATE_HINT = "the server's certificate is not trusted; set AWS_CA_BUNDLE to the file of its authority"
_PROXY_HINT = "the proxy refuses its user or password; correct them in HTTP_PROXY or HTTPS_PROXY"
# boto3 and Arrow send the checksum of a part after it, which only servers of 2025 and later know
_CHECKSUM_HINT = "the server does not know new checksums; set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
_EXPIRED_HINT = "the credentials have expired; renew them and re-run the same command"
# substrings of errors from the operating system, Arrow and the AWS SDK
_PERMANENT = {
    "no space left": "the disk is full; free some space and re-run the same command",
    "disk quota exceeded": "the disk quota is used up; free some space and re-run the same command",
    "read-only file system": "the file system is read-only; choose another folder",
    "permission denied": "permission denied; choose another folder or fix its permissions",
    "access_denied": "access denied; check that these credentials can read and write there",
    "http status 403": "access denied; check that these credentials can read and write there",
    "nosuchbucket": "the bucket does not exist; create it first",
    "no_such_bucket": "the bucket does not exist; create it first",
    "signature_does_not_match": f"the credentials are rejected; {_CREDENTIALS_HINT}",
    "invalid_access_key_id": f"the credentials are rejected; {_CREDENTIALS_HINT}",
    "invalid_client_token_id": f"the credentials are rejected; {_CREDENTIALS_HINT}",
    "http status 401": f"the credentials are rejected; {_CREDENTIALS_HINT}",
    "token has expired": _EXPIRED_HINT,
    "expired_token": _EXPIRED_HINT,
    "expiredtoken": _EXPIRED_HINT,
    "incompletebody": _CHECKSUM_HINT,
    "streaming-unsigned-payload-trailer": _CHECKSUM_HINT,
    "implies functionality that is not implemented": _CHECKSUM_HINT,
    # a HEAD response has no body, so an expired token is only a 400
    "http status 400": "bad request (400); check the region and whether the credentials have expired",
    "http status 301": "the bucket is in another region; set AWS_REGION",
    "time_too_skewed": "this machine's clock is wrong; set it",
    "curlcode: 60,": _CERTIFICATE_HINT,
    "certificate_verify_failed": _CERTIFICATE_HINT,  # of Python
    "curlcode: 77,": "the file of trusted certificates cannot be read; correct AWS_CA_BUNDLE",
    "response 407": _PROXY_HINT,
    "http status 407": _PROXY_HINT,
}
_RETRY_HINT = "check the network and the object store and re-run the same command"
_TRANSIENT = {
    "curlcode: 28,": f"the request timed out; {_RETRY_HINT}",
    "curlcode: 7,": f"the connection was refused; {_RETRY_HINT}",
    "curlcode: 5,": f"the proxy's host name is unknown; correct HTTP_PROXY or HTTPS_PROXY, or {_RETRY_HINT}",
    "curlcode: 35,": "no TLS connection can be made; check that AWS_ENDPOINT_URL should be https, and the server",
    "curlcode: 6,": f"the host name is unknown; fix AWS_ENDPOINT_URL, or {_RETRY_HINT}",
    "curlcode: 56,": f"the connection was reset; {_RETRY_HINT}",
    "curlcode: 55,": f"the connection was reset; {_RETRY_HINT}",
    "curlcode: 52,": f"the server closed the connection without a response; {_RETRY_HINT}",
    "curlcode: 18,": f"the response was truncated; {_RETRY_HINT}",
    "truncated": f"the response was truncated; {_RETRY_HINT}",
    "slow_down": f"the server is overloaded (503); {_RETRY_HINT}",
    "http status 503": f"the server is overloaded (503); {_RETRY_HINT}",
    "service_unavailable": f"the server is overloaded (503); {_RETRY_HINT}",
    "http status 5": f"the server failed (5xx); {_RETRY_HINT}",
    "internal_failure": f"the server failed (500); {_RETRY_HINT}",
}
