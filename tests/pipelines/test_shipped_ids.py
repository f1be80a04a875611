"""The settings of `make pretrained` today have the ids of what the models of the package were made from."""

from __future__ import annotations

import pytest

from pipelines.storage.filesystem import open_folder
from pipelines.workflows.demo import load_flow_configs
from presto_core.artifacts.manifest import read_artifact
from presto_core.models.pretrained import NAMES, get_pretrained_folder

MODELS = dict(zip(("teacher", "L", "S", "LS"), NAMES))


@pytest.mark.parametrize("node", MODELS)
def test_the_settings_of_a_shipped_model_have_its_id(node: str):
    artifact = read_artifact(open_folder(str(get_pretrained_folder() / MODELS[node])))
    config = load_flow_configs("presto_tiny", [])[node]
    assert config.run_id(artifact.manifest["parents"]) == artifact.manifest["export"]["source"]
