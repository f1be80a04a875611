"""Remove secrets from text and settings, recognized by the name of their key or by the pattern of their value.

Every pattern takes linear time: it starts at a literal or where a run of its characters starts, and repeats a bounded
number of times before it can fail. Hashes, run ids and names of music are no secrets, even where they look random.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

REDACTED = "[redacted]"
_KEY = re.compile(
    r"(?i)(pass(word|wd|phrase)?|pwd|secret([_-]?key)?|token|api[_-]?key|(access|account|private)[_-]?key|credential|"
    r"authorization|cookie|signature|connection[_-]?string|sas)s?$"
)
_HARMLESS_KEY = re.compile(r"(?i)max_tokens|(^|[._])tokens$|text_tokens|keep_|ema_|(time|key)[_-]?signatures?$|bypass$")
_WORD = re.compile(r"[^\s\"'<>]+")  # which can hold a URI
# tokens of providers, queries of presigned URLs and headers: what such a text contains, in lower case -> the pattern;
# most texts contain few of these
_PATTERNS = {
    needle: re.compile(pattern)
    for needle, pattern in {
        **dict.fromkeys(("akia", "asia", "aroa", "aida", "abia", "acca"), r"\bA(?:KI|SI|RO|ID|BI|CC)A[A-Z0-9]{16}\b"),
        "a3t": r"\bA3T[A-Z0-9]{17}\b",
        "gh": r"(?<!\w)gh[pousr]_\w{20,}",
        "github_pat_": r"(?<!\w)github_pat_\w{20,}",
        "gl": r"(?<!\w)gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[\w-]{20,}",
        "gr1348941": r"GR1348941[\w-]{20,}",
        "hf_": r"(?<!\w)hf_[A-Za-z0-9]{20,}",
        "npm_": r"(?<!\w)npm_[A-Za-z0-9]{20,}",
        "pypi-": r"pypi-[\w-]{60,}",
        "dckr_pat_": r"dckr_pat_[\w-]{20,}",
        "sk-": r"(?<!\w)sk-[\w-]{20,}",
        "aiza": r"(?<!\w)AIza[\w-]{35}",
        "ya29.": r"(?<!\w)ya29\.[\w-]{20,}",
        "gocspx-": r"GOCSPX-[\w-]{20,}",
        "dapi": r"(?<!\w)dapi[0-9a-f]{32}",
        "_v1_": r"(?<!\w)do[opr]_v1_[0-9a-f]{64}",
        "xox": r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{6,}",
        "k_live_": r"(?<!\w)[rs]k_live_\w{16,}",
        "k_test_": r"(?<!\w)[rs]k_test_\w{16,}",
        "sq0": r"(?<!\w)sq0[a-z]{3}-[\w\\-]{22,}",
        "sg.": r"(?<!\w)SG\.[\w-]{22}\.[\w-]{43}",
        "hvs.": r"(?<!\w)hvs\.[\w-]{20,}",
        "age-secret-key": r"AGE-SECRET-KEY-1[0-9A-Z]{50,}",
        "akcp": r"(?<!\w)AKCp[A-Za-z0-9]{20,}",
        "ac": r"AC(?<!\w..)[a-z0-9]{32}(?!\w)",  # Twilio
        "sk": r"SK(?<!\w..)[a-z0-9]{32}(?!\w)",
        "-us": r"(?<!\w)[0-9a-z]{32}-us\d{1,2}(?!\w)",  # Mailchimp
        ":": r"(?<!\w)\d{8,10}:[\w-]{35}(?![\w-])",  # Telegram
        "eyj": r"(?<![\w-])eyJ[\w=-]{8,}+\.[\w=-]{2,}+(?:\.[\w.+/=-]*+)?",  # JSON web tokens
        ".": r"[MNO](?<![\w-].)[\w-]{23,25}\.[\w-]{6}\.[\w-]{27}(?![\w-])",  # Discord
        "hooks.slack.com": r"(?<=hooks\.slack\.com/services/)[\w/]{8,}",
        "private key": (
            r"-{0,5}BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[\s\S]*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY[- A-Z]{0,11}|\Z)"
        ),
        "putty-user-key": r"PuTTY-User-Key-File-\d[\s\S]*?(?:Private-MAC:[^\n]*|\Z)",
        "x-amz-": r"(?i)x-amz-(?:signature|credential|security-token)=(?!\[redacted\])([^&\s\"'<>]+)",
        "x-goog-": r"(?i)x-goog-(?:signature|credential)=(?!\[redacted\])([^&\s\"'<>]+)",
        "sig": r"(?i)[?&]sig(?:nature)?=(?!\[redacted\])([^&\s\"'<>]+)",
        "awsaccesskeyid": r"(?i)[?&]awsaccesskeyid=(?!\[redacted\])([^&\s\"'<>]+)",
        "token=": r"(?i)[?&](?:access_|id_)?token=(?!\[redacted\])([^&\s\"'<>]+)",
        "bearer": r"(?i)\bbearer\s{1,4}(?!\[redacted\])([a-z0-9._~+/=-]{8,})",
        "basic": r"(?i)\bbasic\s{1,4}(?!\[redacted\])([a-z0-9+/=]{8,})",
        "cookie": r"(?i)\bcookie[\"']?:\s{0,4}+[\"']?+(?!\[redacted\])([^\r\n\"']+)",
        "aws": r"(?i)aws.{0,20}?(?:key|pw|pwd|pass|token).{0,20}?[\"']([0-9a-z/+]{40})[\"']",
    }.items()
}
# assignments: password=..., "secret_key": "...", AWS_SECRET_ACCESS_KEY=..., --api-key ...
_SECRET_WORD = re.compile(r"pass(?:word|wd|phrase)|pwd|secret|key|token")  # in lower case
_BEFORE_KEY = tuple(
    f"{word}{mark}"
    for word in ("api", "access", "account", "private", "encryption", "signing")
    for mark in ("", "_", "-")
)
_BEFORE_TOKEN = ("_", "-", "auth", "session", "access", "refresh", "security", "bearer", "api")
_NO_SECRET = r"(?!\[redacted\]|(?:None|null|true|false)\b|\*\*\*)"
_VALUE = re.compile(
    r"(?:[_-][\w-]{0,64}|[A-Z]\w{0,64}|s)?(?:\\{0,3}+[\"'])?\s{0,32}(?:[=:]|%3[dD])\s{0,32}+"
    rf"(?:\\{{0,3}}+[\"']{_NO_SECRET}([^\"'\r\n]{{1,4096}})(?=[\"'])|(?:\\{{0,3}}+[\"'])?+{_NO_SECRET}([^\s\"'&,;}})]+))"
)
_OPTION_VALUE = re.compile(rf"(?:-[\w-]{{0,24}})?[ =]{_NO_SECRET}([^\s\"'-][^\s\"']*)")
_TO_LOWER = {ord(letter): letter.lower() for letter in ascii_uppercase}  # unlike str.lower, keeps positions
_NO_TOKEN = re.compile(r"\d{1,9}|<.*")  # a count, or <pad> of a text encoder
_RUN_OF_40 = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=])")
MIN_SWITCHES, MAX_SLASHES = 16, 4  # of 39 pairs; of random characters 25 switch, of CamelCase names and paths fewer


def redact(text: str) -> str:
    """Replace everything in a text that looks like a secret."""
    masked_text, lower = strip_password(text), text.lower()
    for needle, pattern in _PATTERNS.items():
        if needle in lower:
            masked_text = pattern.sub(_mask, masked_text)
    masked_text = _mask_assignments(masked_text)
    return _RUN_OF_40.sub(lambda found: REDACTED if _is_aws_secret(found[0]) else found[0], masked_text)


def _mask_assignments(text: str) -> str:
    """Mask what follows the name of a secret and a sign of assignment."""
    lower = text.translate(_TO_LOWER)
    kept, position = [], 0
    for word in _SECRET_WORD.finditer(lower):
        if word.start() < position or not _names_secret(lower, word):
            continue
        dashes = lower.rfind("--", max(word.start() - 16, 0), word.start())
        is_option = dashes >= 0 and not lower[dashes : word.start()].strip("abcdefghijklmnopqrstuvwxyz-_")
        found = _VALUE.match(text, word.end()) or (is_option and _OPTION_VALUE.match(text, word.end()))
        if not found or not found.lastindex:
            continue
        if not (word[0] == "token" and _NO_TOKEN.fullmatch(found[found.lastindex])):
            start, end = found.span(found.lastindex)
            kept += [text[position:start], REDACTED]
            position = end
    return "".join([*kept, text[position:]])


def _names_secret(lower: str, word: re.Match[str]) -> bool:
    """Whether a word is part of a name of secrets: of keys and tokens, only those of access."""
    before = {"key": _BEFORE_KEY, "token": _BEFORE_TOKEN}.get(word[0])
    return before is None or lower.endswith(before, max(word.start() - 16, 0), word.start())


def redact_items(items: Mapping[str, Any]) -> dict[str, str]:
    """Convert settings or tags to text: values of secret keys are replaced whole, others where they match a pattern."""
    return {
        key: REDACTED if is_secret_key(key) and value not in ("", None) else redact(str(value))
        for key, value in items.items()
    }


def is_secret_key(key: str) -> bool:
    """Return whether the name of a key, dotted or not, is that of a secret."""
    return bool(_KEY.search(key)) and not _HARMLESS_KEY.search(key)


def strip_password(text: str) -> str:
    """Remove user and password between :// and @ from all URIs in a text."""
    return _WORD.sub(lambda word: _strip_word(word[0]), text) if "://" in text and "@" in text else text


