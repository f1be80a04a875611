"""Edits by the four models of the package: what is kept keeps its bits, at the budgets of blocks that each has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.inference.export_formats import ExportRequest, export_model
from pipelines.inference.generator import GeneratedClip, Generator, load_generator, open_generator
from presto_core.errors import UserError

REGION = (0.8, 1.6)
HAS_BUDGET = {"presto-tiny-teacher": False, "presto-tiny-l": True, "presto-tiny-s": False, "presto-tiny-ls": True}


@pytest.fixture(scope="module")
def song() -> GeneratedClip:
    return load_generator("presto-tiny-s", device="cpu").generate("slow piano in A minor", seconds=2.4, seed=5)[0]


@pytest.fixture(scope="module", params=HAS_BUDGET)
def named(request: pytest.FixtureRequest) -> tuple[str, Generator]:
    return request.param, load_generator(request.param, device="cpu")


def record_blocks(generator: Generator, patch: pytest.MonkeyPatch) -> list[int]:
    """Blocks that run at each evaluation of the network from now on."""
    network, blocks = generator.model.network, list[int]()
    forward = network.forward

    def forward_and_record(*args: Any, **kwargs: Any) -> Any:
        budget = kwargs.get("budget", args[3] if len(args) > 3 else None)
        blocks.append(network.depth if budget is None else int(budget))
        return forward(*args, **kwargs)

    patch.setattr(network, "forward", forward_and_record)
    return blocks


def test_a_model_of_the_package_repaints_and_extends_at_its_budgets(
    named: tuple[str, Generator], song: GeneratedClip, monkeypatch: pytest.MonkeyPatch
):
    name, generator = named
    blocks = record_blocks(generator, monkeypatch)
    clip = generator.edit(song, "harp in A minor", regions=[REGION], steps=4, seed=1)
    start, stop = (round(second * song.sample_rate_hz) for second in REGION)
    assert np.array_equal(clip.audio[:, :start], song.audio[:, :start])
    assert np.array_equal(clip.audio[:, stop:], song.audio[:, stop:])
    assert np.square(clip.audio[:, start:stop] - song.audio[:, start:stop]).mean() > 1e-6
    assert 0 < np.square(clip.audio[:, start:stop]).mean() < 1
    assert len(clip.seams) == 2
    longer = generator.extend(song, "harp in A minor", seconds=1.0, steps=4, seed=1)
    kept = longer.list_kept_slices()[0].stop
    assert kept > song.audio.shape[1] - 300  # all but the fade at its end
    assert np.array_equal(longer.audio[:, :kept], song.audio[:, :kept])
    depth = generator.model.network.depth
    assert len(blocks) == 8
    assert (min(blocks) < depth) is HAS_BUDGET[name]


def test_guidance_edits_where_a_model_has_it_and_is_refused_where_not(
    named: tuple[str, Generator], song: GeneratedClip
):
    name, generator = named
    how: dict[str, Any] = {"regions": [REGION], "steps": 2, "seed": 1}
    if name in ("presto-tiny-s", "presto-tiny-ls"):
        with pytest.raises(UserError, match="guidance_scale"):
            generator.edit(song, "harp", guidance_scale=3.0, **how)
        return
    plain, guided = (generator.edit(song, "harp", guidance_scale=scale, **how).audio for scale in (1.0, 3.0))
    assert not np.array_equal(plain, guided)


def test_an_exported_student_edits_as_the_one_it_was_written_from(song: GeneratedClip, tmp_path: Path):
    source = load_generator("presto-tiny-ls", device="cpu")
    export_model(source.artifact, ExportRequest(tmp_path / "same", "presto"))
    export_model(source.artifact, ExportRequest(tmp_path / "fixed", "presto", budget=3))
    how: dict[str, Any] = {"regions": [REGION], "seed": 2}
    clips = [
        generator.edit(song, "harp", **how)
        for generator in (source, *(open_generator(str(tmp_path / name), device="cpu") for name in ("same", "fixed")))
    ]
    assert np.array_equal(clips[0].audio, clips[1].audio)
    assert not np.array_equal(clips[0].audio, clips[2].audio)
    start = round(REGION[0] * song.sample_rate_hz)
    assert np.array_equal(clips[2].audio[:, :start], song.audio[:, :start])
