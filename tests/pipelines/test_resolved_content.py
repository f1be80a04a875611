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
from pipelines.registry.catalog import Version
from pipelines.registry.resolve import resolve
from pipelines.serve.loaded_models import LoadedModels
from pipelines.serve.settings import ServeSettings
from pipelines.stages import distill_steps, evaluate, generate
from presto_core.artifacts.validate import UnsafeArtifactError
from presto_core.config.loader import load_config
from presto_core.config.schema import EvaluateStage, GenerateStage, StepsStage
from presto_core.config.sections import StorageConfig
from tests.support.small_versions import SmallRegistry

pytestmark = pytest.mark.usefixtures("in_shelf_folder")
NAME = "presto-changed"


@pytest.fixture(scope="module")
def version(shelf: SmallRegistry) -> Version:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(shelf.root).parent)
        return shelf.add(NAME, parents={"teacher": "a" * 16})


@pytest.fixture
def changed(version: Version) -> Iterator[Version]:
    """A version of which somebody changed the manifest in storage, where all hashes of files still match."""
    path = Path(version.uri) / "manifest.json"
    kept = path.read_bytes()
    edit(path.parent, parents={"teacher": "b" * 16})
    yield version
    path.write_bytes(kept)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFERENCES = {
    "an alias": lambda version: f"{NAME}@candidate",
    "a version": lambda version: version.label,
    "a URI of MLflow": lambda version: f"models:/{NAME}@candidate",
    "an id": lambda version: version.artifact_id,
    "a folder": lambda version: version.uri,
}


@pytest.mark.parametrize("how", REFERENCES)
def test_a_changed_manifest_is_refused_by_every_kind_of_reference(shelf: SmallRegistry, version: Version, how: str):
    reference = REFERENCES[how](version)
    assert resolve(shelf.client, reference, shelf.root).id == version.artifact_id
    path = Path(version.uri) / "manifest.json"
    kept = path.read_bytes()
    edit(path.parent, parents={"teacher": "b" * 16})
    try:
        with pytest.raises(UnsafeArtifactError, match=version.content[:12]):
            resolve(shelf.client, reference, shelf.root)
    finally:
        path.write_bytes(kept)


def test_generate_train_and_the_python_api_refuse_it(shelf: SmallRegistry, changed: Version):
    keys = {"storage.root": shelf.root}
    with pytest.raises(UnsafeArtifactError, match=changed.content[:12]):
        load_generator(f"{NAME}@candidate", storage_root=shelf.root)
    named: dict[str, object] = {"inputs.generator": changed.artifact_id, "generate.prompts": ["piano"]}
    with pytest.raises(UnsafeArtifactError, match=changed.content[:12]):
        generate.run(load_config(GenerateStage, None, keys | named))
    named = {"inputs.dataset": changed.artifact_id, "cluster.num_workers": 0}
    with pytest.raises(UnsafeArtifactError, match=changed.content[:12]):
        distill_steps.run(load_config(StepsStage, None, keys | named))


def test_evaluate_refuses_it(shelf: SmallRegistry, changed: Version):
    keys = {"storage.root": shelf.root, "inputs.dataset": changed.artifact_id, "cluster.num_workers": 0}
    with pytest.raises(UnsafeArtifactError, match=changed.content[:12]):
        evaluate.run(load_config(EvaluateStage, None, keys))


@pytest.mark.parametrize("model", [f"{NAME}@candidate", "the id"])
def test_the_service_does_not_start_with_it(shelf: SmallRegistry, changed: Version, model: str):
    storage = StorageConfig(root=shelf.root)
    settings = ServeSettings(model=changed.artifact_id if model == "the id" else model, storage=storage)
    with pytest.raises(UnsafeArtifactError, match=changed.content[:12]):
        LoadedModels(settings).open()


def test_a_model_served_by_mlflow_is_compared_with_what_was_packed(version: Version, tmp_path: Path):
    folder = Path(shutil.copytree(version.uri, tmp_path / "artifact"))
    edit(folder, parents={})
    context = SimpleNamespace(artifacts={"artifact": str(folder)}, model_config={"content": version.content})
    with pytest.raises(UnsafeArtifactError, match=version.content[:12]):
        MusicModel().load_context(context)


def test_an_id_that_is_not_that_of_the_artifact_is_refused(shelf: SmallRegistry, version: Version, tmp_path: Path):
    for name in ("f" * 16, "e" * 16):
        shutil.copytree(version.uri, tmp_path / "artifacts" / name)
    with pytest.raises(UnsafeArtifactError, match="f" * 16):
        resolve(shelf.client, "f" * 16, str(tmp_path))
    edit(tmp_path / "artifacts" / ("e" * 16), id="../../../../somewhere")
    with pytest.raises(UnsafeArtifactError, match="id"):
        resolve(shelf.client, str(tmp_path / "artifacts" / ("e" * 16)), str(tmp_path))
