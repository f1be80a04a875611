"""Secrets, recognized by key or by value, reach no param, tag, log, artifact or message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
