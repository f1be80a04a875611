"""What redaction finds, against the patterns of detect-secrets; what it leaves; and that no text makes it slow."""

from __future__ import annotations

import importlib
import pkgutil
import random
import re
import string
import time
from typing import Any

import detect_secrets.plugins
import pytest
from detect_secrets.plugins.base import RegexBasedDetector

from pipelines.redaction import redact

# detect-secrets keeps the patterns of providers up to date; these of its plugins find more than secrets
LOOSE = {
    "ip_public": "addresses are no secrets",
    "artifactory": "any name that starts with AP or AKC",
    "cloudant": "any assignment to `cl`", "softlayer": "any assignment to `sl`",
    "ibm_cloud_iam": "any assignment to `key`", "ibm_cos_hmac": "any assignment to `key`",
}  # fmt: skip


def list_provider_patterns() -> list[Any]:
    found = []
    for module in pkgutil.iter_modules(detect_secrets.plugins.__path__):
        classes = vars(importlib.import_module(f"detect_secrets.plugins.{module.name}")).values()
        for plugin in classes:
            if isinstance(plugin, type) and issubclass(plugin, RegexBasedDetector) and plugin is not RegexBasedDetector:
                found += [
                    pytest.param(pattern, id=f"{module.name}-{number}")
                    for number, pattern in enumerate(plugin().denylist)
                    if module.name not in LOOSE
                ]
    return found


@pytest.mark.parametrize("pattern", list_provider_patterns())
def test_tokens_of_all_providers_that_detect_secrets_knows_are_hidden(pattern: re.Pattern[str]):
    for seed in range(3):
        token = make_match(pattern, random.Random(seed))
        found = pattern.search(token)
        assert found, token
        secrets = [one for one in found.groups() if one and len(one) > 12] or [found[0]]
        shown = redact(f"before {token} after")
        assert any(secret not in shown for secret in secrets), token
        assert shown.startswith("before")


LETTERS = string.ascii_letters + string.digits
CATEGORIES = {"CATEGORY_DIGIT": string.digits, "CATEGORY_WORD": LETTERS, "CATEGORY_SPACE": " "}


def make_match(pattern: re.Pattern[str], rng: random.Random) -> str:
    """A random text that a pattern of detect-secrets matches."""

    def make(items: Any) -> str:
        return "".join(make_one(str(kind), value) for kind, value in items)

    def make_one(kind: str, value: Any) -> str:
        if kind == "LITERAL":
            return chr(value)
        if kind == "IN":
            return rng.choice(list_members(value))
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = value
            return "".join(make(inner) for _ in range(min(max(least, 24 if most > 1000 else least), most)))
        if kind == "SUBPATTERN":
            return make(value[-1])
        if kind == "BRANCH":
            return make(rng.choice(value[1]))
        return "x" if kind in ("ANY", "NOT_LITERAL") else ""

    def list_members(items: Any) -> str:
        members = ""
        for kind, value in items:
            name = str(kind)
            if name == "NEGATE":
                return LETTERS
            if name == "RANGE":
                members += "".join(map(chr, range(value[0], value[1] + 1)))
            else:
                members += chr(value) if name == "LITERAL" else CATEGORIES[str(value)]
        return members

    return make(re._parser.parse(pattern.pattern, pattern.flags))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "unit",
    ["a", "a1B/", "-eyJ", "a://b:", "://@", "password", "secret-", "password='x", "--token", "aws key", "-----BEGIN ",
     "BEGIN PRIVATE KEY ", "cookie: ", "?sig=", "\n", "M", "=:"],
)  # fmt: skip
def test_no_line_is_long_enough_to_make_it_slow(unit: str):
    """Quadratic time would be 16 times as long for four times the text: minutes for a line of megabytes."""

    def measure(size: int) -> float:
        text = "password=" + unit * (size // len(unit))
        times = []
        for _ in range(3):
            start = time.process_time()
            redact(text)
            times.append(time.process_time() - start)
        return min(times)

    assert measure(80_000) < 8 * measure(20_000) + 0.02


NO_SECRETS = (
    "run 0123456789abcdef of 4f9c1d2e3b4a5968778695a4b3c2d1e0f9081726, sha256 " + "0a1b" * 16,
    "/mnt/Music2/MyFavouriteArtist/LiveAlbum01/Track12.flac",
    "Music2/Favourite/Albums/Live01/Encore/To.flac",
    "MyFavouriteSongNumber12LongTitleExtended.flac and dQw4w9WgXcQ.wav",
    "key: C# minor, time_signature: 3/4, tempo_bpm=120, genre=APARTMENTS",
    "max_tokens=64 pad_token=<pad> text_tokens: 128 num_token=3",
    "the secretary: a musical; passwords are not needed, a passing key: D",
    "mean_key=0.3 key=value monkey=1 keyboard: piano",
    "secret_key: null, password=None",
    "models:/m-0123456789abcdef0123456789abcdef/artifacts mlflow-artifacts:/1/ab",
    "iVBORw0KGgo= and MDEyMzQ1Njc4OWFiY2RlZg==",
    "disk-usage-of-a-long-name and task-distribution-queue-length and sklearn",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_SECRETS)
def test_names_hashes_and_settings_of_music_are_kept(text: str):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("{'password': 'two words, and ; more'}", "words"),
        ('{\\"api_key\\": \\"abc123\\"}', "abc123"),
        ("mlflow --password hunter2 --host x", "hunter2"),
        ("presto --api-key=abc123", "abc123"),
        ("clientSecret: abc123", "abc123"),
        ("AccountKey=abc123;EndpointSuffix", "abc123"),
        ("MLFLOW_TRACKING_TOKEN=abc123", "abc123"),
        ("https://h/x?token=abc123&b=1", "abc123"),
        ("{'Cookie': 'session=abc123; b=1'}", "abc123"),
        ("Authorization': 'Basic dXNlcjpwYXNz'", "dXNlcjpwYXNz"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE cut", "MIIE"),
        ("password%3Dabc123", "abc123"),
        ("password=123456", "123456"),
    ],
)  # fmt: skip
def test_secrets_in_any_notation_are_hidden(text: str, secret: str):
    assert secret not in redact(text)
    assert redact(redact(text)) == redact(text)
