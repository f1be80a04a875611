"""Wrong input of an evaluation and of a promotion ends in one message, before sampling where it can be known then."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from pipelines.evaluate import folder_systems
from pipelines.evaluate.checks import check_counts, check_names
from pipelines.evaluate.comparison import compare_systems
from pipelines.evaluate.folders import read_folder_system
from pipelines.evaluate.kept_clips import make_slugs
from pipelines.evaluate.rows import Prompts
from pipelines.evaluate.sampling import SystemSampler, partial_file_name
from pipelines.evaluate.systems import EvaluatedSystem, list_real_systems
from pipelines.storage.filesystem import open_folder
from presto_core.audio.load_codec import load_codec
from presto_core.config.evaluation import EvaluateConfig
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import EvaluateStage
from presto_core.errors import UserError
from presto_core.networks.flops import LatentShape
from tests.support.small_embedders import write_folder
from tests.support.synthetic_dataset import make_dataset

STUDENT = EvaluatedSystem("S 4", "generator", 4, 4, "generator", "S", split="test")
REAL, FLOOR, *_ = list_real_systems("test")
FOLDER = EvaluatedSystem("theirs", "folder", 0, 0, "folder theirs", "theirs", split="test")
STORE = Path(__file__).parents[1] / "compat" / "store_eeee681.tar.xz"
DATASET, TEACHER, GENERATOR = "60315b80033c0b9b", "e31cc6c7bac6fbc2", "b3478bc4a890388d"


# --- names


@pytest.mark.parametrize("name", ["S 4", "S", "real music", "real music, train, noise"])
def test_a_folder_cannot_have_the_name_of_another_row(name: str) -> None:
    with pytest.raises(UserError, match=f"evaluate.folders: the name '{name}'"):
        check_names(["theirs", name], [REAL, *list_real_systems("test"), STUDENT])
    check_names(["theirs", "S 8"], [REAL, STUDENT])


@pytest.mark.parametrize("name", ["", " ", "a/b", 'q"q', "a(b)", "..", "-", "x" * 81, "new\\nline", " a"])
def test_names_of_folders_that_a_tracker_would_refuse_are_refused(name: str) -> None:
    quoted = '"' + name.replace('"', '\\"') + '"'
    with pytest.raises(ConfigError, match="folders has a system named"):
        load_config(EvaluateStage, None, [f"evaluate.folders={{{quoted}: /music}}"])


@pytest.mark.parametrize("name", ["musicgen", "MusicGen 1.5-large", "été: 2", "x" * 80, "a_b"])
def test_other_names_of_folders_are_taken(name: str) -> None:
    config = load_config(EvaluateStage, None, [f'evaluate.folders={{"{name}": /music}}'])
    assert config.evaluate.folders == {name: "/music"}


@given(st.lists(st.text(alphabet="aAbé-. /\"'", max_size=100), unique=True, max_size=12))
def test_no_two_systems_share_the_name_of_a_file(names: list[str]) -> None:
    slugs = make_slugs(names)
    assert list(slugs) == names
    assert len({slug.lower() for slug in slugs.values()}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,90}", slug) for slug in slugs.values())


# --- counts


def prompts_of(*tracks: str) -> Prompts:
    count = len(tracks)
    names = np.array(tracks)
    return Prompts(np.array(["a"] * count), names, names, np.full(count, np.nan), np.full(count, 24))


@pytest.mark.parametrize(
    ("system", "is_validation", "fix"),
    [
        (STUDENT, False, "evaluate.num_samples"),
        (FLOOR, False, "evaluate.num_samples"),
        (REAL, False, "evaluate.reference_samples"),
        (FOLDER, False, "evaluate.folders.theirs"),
        (STUDENT.on_split("validation"), True, "evaluate.validation_samples"),
        (REAL.on_split("validation"), True, "evaluate.validation_samples"),
    ],
)
def test_clips_of_one_track_cannot_be_measured(system: EvaluatedSystem, is_validation: bool, fix: str) -> None:
    for tracks in (["t"], ["t"] * 9):
        with pytest.raises(UserError, match=rf"{system.name}.*{len(tracks)} clip.* 1 track.*{fix}"):
            check_counts({system: prompts_of(*tracks)}, EvaluateConfig(), patches=8, is_validation=is_validation)
    check_counts({system: prompts_of("t", "u")}, EvaluateConfig(), patches=8, is_validation=is_validation)


def test_neighbors_are_compared_with_embeddings_not_clips() -> None:
    config, prompts = EvaluateConfig(nearest_k=6), {STUDENT: prompts_of("t", "u", "v")}
    check_counts(prompts, config, patches=3)
    with pytest.raises(UserError, match=r"evaluate.nearest_k=6 .*S 4.* 3 clip.* 6; .*num_samples"):
        check_counts(prompts, config, patches=2)
    check_counts(prompts, config, patches=1, is_validation=True)  # which computes MMD alone


# --- before sampling


@pytest.fixture
def embedders(tmp_path: Path) -> Path:
    """A folder in which `ast` has a small model."""
    write_folder("ast", tmp_path / "embedders" / "ast")
    return tmp_path / "embedders"


@pytest.mark.parametrize(
    ("settings", "frames", "message"),
    [
        ("evaluate.embedders=[clap={}/none]", 80, "embedder clap: there is no folder .*none"),
        ("evaluate.embedders=[clap={}/ast]", 80, "class 'audio-spectrogram-transformer', wanted clap"),
        ("evaluate.embedders=[ast={0}/ast, ast={0}/../embedders/ast]", 80, "two embedders are named"),
        ("evaluate.embedders=[musicnn]", 8, "0.37 s of audio is shorter than the 3 s patch of embedder musicnn"),
        ("evaluate.folders={{S: {}}}", 80, "the name 'S' is that of"),
        ("evaluate.folders={{theirs: {}/none}}", 80, "evaluate.folders.theirs: .*none does not exist"),
        ("evaluate.num_samples=8", 80, "'real music' .*8 clip.* 1 track"),
    ],
)
def test_what_can_be_known_is_found_before_sampling(
    tmp_path: Path, embedders: Path, settings: str, frames: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        folder_systems, "load_recorded_codec", lambda *_: load_codec("mel_pca")
    )  # the data set is a toy
    data = make_dataset(str(tmp_path / "data"), shape=LatentShape(4, frames, 8, 3))  # each split is of one track
    config = load_config(EvaluateStage, None, [settings.format(embedders)])
    scratch = open_folder(str(tmp_path / "scratch"))
    was_initialized = ray.is_initialized()
    with pytest.raises(UserError, match=message):
        compare_systems(config, [STUDENT], {"dataset": data.uri}, scratch)
    assert ray.is_initialized() == was_initialized
    assert not (tmp_path / "scratch").exists()


def test_samples_of_a_folder_are_not_reused_for_other_files(tmp_path: Path) -> None:
    """An interrupted evaluation takes what it has sampled from its run's folder; the audio may have changed since."""
    music = tmp_path / "music"
    music.mkdir()

    def find_file() -> str:
        clips = read_folder_system(str(music), name="theirs", seconds=0.5, rate_hz=8000, channels=1)
        return partial_file_name(FOLDER, {"theirs": clips})

    files = []
    for name, level in (("a", 0.1), ("b", 0.1), ("a", 0.2)):
        soundfile.write(music / f"{name}.wav", np.full(8000, level), 8000)
        files.append(find_file())
    assert len(set(files)) == 3
    assert find_file() == files[-1]


