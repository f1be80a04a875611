"""Codec and text encoder of an artifact: from the package or the user's folders, never from where its record says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from presto_core.artifacts.store import StoreError
from presto_core.audio.load_codec import load_codec
from presto_core.audio.mel_codec import mel_pca
from presto_core.errors import UserError
from presto_core.models.recorded_components import OwnFolders, load_recorded_codec, load_recorded_encoder
from presto_core.text.encoder import text_digest


def record_codec(**changes: Any) -> dict[str, Any]:
    return {"kind": "mel_pca", "path": "", "digest": load_codec("mel_pca").digest} | changes


def record_text(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "minilm",
        "path": "",
        "max_tokens": 12,
        "digest": text_digest("minilm", max_tokens=12),
    } | changes


@pytest.fixture
def codec_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(mel_pca.__file__).parents[1] / "weights", tmp_path / "codec"))


def test_components_of_the_package_need_no_folder():
    assert load_recorded_codec(record_codec()).digest == record_codec()["digest"]
    assert load_recorded_encoder(record_text()).digest == record_text()["digest"]


@pytest.mark.parametrize("path", ["/tmp/planted", "../planted", "someone/on-a-hub", "s3://bucket/planted"])
def test_a_folder_that_a_record_names_is_never_opened(path: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("presto_core.models.recorded_components.load_codec", fail)
    monkeypatch.setattr("presto_core.models.recorded_components.load_text_encoder", fail)
    for kind in ("mel_pca", "oobleck"):
        with pytest.raises(UserError, match=r"storage\.codec_folder"):
            load_recorded_codec(record_codec(kind=kind, path=path))
    for kind in ("minilm", "huggingface"):
        with pytest.raises(UserError, match=r"storage\.text_folder"):
            load_recorded_encoder(record_text(kind=kind, path=path))


def test_the_users_folder_is_opened_instead_of_the_recorded_one(codec_folder: Path):
    record = record_codec(path="/nowhere")
    assert load_recorded_codec(record, OwnFolders(codec=str(codec_folder))).digest == record["digest"]
    with pytest.raises(StoreError, match=r"ffffffffffff.*storage\.codec_folder"):
        load_recorded_codec(record | {"digest": "f" * 64}, OwnFolders(codec=str(codec_folder)))


def test_an_encoder_recorded_by_a_former_digest_is_the_same(monkeypatch: pytest.MonkeyPatch):
    record = record_text()
    # as for an encoder that is not known
    monkeypatch.setattr("presto_core.text.transformer_encoder._MINILM", {"no": "such file"})
    assert text_digest("minilm", max_tokens=12) != record["digest"]
    assert load_recorded_encoder(record).former_digest == record["digest"]


DAMAGED: list[Any] = [None, "x", [], 7, {}, {"kind": 7, "digest": "x"}, {"kind": "mel_pca"}, {"kind": [], "digest": {}}]


@pytest.mark.parametrize("record", DAMAGED)
def test_a_damaged_record_is_refused(record: Any):
    for load in (load_recorded_codec, load_recorded_encoder):
        with pytest.raises(StoreError):
            load(record)


@pytest.mark.parametrize("max_tokens", [None, 0, -1, 10**9, "12", 12.0, True, [12]])
def test_a_damaged_number_of_tokens_is_refused(max_tokens: Any):
    with pytest.raises(StoreError, match="text"):
        load_recorded_encoder(record_text(max_tokens=max_tokens))
