"""No secret is in the committed manifests, nor in what kustomize renders from them."""

from __future__ import annotations

from pathlib import Path

import yaml
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings

from tests.infra.test_manifests import INFRA, OVERLAYS, documents

# the placeholder digest, which the scanner would report
HARMLESS = "sha256:" + 64 * "0"


def find_secrets(path: Path) -> set[tuple[str, str]]:
    """Return file name and kind of everything that looks like a secret."""
    with default_settings():
        return {(path.name, secret.type) for secret in scan_file(str(path))}


def test_no_secret_is_committed_or_rendered(tmp_path: Path):
    rendered = []
    for overlay in OVERLAYS:
        rendered.append(tmp_path / f"{overlay.name}.yaml")
        rendered[-1].write_text(yaml.safe_dump_all(documents(overlay)))
    committed = [path for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    readable = []
    for path in [*committed, *rendered]:
        readable.append(tmp_path / f"scanned-{path.name}")
        readable[-1].write_text(path.read_text().replace(HARMLESS, "DIGEST"))
        assert find_secrets(readable[-1]) == set(), path


def test_the_scanner_sees_a_secret(tmp_path: Path):
    leaked = tmp_path / "settings.yaml"
    key = "AKIA" + "Z7QH2M4XK9R3T6WB"
    leaked.write_text((INFRA / "kuberay/namespace/settings.yaml").read_text() + f"  AWS_ACCESS_KEY_ID: {key}\n")
    assert ("settings.yaml", "AWS Access Key") in find_secrets(leaked)
