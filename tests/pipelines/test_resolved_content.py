"""An artifact whose manifest changed after it was registered is refused wherever it is resolved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.inference.generator import load_generator
from pipelines.inference.mlflow_model import MusicModel
from pipelines.registry.resolve import resolve
from pipelines.stages import distill_steps, generate
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.validate import UnsafeArtifactError
from presto_core.config.loader import load_config
from presto_core.config.schema import GenerateStage, StepsStage
from tests.support.tiny_registry import TinyRegistry, edit

pytestmark = pytest.mark.usefixtures("in_registry_folder")


@pytest.fixture
def changed(home: TinyRegistry) -> Iterator[str]:
    """The id of a model whose weights and manifest somebody replaced consistently in storage."""
    artifact = home.made["S"]
    path = Path(artifact.uri) / "manifest.json"
    kept = path.read_bytes()
    card = json.loads(kept)["model"]
    edit(Path(artifact.uri), model=card | {"sigma_data": card["sigma_data"] * 2})
    yield artifact.id
    path.write_bytes(kept)


REFERENCES = {
    "an alias": lambda home: "presto-generator@candidate-s",
    "a version": lambda home: home.catalog.find(home.made["S"].id).label,
    "an id": lambda home: home.made["S"].id,
    "a URI": lambda home: home.made["S"].uri,
}


@pytest.mark.parametrize("how", REFERENCES)
def test_a_changed_manifest_is_refused_by_every_kind_of_reference(home: TinyRegistry, changed: str, how: str):
    reference = REFERENCES[how](home)
    with pytest.raises(UnsafeArtifactError, match=home.catalog.find(changed).content[:12]):
        resolve(home.client, reference, home.root)


def test_generate_train_and_the_python_api_refuse_it(home: TinyRegistry, changed: str):
    keys = {"storage.root": home.root}
    with pytest.raises(UnsafeArtifactError, match="content"):
        load_generator("presto-generator@candidate-s", storage_root=home.root)
    config = load_config(GenerateStage, None, keys | {"inputs.generator": changed, "generate.prompts": ["piano"]})
    with pytest.raises(UnsafeArtifactError, match="content"):
        generate.run(config)
    inputs = {"inputs.layers": changed, "inputs.dataset": "presto-dataset@candidate", "cluster.num_workers": 0}
    with pytest.raises(UnsafeArtifactError, match="content"):
        distill_steps.run(load_config(StepsStage, None, keys | inputs))


def test_a_model_served_by_mlflow_is_compared_with_what_was_packed(home: TinyRegistry, tmp_path: Path):
    folder = Path(shutil.copytree(home.made["S"].uri, tmp_path / "artifact"))
    content = content_hash(home.made["S"].manifest)

    context = SimpleNamespace(artifacts={"artifact": str(folder)}, model_config={"content": content})
    MusicModel().load_context(context)
    edit(folder, parents={})
    with pytest.raises(UnsafeArtifactError, match=content[:12]):
        MusicModel().load_context(context)


def test_an_id_that_names_another_artifact_is_refused(home: TinyRegistry, tmp_path: Path):
    for name in ("f" * 16, "e" * 16):
        shutil.copytree(home.made["S"].uri, tmp_path / "artifacts" / name)
    with pytest.raises(UnsafeArtifactError, match="f" * 16):
        resolve(home.client, "f" * 16, str(tmp_path))
    edit(tmp_path / "artifacts" / ("e" * 16), id="../../../../somewhere")
    with pytest.raises(UnsafeArtifactError, match="id"):
        resolve(home.client, str(tmp_path / "artifacts" / ("e" * 16)), str(tmp_path))
