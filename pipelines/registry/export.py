"""Exports a trained model as a small artifact of its own: weights in half the bytes, with licence and provenance."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines.registry.local_artifact import check_artifact_folder
from pipelines.registry.names import MODEL_KINDS
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.durable import delete_leftovers, make_folders, name_partial
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import CONFIG, Artifact, commit_artifact, read_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.section import Section
from presto_core.errors import UserError
from presto_core.models.model_card import WEIGHTS, load_model, serialize_state
from presto_core.networks.network import Network

WeightDtype = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[WeightDtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NOTHING: Mapping[str, Any] = MappingProxyType({})
_OWN_KEYS = ("kind", "id", "parents", "created", "made_with", "schema_version", "files")


def export_artifact(
    artifact_uri: str,
    folder: str | Path,
    *,
    name: str,
    dtype: WeightDtype = "bf16",
    licence: str = "",
    training_data: str = "",
    provenance: Mapping[str, Any] = NOTHING,
    details: Mapping[str, Any] = NOTHING,
    card: Mapping[str, Any] = NOTHING,
    files: Mapping[str, bytes] = NOTHING,
) -> Artifact:
    """Write a model as a whole new artifact in `folder`/`name`, in place of one that is there, and check it.

    Its id follows from the source's id, the dtype and `card`; parents are the source's. Parameters are cast and buffers
    are not: they are tables that arithmetic needs in full, such as the spectrum of the Gaussian skip. Loading turns the
    parameters back into fp32.

    Args:
        artifact_uri: the trained model: teacher, layers or generator.
        folder: local folder of all exports, such as presto_core/pretrained.
        name: what a user calls it: lower-case letters, digits and hyphens.
        licence: licence of the weights, and of what they are made from.
        training_data: what it is trained on, in a line.
        provenance: how the source was made: hours, machine, commands; does not change the content hash.
        details: further keys of the manifest, such as `gate`.
        card: entries of the model card to replace, such as `few_step_schedules`.
        files: further files, such as test_report.json.

    Raises:
        UserError: the name is not of this form, the artifact is no model, or a weight is too large for the dtype.
        StoreError: the source is missing or damaged, or the export cannot be written or read.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name):
        raise UserError(f"name={name!r} cannot name a pretrained model; use lower-case words, such as presto-tiny-s")
    return write_export(
        artifact_uri,
        Path(folder) / name,
        dtype=dtype,
        licence=licence,
        training_data=training_data,
        provenance=provenance,
        details=details,
        card=card,
        files=files,
    )


def write_export(
    artifact_uri: str,
    target: Path,
    *,
    dtype: WeightDtype,
    budget: int | None = None,
    licence: str = "",
    training_data: str = "",
    provenance: Mapping[str, Any] = NOTHING,
    details: Mapping[str, Any] = NOTHING,
    card: Mapping[str, Any] = NOTHING,
    files: Mapping[str, bytes] = NOTHING,
) -> Artifact:
    """Write a model as `export_artifact` does, in a folder of any name.

    Args:
        budget: keep only the blocks that run at this budget, at every noise level; None keeps all, and the budgets.
    """
    source_folder, name = open_folder(artifact_uri), target.name
    source = read_artifact(source_folder)
    if source.kind not in MODEL_KINDS:
        raise UserError(f"{artifact_uri} is a {source.kind}; export one of {', '.join(MODEL_KINDS)}")
    kept_details = {key: value for key, value in source.manifest.items() if key not in _OWN_KEYS}
    export = {
        "name": name,
        "source": source.id,
        "dtype": dtype,
        "licence": licence,
        "training_data": training_data,
        "data_licences": _read_data_licences(source_folder, source),
    }
    network, kept = load_model(source_folder, source.manifest)
    if budget is not None:
        network = network.keep_blocks(budget)
        assert isinstance(network.config, Section)
        settings = {**kept.network, **network.config.model_dump(mode="json")}
        card = {**card, "network": settings, "layer_budget": None}
    partial = name_partial(target)
    make_folders(partial)
    delete_leftovers(target.parent, names=[name])
    try:
        commit_artifact(
            open_folder(str(partial)),
            kind=source.kind,
            artifact_id=export_id(source.id, dtype, card),
            config_yaml=read_file(source_folder, CONFIG, source.manifest).decode(),
            parents=source.manifest["parents"],
            files={**_copy_other_files(source_folder, source), **_cast_weights(network, dtype), **files},
            details=kept_details
            | {"model": source.manifest["model"] | dict(card)}
            | dict(details)
            | {"export": export, "provenance": _note_source(source) | dict(provenance)},
        )
        _check(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_artifact(open_folder(str(target)))


def export_id(source_id: str, dtype: WeightDtype, card: Mapping[str, Any] = NOTHING) -> str:
    """Return the artifact id of an export: the same source, dtype and changes of the card give the same id."""
    changes = f" {json.dumps(dict(card), sort_keys=True)}" if card else ""
    return hashlib.sha256(f"export {source_id} {dtype}{changes}".encode()).hexdigest()[:16]


def _note_source(source: Artifact) -> dict[str, Any]:
    """When and with which versions the source was made."""
    return {key: source.manifest[key] for key in ("created", "made_with") if key in source.manifest}


def _cast_weights(network: Network, dtype: WeightDtype) -> dict[str, bytes]:
    parameters = {name for name, _ in network.named_parameters()}
    state = network.state_dict()
    cast = {name: _cast(name, value, dtype) if name in parameters else value for name, value in state.items()}
    return serialize_state(cast)


def _cast(name: str, value: Tensor, dtype: WeightDtype) -> Tensor:
    if not value.is_floating_point():
        return value
    cast = value.to(DTYPES[dtype])
    if not bool(cast.isfinite().all()):
        raise UserError(f"{name} is {float(value.abs().max()):.3g} at most, which {dtype} cannot hold; export as bf16")
    return cast


def _copy_other_files(folder: Folder, source: Artifact) -> dict[str, bytes]:
    names = source.manifest["files"].keys() - {WEIGHTS, CONFIG}
    return {name: read_file(folder, name, source.manifest) for name in sorted(names)}


def _read_data_licences(folder: Folder, source: Artifact) -> list[str]:
    """The licences of the tracks in the data set that the model is trained on, if the data set is beside it."""
    data_id = source.manifest["parents"].get("dataset")
    beside = open_folder(folder.uri.rstrip("/").rpartition("/")[0]).child(str(data_id))
    if not data_id or not beside.exists(MANIFEST):
        return []
    return sorted(read_artifact(beside).manifest.get("dataset", {}).get("licences", []))


def _check(folder: Path) -> None:
    """Read the export as its users will: every byte against the manifest, and the network with its weights."""
    manifest, _ = check_artifact_folder(folder)
    load_model(open_folder(str(folder)), manifest)
