"""Remove secrets from text and settings, recognized by the name of their key or by the pattern of their value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
_KEY = re.compile(
    r"(?i)(pass(word|wd|phrase)?|secret([_-]?key)?|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization|"
    r"cookie|signature|sas)s?$"
)
_HARMLESS_KEY = re.compile(r"(?i)max_tokens|(^|[._])tokens$|text_tokens|keep_|ema_")
# a password can contain @ or /: match from :// to the last @ before the next space if there is a : in between
_USERINFO = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)([^\s\"'<>]*?:[^\s\"'<>]*@|[^/\s\"'<>]*@)")
_SHAPES = (
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"),  # AWS key ids
    re.compile(r"(?i)(?<=x-amz-signature=)[0-9a-f]+|(?<=x-amz-credential=)[^&\s]+|(?<=x-amz-security-token=)[^&\s]+"),
    re.compile(r"(?i)(?<=[?&]sig=)[^&\s]+|(?<=[?&]signature=)[^&\s]+|(?<=[?&]awsaccesskeyid=)[^&\s]+"),
    re.compile(r"(?i)(?<=bearer )[a-z0-9._~+/=-]{8,}|(?<=basic )[a-z0-9+/=]{8,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),  # JSON web tokens
    re.compile(
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,})"
    ),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
    # assignments: password=..., "secret_key": "...", AWS_SECRET_ACCESS_KEY=...
    re.compile(
        r"(?i)(?<![a-z])(?:[\w.-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|private[_-]?key|auth[_-]?token|"
        r"session[_-]?token)[\w-]*)[\"']?\s*[=:]\s*[\"']?(?!\[redacted\])([^\s\"'&,;})]+)"
    ),
)
# a bare AWS secret: 40 characters of base64 with upper and lower case and digits; a sha1 has no upper case
_BARE_SECRET = re.compile(
    r"(?<![A-Za-z0-9+/=])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*\d)"
    r"[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=])"
)


def strip_password(text: str) -> str:
    """Remove user and password between :// and @ from all URIs in a text."""
    return _USERINFO.sub(lambda match: match[1] + _strip_userinfo(match[2]), text)


def _strip_userinfo(text: str) -> str:
    """Return what to keep of the text before an @: all of it if the @ belongs to a path, otherwise nothing."""
    first, slash, _ = text.partition("/")
    if slash and re.fullmatch(r"[^:@]*:\d+", first):  # a host and its port, and a path that holds an @
        return text
    return "" if ":" in first or "@" in first else text


def redact(text: str) -> str:
    """Replace everything in a text that looks like a secret."""
    masked_text = strip_password(text)
    for shape in _SHAPES:
        masked_text = shape.sub(_mask, masked_text)
    return _BARE_SECRET.sub(REDACTED, masked_text)


def redact_items(items: Mapping[str, Any]) -> dict[str, str]:
    """Convert settings or tags to text: values of secret keys are replaced whole, others where they match a pattern."""
    return {
        key: REDACTED if is_secret_key(key) and value not in ("", None) else redact(str(value))
        for key, value in items.items()
    }


def is_secret_key(key: str) -> bool:
    """Return whether the name of a key, dotted or not, is that of a secret."""
    return bool(_KEY.search(key)) and not _HARMLESS_KEY.search(key)


def _mask(match: re.Match[str]) -> str:
    if match.re.groups:
        whole, secret = match[0], match[1]
        return whole[: len(whole) - len(secret)] + REDACTED if secret else whole
    return REDACTED
