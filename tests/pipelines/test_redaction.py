"""Secrets, recognized by key or by value, reach no param, tag, log, artifact or message."""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
import re
import string
import time
from pathlib import Path
from typing import Any

import detect_secrets.plugins
import pytest
from detect_secrets.plugins.base import RegexBasedDetector

from pipelines.redaction import REDACTED, is_secret_key, redact, redact_items
from pipelines.stages import train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from presto_core.artifacts.store import read_file
from presto_core.config.sections import TrackingConfig
from tests.pipelines.test_training_stages import teacher_config
from tests.support.synthetic_dataset import make_dataset

# invented for these tests, or from vendors' documentation
SECRETS = {
    "password in a URI": ("postgresql://mlflow:hunter2@db:5432/x", "hunter2", "postgresql://db:5432/x"),
    "password with an @": ("s3://user:p@secret@host/bucket", "secret", "s3://host/bucket"),
    "password with a slash": ("s3://key:pa/ss@host/b", "pa/ss", "s3://host/b"),
    "user alone": ("https://token123@host/x", "token123", "https://host/x"),
    "two URIs": ("from http://a:b@h/x to http://c:d@k/y", "c:d", "from http://h/x to http://k/y"),
    "AWS key id": ("key AKIAIOSFODNN7EXAMPLE.", "AKIAIOSFODNN7EXAMPLE", f"key {REDACTED}."),
    "AWS secret": ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalr", REDACTED),
    "assignment": ("AWS_SECRET_ACCESS_KEY=abcdef and more", "abcdef", f"AWS_SECRET_ACCESS_KEY={REDACTED} and more"),
    "JSON": ('{"password": "hunter2", "n": 1}', "hunter2", f'{{"password": "{REDACTED}", "n": 1}}'),
    "presigned": (
        "https://b.s3/k?X-Amz-Credential=ABC&X-Amz-Signature=0123abcd&partNumber=1",
        "0123abcd",
        f"https://b.s3/k?X-Amz-Credential={REDACTED}&X-Amz-Signature={REDACTED}&partNumber=1",
    ),
    "bearer": ("Authorization: Bearer abcdef123456", "abcdef123456", f"Authorization: Bearer {REDACTED}"),
    "web token": ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ", "SflKxwRJ", REDACTED),
    "forge token": ("ghp_0123456789abcdefghijABCDEFGHIJ", "ghp_", REDACTED),
    "hub token": ("hf_abcdefghijklmnopqrstuvwx", "hf_", REDACTED),
    "private key": ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "MIIE", REDACTED),
}


@pytest.mark.parametrize("case", SECRETS)
def test_secrets_are_hidden_and_the_rest_stays(case: str):
    text, secret, shown = SECRETS[case]
    assert redact(text) == shown
    assert secret not in redact(text)
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prefix/artifacts/0123456789abcdef",
        "http://127.0.0.1:5000/api",
        "http://host:5000/mail/me@example.org",
        "presto-generator@champion",
        "a" * 64,
        "models:/presto-generator@champion",
        '{"max_tokens": 64}',
        "lognormal",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str):
    assert redact(text) == text


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


@pytest.mark.parametrize("key", ["tracking.password", "api_key", "storage.secret_key", "MLFLOW_TOKEN", "x.credentials"])
def test_keys_that_name_secrets(key: str):
    assert is_secret_key(key)
    assert redact_items({key: "short", "steps": 3}) == {key: REDACTED, "steps": "3"}
    assert redact_items({key: ""}) == {key: ""}


@pytest.mark.parametrize(
    "key", ["text.max_tokens", "steps.ema_decay", "loop.keep_every", "inputs.teacher", "seed", "time_signature"]
)
def test_keys_that_do_not(key: str):
    assert not is_secret_key(key)


def test_a_run_with_passwords_in_its_settings_leaves_none_behind(workdir: Path):
    """Search MLflow's database, the artifact and .presto for the planted password."""
    data = make_dataset(str(workdir / "data")).uri
    secret = "hunter2-planted"
    uri = f"sqlite:///{(workdir / '.presto/mlflow.db').absolute()}"
    config = teacher_config("store", data, **{"tracking.uri": f"{uri}?password={secret}", "teacher.steps": 2})
    made = train_teacher.run(config)
    folder = open_folder(made.uri)
    assert secret not in read_file(folder, "config.yaml", made.manifest).decode()
    assert secret not in json.dumps(made.manifest)
    tracker = open_tracker(TrackingConfig())
    (run,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{made.id}'")
    assert secret not in json.dumps([run.data.params, run.data.tags])
    for path in (workdir / "store").rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
