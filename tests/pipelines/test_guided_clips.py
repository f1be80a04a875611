"""Clips of a teacher with guidance limited to an interval of noise levels, and rescaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.inference.batch import ClipRequest, generate_batch
from pipelines.inference.clip_files import make_clip_name
from pipelines.inference.generator import Generator, Sound, load_generator
from presto_core.errors import UserError
from presto_core.samplers.schedule import karras_sigmas

SOUND = Sound(np.random.default_rng(0).normal(scale=0.1, size=(1, 53000)).astype(np.float32), 44100)


@pytest.fixture(scope="module")
def teacher() -> Generator:
    """That of the package: an untrained one does not hear the prompt."""
    return load_generator("presto-tiny-teacher", device="cpu")


RESTRAINED: dict[str, Any] = {"guidance_scale": 3.0, "guidance_interval": (0.3, 90.0), "guidance_rescale": 0.7}


def count_rows(generator: Generator, make: Callable[[Generator], object]) -> int:
    """Rows that the network sees: two per step where guidance acts."""
    rows: list[int] = []
    hook = generator.model.network.register_forward_hook(lambda _net, args, _output: rows.append(len(args[0])))
    try:
        make(generator)
    finally:
        hook.remove()
    return sum(rows)


def test_guidance_in_an_interval_costs_one_evaluation_at_the_other_levels(teacher: Generator):
    interval = (5.0, 90.0)
    levels = [sigma for sigma in karras_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0) if sigma]
    inside = sum(interval[0] < sigma <= interval[1] for sigma in levels)
    assert 0 < inside < len(levels)
    how: dict[str, Any] = {"steps": 4, "guidance_scale": 3.0, "guidance_interval": interval}
    ways: list[Callable[[Generator], object]] = [
        lambda g: g.generate("piano", seconds=1.0, **how),
        lambda g: g.edit(SOUND, "piano", strength=1.0, **how),
        lambda g: g.edit(SOUND, "piano", regions=[(0.2, 0.6)], **how),
    ]
    for way in ways:
        assert count_rows(teacher, way) == len(levels) + inside


def test_restraints_of_guidance_change_the_clip_and_are_named_in_it(teacher: Generator):
    guided, restrained = (
        teacher.generate("piano", steps=3, seconds=1.0, **how)[0] for how in ({"guidance_scale": 3.0}, RESTRAINED)
    )
    assert make_clip_name(guided) != make_clip_name(restrained)
    assert not np.array_equal(guided.audio, restrained.audio)
    assert "guidance_rescale" not in guided.settings
    assert restrained.settings["guidance_interval"] == (0.3, 90.0)
    again = generate_batch(teacher, [ClipRequest("piano", steps=3, seconds=1.0, **RESTRAINED)])[0]
    assert np.array_equal(again.audio, restrained.audio)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"guidance_rescale": 0.7}, "guidance_rescale has no effect with guidance_scale=1"),
        ({"guidance_scale": 2.0, "guidance_rescale": 1.5}, r"guidance_rescale=1\.5 must be from 0 to 1"),
        ({"guidance_scale": 2.0, "guidance_interval": (5.0, 0.3)}, r"guidance_interval=\[5, 0\.3\] must rise"),
        ({"guidance_scale": 2.0, "guidance_interval": (float("nan"), 1.0)}, r"guidance_interval=\[nan, 1\]"),
        ({"guidance_scale": 2.0, "guidance_interval": (100.0, 200.0)}, "none of the noise levels"),
    ],
)
def test_restraints_without_effect_are_refused(teacher: Generator, how: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        teacher.generate("piano", steps=2, seconds=1.0, **how)
