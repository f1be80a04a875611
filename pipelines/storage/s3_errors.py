"""Convert boto3's exceptions to one message each, which names the setting to correct."""

from __future__ import annotations

from typing import Any

from pipelines.redaction import redact
from pipelines.storage.s3_clients import CLIENT_ATTEMPTS
from pipelines.storage.s3_session import NO_CREDENTIALS, describe_profile_error
from pipelines.storage.s3_settings import S3Settings
from presto_core.artifacts.store import StoreError

DENIED_CODES = ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
OTHER_REGION_CODES = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")


def explain_s3_error(
    error: Exception, bucket: str, settings: S3Settings, setting: str, *, anonymous: bool = False
) -> StoreError:
    """Convert boto3's exception about a bucket to one message with a fix.

    Args:
        setting: what the user typed the bucket as.
        anonymous: whether the request was not signed.
    """
    from botocore import exceptions as boto

    where = settings.where
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StoreError(NO_CREDENTIALS)
    if isinstance(error, boto.CredentialRetrievalError | boto.SSOError | boto.ProfileNotFound):
        return describe_profile_error(error)
    if isinstance(error, boto.SSLError):
        return _explain_tls(error, settings)
    if isinstance(error, boto.ProxyConnectionError) or (settings.proxy and isinstance(error, boto.HTTPClientError)):
        return _explain_proxy(settings)
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError):
        return StoreError(
            f"object store {where} does not answer; start it (locally: presto s3 start) or correct "
            f"{settings.endpoint_setting or 'AWS_ENDPOINT_URL'}"
        )
    if isinstance(error, boto.ClientError):
        return _explain_response(error, bucket, settings, setting, anonymous=anonymous)
    why = redact(" ".join(str(error).split()))
    return StoreError(f"object store {where} fails for bucket {bucket!r}: {why}; check AWS_ENDPOINT_URL")


def name_other_region(bucket: str, region: str, settings: S3Settings) -> StoreError:
    """Return the error of a bucket that is in another region than is set."""
    fix = f"set AWS_REGION={region}" if region else "set AWS_REGION to its region"
    return StoreError(
        f"bucket {bucket!r} at {settings.where} is in {f'region {region}' if region else 'another region'}, not in "
        f"{settings.region}; {fix}"
    )


def _explain_tls(error: Exception, settings: S3Settings) -> StoreError:
    text, where = str(error), f"object store {settings.where}"
    endpoint_setting = settings.endpoint_setting or "AWS_ENDPOINT_URL"
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return StoreError(f"{where} does not speak TLS; write http:// in {endpoint_setting}")
    if "Hostname mismatch" in text or "IP address mismatch" in text:
        return StoreError(
            f"{where} has a certificate for another host name; use that name in {endpoint_setting} (a bucket with dots "
            "in its name needs addressing_style = path in the profile)"
        )
    if "expired" in text:
        return StoreError(f"{where} has a certificate that has expired; renew it on the server")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        read = f" (its authority is not in {settings.ca_setting}={settings.ca_file})" if settings.ca_setting else ""
        return StoreError(
            f"{where} has a certificate that is not trusted{read}; set AWS_CA_BUNDLE to the PEM file of its authority"
        )
    return StoreError(f"{where}: no TLS connection can be made; check that {endpoint_setting} should be https://")


def _explain_proxy(settings: S3Settings) -> StoreError:
    if settings.proxy is None:
        return StoreError(f"object store {settings.where} cannot be reached through the proxy; correct HTTPS_PROXY")
    return StoreError(
        f"object store {settings.where} cannot be reached through the proxy {settings.proxy.url}; correct "
        f"{settings.proxy.setting}, or list the host in NO_PROXY"
    )


def _explain_response(error: Any, bucket: str, settings: S3Settings, setting: str, *, anonymous: bool) -> StoreError:
    """Explain an answer of the server, or of the proxy in front of it."""
    where = settings.where
    code = str(error.response.get("Error", {}).get("Code"))
    metadata = error.response.get("ResponseMetadata", {})
    status, headers = metadata.get("HTTPStatusCode", 0), metadata.get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region", "")
    if status == 407 or (settings.proxy and status in (502, 504)):
        return _explain_proxy(settings)
    if code in OTHER_REGION_CODES or (region and region != settings.region and status in (400, 403)):
        return name_other_region(bucket, region, settings)
    if code in ("404", "NoSuchBucket"):
        return StoreError(f"bucket {bucket!r} does not exist at {where}; create it or correct {setting}")
    if code in DENIED_CODES and anonymous:
        return StoreError(f"bucket {bucket!r} of {setting} at {where} is not public, and {NO_CREDENTIALS}")
    if code in DENIED_CODES:
        return StoreError(
            f"object store {where} rejects these credentials for bucket {bucket!r}; "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their access to the bucket"
        )
    if status >= 500:
        return StoreError(
            f"object store {where}, bucket {bucket!r}: the server is overloaded or failing ({code}) "
            f"in {CLIENT_ATTEMPTS} attempts; re-run the same command later"
        )
    return StoreError(f"object store {where} fails for bucket {bucket!r} ({code}); check its logs")