# --- audio that is not finite


# about 8 s: opens a store and its models
def test_a_model_whose_audio_is_not_finite_is_named(tmp_path: Path) -> None:
    with tarfile.open(STORE) as tar:
        tar.extractall(tmp_path, filter="data")
    artifacts = tmp_path / "store" / "artifacts"
    roles = {"dataset": DATASET, "teacher": TEACHER, "generator": GENERATOR}
    sampler = SystemSampler(
        load_config(EvaluateStage, None, []), {role: str(artifacts / name) for role, name in roles.items()}, {}, None
    )
    student = EvaluatedSystem("S 1", "generator", 1, 1, "generator", "S", split="held_out")
    item = {"system": json.dumps(asdict(student)), "start": 4, "count": 2}
    arrays = load(sampler(item)["arrays"])
    assert all(np.isfinite(arrays[name]).all() for name in ("audio", "tags", "embeddings/0/mid"))
    with torch.no_grad():
        next(sampler.models["generator"].network.parameters()).fill_(np.nan)
    with pytest.raises(UserError, match=r"clips 4 to 5 of 'S 1' .*NaN"):
        sampler(item)


# --- Ctrl-C

INTERRUPT_ITSELF = """
import os, signal
from infra.cli.main import app, main
@app.command()
def interrupt():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
main()
"""


def test_the_message_of_ctrl_c_has_the_way_to_go_on() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPT_ITSELF, "interrupt"], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "presto: interrupted: nothing was changed; run the same command again\n"