def _strip_word(word: str) -> str:
    """Remove the passwords of a word; a password can contain @ or /, so it ends at the last @ if there is a : in it."""
    last, kept, position = word.rfind("@"), [], 0
    while (mark := word.find("://", position)) >= 0 and last > mark:
        start = mark + 3
        if word.find(":", start, last) >= 0:
            end = last + 1
        else:
            slash = word.find("/", start)
            end = max(word.rfind("@", start, slash if slash >= 0 else len(word)) + 1, start)
        kept += [word[position:start], _strip_userinfo(word[start:end])]
        position = end
    return "".join([*kept, word[position:]])


def _strip_userinfo(text: str) -> str:
    """Return what to keep of the text before an @: all of it if the @ belongs to a path, otherwise nothing."""
    first, slash, _ = text.partition("/")
    if slash and re.fullmatch(r"[^:@]*:\d+", first):  # a host and its port, and a path that holds an @
        return text
    return "" if ":" in first or "@" in first else text


def _is_aws_secret(run: str) -> bool:
    """Whether 40 characters of base64 are random: a sha1 has no upper case, and names change their kind less often."""
    kinds = ["A" if c.isupper() else "a" if c.islower() else "0" if c.isdigit() else "/" for c in run]
    switches = sum(one != other for one, other in zip(kinds, kinds[1:]))
    return switches >= MIN_SWITCHES and {"A", "a", "0"} <= set(kinds) and kinds.count("/") <= MAX_SLASHES


def _mask(match: re.Match[str]) -> str:
    group = match.lastindex
    if group is None:
        return REDACTED
    start, end = (position - match.start() for position in match.span(group))
    return match[0][:start] + REDACTED + match[0][end:]
