"""The part of kustomize that the overlays use, in Python, so that CI can render them without the program.

Resources, namespace, images, JSON patches, deletion, and replacements of whole fields; anything else is refused. If
`kubectl kustomize` is installed, a test compares the two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Document = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "patches", "replacements"}


def render_overlay(folder: Path) -> list[Document]:
    """Return the documents that `kubectl apply -k folder` would send."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= KNOWN, f"{folder} uses what is not rendered here: {kustomization.keys() - KNOWN}"
    documents = [document for name in kustomization["resources"] for document in _read(folder / name)]
    for patch in kustomization.get("patches", []):
        documents = list(_apply_patch(documents, patch))
    for image in kustomization.get("images", []):
        for container in (c for document in documents for c in containers(document) if c["image"] == image["name"]):
            container["image"] = image["newName"] + (
                f"@{image['digest']}" if "digest" in image else f":{image['newTag']}"
            )
    for replacement in kustomization.get("replacements", []):
        _replace(documents, replacement)
    for document in documents if "namespace" in kustomization else []:
        document["metadata"]["namespace"] = kustomization["namespace"]
        for subject in document.get("subjects", []):
            subject["namespace"] = kustomization["namespace"]
    return documents


def read(path: Path) -> list[Document]:
    """Read the documents of a file; parts shared by YAML anchors are copied."""
    return [copy.deepcopy(_copy_without_aliases(document)) for document in yaml.safe_load_all(path.read_text())]


def containers(node: Any) -> Iterator[Document]:
    """Yield every container in a document, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def _read(path: Path) -> list[Document]:
    return render_overlay(path) if path.is_dir() else read(path)


def _copy_without_aliases(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy_without_aliases(value) for key, value in node.items()}
    return [_copy_without_aliases(value) for value in node] if isinstance(node, list) else node


def _select(documents: list[Document], target: Document) -> list[Document]:
    found = [d for d in documents if d["kind"] == target["kind"] and d["metadata"]["name"] == target["name"]]
    assert found, f"nothing is selected by {target}"
    return found


def _apply_patch(documents: list[Document], patch: Document) -> Iterator[Document]:
    chosen, change = _select(documents, patch["target"]), yaml.safe_load(patch["patch"])
    for document in documents:
        if document not in chosen:
            yield document
        elif isinstance(change, list):
            yield jsonpatch.apply_patch(document, change)
        else:
            assert change["$patch"] == "delete"


def _replace(documents: list[Document], replacement: Document) -> None:
    source = replacement["source"]
    value: Any = _select(documents, source)[0]
    for key in source["fieldPath"].split("."):
        value = value[key]
    for target in replacement["targets"]:
        for document in _select(documents, target["select"]):
            for path in target["fieldPaths"]:
                *parents, last = path.split(".")
                node = document
                for key in parents:
                    node = node[key]
                node[last] = copy.deepcopy(value)
