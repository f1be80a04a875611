"""Clips of a teacher with guidance limited to an interval of noise levels, and rescaled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipelines.evaluate.systems import count_evaluations
from pipelines.inference.batch import ClipRequest, generate_batch, group_requests
from pipelines.inference.clip_files import make_clip_name
from pipelines.inference.clip_list import make_request_cells
from pipelines.inference.generator import Generator, Sound, load_generator
from pipelines.inference.prompt_file import PromptRow
from pipelines.presets.resolve import load_stage_config
from pipelines.stages import edit, generate
from presto_core.config.sampling import BaseSampler, GenerateConfig
from presto_core.config.schema import EditStage, GenerateStage
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


COMMON = ("cluster.device=cpu", "inputs.generator=presto-tiny-teacher")
GIVEN = {
    "steps": 3, "seed": 5, "tempo_bpm": 90.0, "key": "A minor", "guidance_scale": 3.0, "guidance_interval": [0.3, 90.0],
    "guidance_rescale": 0.7, "negative_prompt": "drums", "computing": "bf16",
    "schedule": {"sigma_min": 0.01, "sigma_max": 60.0, "rho": 5.0},
}  # fmt: skip


def list_overrides(stage: str) -> list[str]:
    values = {name: value for name, value in GIVEN.items() if name != "computing"} | {"autocast": "bf16"}
    return [*COMMON, *(f"{stage}.{name}={json.dumps(value)}" for name, value in values.items())]


def test_every_setting_of_sampling_reaches_the_clips_of_each_command(tmp_path: Path):
    song, prompts = tmp_path / "song.wav", tmp_path / "prompts.csv"
    soundfile.write(song, SOUND.audio.T, SOUND.sample_rate_hz)
    prompts.write_text("prompt\npiano\n")
    configs = [
        load_stage_config(
            "generate", [*list_overrides("generate"), f"generate.output={tmp_path}/a", *more, "generate.seconds=1"]
        )
        for more in (['generate.prompts=["piano"]'], [f"generate.prompts_file={prompts}"])
    ]
    made = [clip for config in configs if isinstance(config, GenerateStage) for clip in generate.run(config)]
    changed = [f"edit.output={tmp_path}/b", f"edit.file={song}", "edit.prompt=piano", "edit.strength=0.9"]
    edited = load_stage_config("edit", [*list_overrides("edit"), *changed])
    assert isinstance(edited, EditStage)
    made.append(edit.run(edited))
    for clip in made:
        settings = json.loads(soundfile.SoundFile(clip.wav).comment)
        assert {name: settings.get(name) for name in GIVEN} == GIVEN, clip.wav
    assert len({clip.wav.name for clip in made}) == 2, "a row of a file is not the clip that it is alone"


def test_what_the_model_cannot_make_is_refused_for_all_rows_before_the_first(tmp_path: Path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,steps\npiano,3\npiano,1\ndrums,1\n")
    interval = ["generate.guidance_scale=3", "generate.guidance_interval=[0.001,1]", f"generate.output={tmp_path}/out"]
    config = load_stage_config("generate", [*COMMON, *interval, f"generate.prompts_file={prompts}"])
    assert isinstance(config, GenerateStage)
    with pytest.raises(
        UserError, match=r"^line 3: guidance_interval.*line 4: guidance_interval.*Nothing was generated$"
    ):
        generate.run(config)
    assert not list((tmp_path / "out").glob("*.wav"))


def test_a_list_or_whole_numbers_are_the_same_interval(teacher: Generator):
    requests = [
        ClipRequest("piano", guidance_scale=3.0, guidance_interval=interval)  # type: ignore[arg-type]
        for interval in ((1.0, 80.0), [1, 80])
    ]
    assert group_requests(teacher.model, requests) == [[0, 1]]
    with pytest.raises(UserError, match=r"guidance_interval=0\.3 must be two noise levels"):
        teacher.generate("piano", guidance_scale=3.0, guidance_interval=0.3)  # type: ignore[arg-type]


def test_a_few_step_generator_names_the_settings_of_guidance_that_were_given():
    with pytest.raises(UserError, match=r"^guidance_rescale=0\.7: guidance is for teachers"):
        load_generator("presto-tiny-s", device="cpu").generate("piano", guidance_rescale=0.7)


def test_an_evaluation_refuses_guidance_that_acts_at_no_level(teacher: Generator):
    how = BaseSampler(steps=4, guidance_scale=3.0, guidance_interval=(90.0, 100.0))
    with pytest.raises(UserError, match=r"^dpmpp_2m with 4 steps: guidance_interval=\[90, 100\] has none"):
        count_evaluations(how, teacher.artifact, None)


def test_clips_that_differ_in_one_restraint_are_two_rows_of_a_list():
    row, guided = PromptRow("techno", seed=0, steps=4), {"guidance_scale": 3.0}
    given: list[dict[str, Any]] = [{}, {"guidance_interval": (0.3, 80.0)}, {"guidance_rescale": 0.7}]
    cells = {make_request_cells(row, GenerateConfig(**guided, **more), model="m") for more in given}
    assert len(cells) == len(given)
