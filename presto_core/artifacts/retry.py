"""How storage fails: what may pass is tried again a few times, anything else is told at once, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential, wait_random

from presto_core.errors import UserError

ATTEMPTS = 5
RETRY_TIMEOUT_S = (
    60  # no attempt begins later: a store that lets every request time out ends a run, it does not hang it
)
# sleeps of 0.5, 1, 2 and 3 s and a bit: below 10 s together, and different for every worker that a store sends away
_WAIT = wait_exponential(multiplier=0.5, max=3) + wait_random(0, 0.75)

Result = TypeVar("Result")


class StoreError(UserError):
    """Something stored is missing, damaged, or cannot be written; the message names it and the mend."""


class DamagedError(StoreError):
    """Stored bytes are missing or not those that were written: reading them again will not help."""


def with_retries(action: Callable[[], Result], *, operation: str, is_remote: bool) -> Result:
    """Do something to storage; where it is remote, again after a failure that may pass.

    Args:
        action: may be done any number of times.
        doing: what to which object, for the message: "read s3://latents/a".
        remote: a local disk is asked once.

    Raises:
        StoreError: the failure is of the lasting kind, or met every attempt.
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
    """Whether trying again may help: not after a refusal, a missing thing, or a full disk."""
    if not isinstance(error, OSError) or isinstance(error, _PERMANENT_TYPES):
        return False
    return not any(sign in str(error).lower() for sign in _PERMANENT)


def explain(error: OSError) -> str:
    """A system error as one clause with its mend."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    for sign, clause in {**_PERMANENT, **_TRANSIENT}.items():
        if sign in lowered:
            return clause
    return text


_PERMANENT_TYPES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_CREDENTIALS_HINT = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
_EXPIRED_HINT = "the credentials have expired; renew them and run the same command again"
# signs in the words of the operating system, of arrow and of the AWS SDK
_PERMANENT = {
    "no space left": "the disk is full; free some space and run the same command again",
    "disk quota exceeded": "the disk quota is used up; free some space and run the same command again",
    "read-only file system": "the file system is read-only; choose another storage.root",
    "permission denied": "permission denied; choose another storage.root or mend its permissions",
    "access_denied": "access denied; check that these credentials may read and write there",
    "http status 403": "access denied; check that these credentials may read and write there",
    "nosuchbucket": "the bucket does not exist; create it first",
    "no_such_bucket": "the bucket does not exist; create it first",
    "signature_does_not_match": f"the credentials are refused; {_CREDENTIALS_HINT}",
    "invalid_access_key_id": f"the credentials are refused; {_CREDENTIALS_HINT}",
    "invalid_client_token_id": f"the credentials are refused; {_CREDENTIALS_HINT}",
    "http status 401": f"the credentials are refused; {_CREDENTIALS_HINT}",
    "token has expired": _EXPIRED_HINT,
    "expired_token": _EXPIRED_HINT,
    "expiredtoken": _EXPIRED_HINT,
    # all that an answer to HEAD can say of an expired token
    "http status 400": "it is refused as a bad request (400); check the region and whether the credentials expired",
    "http status 301": "the bucket lies in another region; set AWS_REGION",
    "time_too_skewed": "this machine's clock is wrong; set it",
    "curlcode: 60,": "the server's certificate is not trusted; name its authority's file in AWS_CA_BUNDLE",
}
_RETRY_HINT = "see that the network and the object store are well and run the same command again"
_TRANSIENT = {
    "curlcode: 28,": f"it timed out; {_RETRY_HINT}",
    "curlcode: 7,": f"the connection was refused; {_RETRY_HINT}",
    "curlcode: 6,": f"the host name is not known; mend AWS_ENDPOINT_URL, or {_RETRY_HINT}",
    "curlcode: 56,": f"the connection was reset; {_RETRY_HINT}",
    "curlcode: 55,": f"the connection was reset; {_RETRY_HINT}",
    "curlcode: 52,": f"the server hung up without an answer; {_RETRY_HINT}",
    "curlcode: 18,": f"the answer was truncated; {_RETRY_HINT}",
    "truncated": f"the answer was truncated; {_RETRY_HINT}",
    "slow_down": f"the server is overloaded (503); {_RETRY_HINT}",
    "http status 503": f"the server is overloaded (503); {_RETRY_HINT}",
    "service_unavailable": f"the server is overloaded (503); {_RETRY_HINT}",
    "http status 5": f"the server failed (5xx); {_RETRY_HINT}",
    "internal_failure": f"the server failed (500); {_RETRY_HINT}",
}
