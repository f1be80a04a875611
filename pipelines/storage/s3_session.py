"""boto3's session of the current environment: its profile and its credentials, which are looked up on every use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from presto_core.artifacts.store import StoreError

CREDENTIAL_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
# variables without AWS_ in their name that decide how S3 is reached; each may be in lower case too
OTHER_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
NO_CREDENTIALS = (
    "no S3 credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile), or start the local "
    'object store: eval "$(presto s3 start)"'
)


def fingerprint_environment() -> tuple[object, ...]:
    """Return everything that determines settings and credentials; a change creates new sessions and clients."""
    paths = [Path(os.environ.get(name, default)).expanduser() for name, default in CREDENTIAL_FILES.items()]
    mtimes = [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]
    variables = (i for i in os.environ.items() if i[0].startswith("AWS_") or i[0].upper() in OTHER_VARIABLES)
    return (*mtimes, *sorted(variables))


def get_session() -> Any:
    """Return boto3's session of the current environment; the default one would keep the first credentials it found."""
    return _make_session(fingerprint_environment())[0]


def get_core_session() -> Any:
    """Return botocore's session of the current environment, which has the profile and the credentials."""
    return _make_session(fingerprint_environment())[1]


@lru_cache(maxsize=8)
def _make_session(fingerprint: tuple[object, ...]) -> tuple[Any, Any]:
    import boto3
    import botocore.session

    core = botocore.session.get_session()
    try:
        return boto3.Session(botocore_session=core), core
    except Exception as error:  # of several classes: an unknown profile, a file that cannot be parsed
        raise describe_profile_error(error) from error


def find_credentials() -> Any:
    """Return the credentials that boto3 finds; None if there are none.

    Raises:
        StoreError: the profile, role or login that provides them fails.
    """
    try:
        return get_core_session().get_credentials()
    except Exception as error:  # of any provider
        raise describe_profile_error(error) from error


def describe_profile_error(error: Exception) -> StoreError:
    """Convert boto3's error about a profile, a role or a login to one message with a fix."""
    message = " ".join(str(error).split()).rstrip(".")
    return StoreError(f"S3 credentials cannot be obtained: {message}; check AWS_PROFILE and its files, or log in again")


def read_profile() -> Mapping[str, Any]:
    """Return the settings of the profile in use."""
    try:
        profile: Mapping[str, Any] = get_core_session().get_scoped_config()
        return profile
    except Exception as error:  # of several classes: an unknown profile, a file that cannot be parsed
        raise describe_profile_error(error) from error
