"""Links of a report to MLflow name its server and never who may use it."""

from __future__ import annotations

import pytest

from pipelines.stages.evaluate import _strip_credentials


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://user:secret@mlflow.example.com/team/", "https://mlflow.example.com/team"),
        ("https://user:p%40ss@[::1]:5000", "https://[::1]:5000"),
    ],
)
def test_an_address_loses_user_and_password(uri: str, address: str) -> None:
    assert _strip_credentials(uri) == address
