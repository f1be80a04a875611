"""Clips of a compiled model: those of the plain one up to rounding, from the cache folder of the node, also served."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.inference.batch import ClipRequest, sample_latents
from pipelines.inference.clip_files import make_clip_name
from pipelines.inference.clip_list import REQUEST, make_request_cells
from pipelines.inference.generator import load_generator, open_generator
from pipelines.inference.prompt_file import PromptRow
from pipelines.serve.loaded_models import warm_up
from presto_core.config.sampling import GenerateConfig
from presto_core.networks.compilation import CompiledNetwork
from tests.support.pretrained_models import commit_untrained

FOLDER = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PRESTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(FOLDER, "")  # so that what it becomes is undone after the test
    monkeypatch.delenv(FOLDER)
    return commit_untrained(str(tmp_path / "store")).uri


def test_graphs_are_kept_in_the_cache_folder_unless_another_is_named(uri: str, tmp_path: Path):
    model = open_generator(uri, device="cpu", compiled=True).model
    assert isinstance(model.denoise.net, CompiledNetwork)
    assert os.environ[FOLDER] == str(tmp_path / "cache" / "compiled")
    os.environ[FOLDER] = str(tmp_path / "mine")
    open_generator(uri, device="cpu", compiled=True)
    assert os.environ[FOLDER] == str(tmp_path / "mine")


@pytest.mark.slow
def test_clips_of_a_compiled_model_are_those_of_the_plain_one(uri: str, capsys: pytest.CaptureFixture[str]):
    plain, compiled = open_generator(uri, device="cpu"), open_generator(uri, device="cpu", compiled=True)
    for steps in (1, 4):
        (expected,), (clip,) = plain.generate("techno", steps=steps), compiled.generate("techno", steps=steps)
        np.testing.assert_allclose(clip.audio, expected.audio, atol=1e-3)
    network = compiled.model.denoise.net
    assert isinstance(network, CompiledNetwork)
    assert len(network.made) == 1, "a second clip took a graph of its own"
    assert "compiling: 1 x " in capsys.readouterr().err

    warm_up(compiled, max_batch=2)
    made = set(network.made)
    assert [shape[0] for shape, *_ in sorted(made)] == [1, 2]
    compiled.generate("techno", seconds=0.5)
    assert network.made == made, "a request of another length would wait for a compiler"


def test_bf16_changes_latents_little_and_is_named_with_the_clip(tmp_path: Path):
    plain, rounded = (load_generator("presto-tiny-s", device="cpu", autocast=how) for how in ("none", "bf16"))
    latents = [
        sample_latents(generator.model, [request := ClipRequest("techno")], [request.check(generator.model)])
        for generator in (plain, rounded)
    ]
    assert 0 < (latents[1] - latents[0]).std() < 0.04 * latents[0].std()
    assert rounded.model.network.blocks[0].modulation.weight.dtype == torch.bfloat16
    clips = [generator.generate("techno", seconds=0.5)[0] for generator in (plain, rounded)]
    assert "computing" not in clips[0].settings, "names of earlier clips change"
    assert clips[1].settings["computing"] == "bf16"
    assert make_clip_name(clips[0]) != make_clip_name(clips[1])


def test_a_list_of_clips_has_those_of_one_precision_only():
    row = PromptRow("techno", seed=0, steps=4)
    cells = {
        make_request_cells(row, GenerateConfig(autocast=autocast, compile=compiled), model="m")
        for autocast in ("none", "bf16")
        for compiled in (False, True)
    }
    assert len(cells) == 4
    assert {dict(zip(REQUEST, made, strict=True))["computing"] for made in cells} == {
        "", "bf16", "compiled", "bf16, compiled"
    }  # fmt: skip
