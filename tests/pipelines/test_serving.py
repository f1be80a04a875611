"""A registered generator makes music: from Python, from the command line, and through MLflow."""

from __future__ import annotations

import base64
import io
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.inference.generator import load_generator
from pipelines.inference.mlflow_model import PARAMS, RATE, SECONDS, WAV
from pipelines.registry.promotion import Promoter
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import artifact_folder, commit_artifact, read_artifact
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sections import TrackingConfig
from presto_core.errors import UserError
from presto_core.models.model_card import serialize_network
from tests.support.pretrained_models import make_card
from tests.support.tiny_registry import TinyRegistry

FRAMES = 32


def make_playable_registry(root: str, name: str) -> TinyRegistry:
    """Return a registry with an untrained generator, with the real codec and the real text encoder."""
    card = make_card(frames=FRAMES, sigma_data=0.5)
    torch.manual_seed(0)
    folder = artifact_folder(open_folder(root), "1" * 16)
    commit_artifact(
        folder,
        kind="generator",
        artifact_id="1" * 16,
        config_yaml="",
        parents={},
        files=serialize_network(card.build_network()),
        details={"model": card.to_dict()},
    )
    home = TinyRegistry(root, open_tracker(TrackingConfig()), {"S": read_artifact(folder)})
    home.register(home.made["S"], name, "distill-steps")
    return home


@pytest.fixture
def home(workdir: Path) -> TinyRegistry:
    made = make_playable_registry(str(workdir / "store"), "presto-generator")
    Promoter(made.client, gate=lambda *_: []).promote("presto-generator@v1", PromoteConfig(), why="it plays")
    return made


def decode_wav(wav: str) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(wav)), dtype="float32")


def test_music_from_python_from_the_command_line_and_from_mlflow_is_the_same(home: TinyRegistry, workdir: Path):
    """The champion, loaded in three ways with one seed, gives the same audio."""
    generator = load_generator("models:/presto-generator@champion", storage_root=home.root)
    prompts = ["solo piano", "string quartet, 90 bpm, in A minor"]
    clips = generator.generate(prompts, steps=2, seed=3)
    assert [clip.prompt for clip in clips] == prompts
    assert clips[0].audio.shape[1] / 44100 == pytest.approx(clips[0].seconds) == pytest.approx(1.486, abs=0.01)
    assert np.isfinite(clips[0].audio).all()
    (again,) = generator.generate(prompts[1:], steps=2, seed=3)
    assert np.array_equal(again.audio, clips[1].audio)
    (longer,) = generator.generate(prompts[:1], steps=1, seconds=3.0)
    assert longer.seconds == 3.0

    args = ["generate", "solo piano", "--model", "champion", "generate.steps=2", "generate.seed=3", *home.args()]
    done = CliRunner().invoke(app, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (wav,) = (workdir / ".presto/out").glob("solo-piano-2steps-seed3-*.wav")
    samples, rate_hz = soundfile.read(wav, dtype="float32")
    assert rate_hz == 44100
    assert np.allclose(samples, clips[0].audio[0], atol=1e-4)

    mlflow.set_tracking_uri(home.tracker.uri)
    model = mlflow.pyfunc.load_model("models:/presto-generator@champion")
    found = model.predict(pd.DataFrame({"prompt": prompts}), params={"steps": 2, "seed": 3})
    for row, clip in zip(found.to_dict("records"), clips):
        samples, rate_hz = decode_wav(row[WAV])
        assert np.allclose(samples, clip.audio[0], atol=1e-4)
        assert (rate_hz, row[RATE]) == (44100, 44100)
        assert row[SECONDS] == pytest.approx(clip.seconds)


def test_the_mlflow_model_is_code_with_a_signature_and_an_example_and_holds_no_pickle(
    home: TinyRegistry, workdir: Path
):
    mlflow.set_tracking_uri(home.tracker.uri)
    folder = Path(mlflow.artifacts.download_artifacts("models:/presto-generator@champion"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    assert "MusicModel" in (folder / "mlflow_entrypoint.py").read_text()
    info = mlflow.models.get_model_info("models:/presto-generator@champion")
    assert info.signature.inputs.input_names() == ["prompt"]
    assert info.signature.outputs.input_names() == [WAV, RATE, SECONDS]
    assert {p.name for p in info.signature.params} == set(PARAMS)
    assert info.saved_input_example_info


def test_a_model_requires_the_exact_version_that_stored_it(home: TinyRegistry, workdir: Path):
    """An environment that MLflow builds to serve it installs no other package of this name."""
    mlflow.set_tracking_uri(home.tracker.uri)
    folder = Path(mlflow.artifacts.download_artifacts("models:/presto-generator@champion"))
    required = [Requirement(line) for line in (folder / "requirements.txt").read_text().splitlines()]
    assert f"presto-distill=={metadata.version('presto-distill')}" in map(str, required)
    assert {specifier.operator for one in required for specifier in one.specifier} == {"=="}
    assert all(one.specifier for one in required)


@pytest.mark.parametrize("content", [b"\x80\x04.", None])
def test_a_damaged_mlflow_model_is_refused_when_it_is_loaded(home: TinyRegistry, workdir: Path, content: bytes | None):
    mlflow.set_tracking_uri(home.tracker.uri)
    folder = Path(mlflow.artifacts.download_artifacts("models:/presto-generator@champion", dst_path=str(workdir / "m")))
    (weights,) = folder.rglob("weights.safetensors")
    weights.write_bytes(content or weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        mlflow.pyfunc.load_model(str(folder))


def test_wrong_requests_are_one_message(home: TinyRegistry):
    generator = load_generator("champion", storage_root=home.root)
    with pytest.raises(UserError, match="steps=0"):
        generator.generate(["x"], steps=0)
    with pytest.raises(UserError, match="H flat"):
        generator.generate(["x"], key="H flat")
    with pytest.raises(UserError, match="presto-generator@nothing"):
        load_generator("presto-generator@nothing")
