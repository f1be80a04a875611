"""The least-privilege S3 policy grants what Presto's requests need, as recorded on the way to a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

import infra
from pipelines.doctor.service_checks import check_conditional_put, check_storage
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import commit, read_file, read_manifest, write_bytes
from tests.servers.fault_proxy import FaultProxy, Message

POLICY = json.loads((Path(infra.__file__).parent / "object_store/policy.json").read_text())
# granted for requests that occur only after failures, or that are not made here
UNSEEN = {"s3:GetBucketLocation", "s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts"}
LARGE = 12 * 2**20  # bytes; more than one part


class RecordingProxy(FaultProxy):
    """A proxy that records all requests."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.seen: set[tuple[str, str]] = set()

    def _draw(self, request: Message):
        method, target = request.head.decode("latin-1").split()[:2]
        self.seen.add((method, target))
        return super()._draw(request)


def action_of(method: str, target: str) -> str:
    """Return the IAM action of an S3 request, by the S3 API reference."""
    parts = urlsplit(target)
    query, in_bucket = parse_qs(parts.query, keep_blank_values=True), "/" in parts.path.strip("/")
    if not in_bucket:
        return {"POST": "s3:DeleteObject", "PUT": "s3:CreateBucket"}.get(method, "s3:ListBucket")
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject"}.get(method, "s3:PutObject")


@pytest.fixture
def needed(object_store: Server, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the actions used to write, commit, read, list and delete small and large objects."""
    with RecordingProxy(object_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        root = open_folder("s3://latents/policy")
        write_bytes(root.child("large"), "weights", b"x" * LARGE)
        commit(root.child("one"), {"kind": "checkpoint"}, {"state": b"abc"})
        assert read_file(root.child("one"), "state", read_manifest(root.child("one"))) == b"abc"
        assert "one" in root.list_folders()
        check_storage("s3://latents/policy")
        check_conditional_put("s3://latents/policy")
        root.delete()
        assert proxy.seen
        return {action_of(method, target) for method, target in proxy.seen}


@pytest.mark.services
def test_the_policy_grants_what_is_needed_and_little_more(needed: set[str]):
    granted = {action for s in POLICY["Statement"] if s["Effect"] == "Allow" for action in s["Action"]}
    assert needed <= granted
    assert granted - needed <= UNSEEN | {"s3:AbortMultipartUpload"}


def test_the_policy_has_no_wildcard_but_below_the_root():
    for statement in POLICY["Statement"]:
        if statement["Effect"] == "Allow":
            assert not [action for action in statement["Action"] if "*" in action]
            assert re.fullmatch(r"arn:aws:s3:::BUCKET(/PREFIX/\*)?", statement["Resource"])
