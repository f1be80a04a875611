"""The commands of docs/own_teacher.md on a random model of the real class, from its folder to a stock pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer

from infra.cli.main import app
from pipelines.inference.generator import Generator, open_generator
from pipelines.inference.model import open_model, sample_generator
from pipelines.inference.prompts import make_conditions, parse_prompt
from presto_core.models.model_card import ModelCard
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.state import make_step_rng
from tests.support.stock_noise import share_noise
from tests.support.tiny_teachers import (
    FRAMES,
    TOKENS,
    write_ace_step,
    write_longcat_audio,
    write_stable_audio,
    write_stable_audio_3,
)

RATE_HZ, HOP, TRACKS, PROMPT = 8000, 1024, 12, "slow jazz piano"
SETTINGS = {
    "ingest": (
        "codec.kind=diffusers", "codec.path=teacher", "text.kind=diffusers", "text.path=teacher",
        f"ingest.chunk_frames={FRAMES}", "ingest.tail=pad",
        "ingest.source=music", "ingest.validation_fraction=0.25", "ingest.test_fraction=0.25",
        "cluster.data_workers=1",
    ),
    "distill-layers": ("layers.steps=2", "layers.global_batch_size=4", "cluster.num_workers=0"),
    "distill-steps": (
        "--from", "candidate-l", "steps.guidance_scale=7",
        "steps.generator_updates=1", "steps.fake_updates_per_generator_update=1", "steps.global_batch_size=4",
        "steps.gan.head_layers=1", "steps.gan.head_channels=8", "steps.lora.rank=2", "cluster.num_workers=0",
        "validation.every=1", "validation.samples=2", "validation.reference_samples=2", "validation.keep=best",
    ),
    "evaluate": (
        "inputs.generator=candidate-ls", "evaluate.num_samples=4", "evaluate.validation_samples=2",
        "evaluate.interval_groups=0", "evaluate.nearest_k=2", "evaluate.base=[{sampler: euler, steps: 2}]",
        "evaluate.student_steps=[1]", "evaluate.save_audio=1", "cluster.data_workers=1",
    ),
}  # fmt: skip
SECONDS = FRAMES * HOP / RATE_HZ


@dataclass(frozen=True)
class Family:
    """What differs from family to family: the folder, and what the commands and the stock pipeline's call are told.

    Attributes:
        frames_first: whether the pipeline's latents are [B, T, C], and it gives no generator to the steps between.
        loads_scheduler: whether the pipeline loads the folder's scheduler; else it must be given one.
    """

    write: Callable[[Path], Path]
    source: tuple[str, ...]
    ingest: tuple[str, ...]
    noise: tuple[str, ...]
    call: dict[str, float | str]
    tokens: int = TOKENS
    frames_first: bool = False
    loads_scheduler: bool = True


FAMILIES = {
    "stable-audio-open": Family(
        lambda folder: write_stable_audio(folder, strides=(4, 8, 8, 4)),
        (),
        ("ingest.channels=stereo",),
        ("steps.p_gen.sigma_min=0.3", "steps.p_gen.sigma_max=500"),
        {"audio_end_in_s": SECONDS, "guidance_scale": 1.0},
    ),
    "stable-audio-3": Family(
        lambda folder: write_stable_audio_3(folder, patch=64, stride=16),
        (f"model.seconds={SECONDS}",),
        ("ingest.channels=stereo",),
        ('steps.p_gen={"kind": "levels", "sigmas": [1e8, 63.43, 8.166, 1.051]}',),
        {"duration": SECONDS},
    ),
    "ace-step": Family(
        write_ace_step,
        (f"model.seconds={SECONDS}",),
        ("ingest.channels=stereo",),
        ('steps.p_gen={"kind": "levels", "sigmas": [1e8, 9, 3, 1]}',),
        {"audio_duration": SECONDS, "lyrics": "[Instrumental]"},
        tokens=256,
        frames_first=True,
    ),
    "longcat-audio": Family(
        lambda folder: write_longcat_audio(folder, strides=(4, 8, 8, 4)),
        (f"model.seconds={SECONDS}",),
        (),
        ('steps.p_gen={"kind": "levels", "sigmas": [1e8, 3, 1, 0.3333]}',),
        {"audio_duration_s": SECONDS, "guidance_scale": 1.0},
        frames_first=True,
        loads_scheduler=False,
    ),
}
OWN = ("storage.codec_folder=teacher", "storage.text_folder=teacher")


COMMAND = typer.main.get_command(app)


def run(*args: str) -> None:
    """Run a command in this process, which saves the start of ten."""
    COMMAND.main([*args, "storage.root=store"], standalone_mode=False)


def list_artifacts() -> set[str]:
    """Return the ids of all artifacts in the store."""
    return {path.name for path in Path("store/artifacts").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_from_a_diffusers_folder_to_a_stock_pipeline(
    name: str, mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    family = FAMILIES[name]
    family.write(tmp_path / "teacher")
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("music").mkdir()
    for track in range(TRACKS):
        audio = np.random.default_rng(track).normal(scale=0.1, size=(RATE_HZ * 9, 2))
        soundfile.write(f"music/{track}.wav", audio, RATE_HZ)
        Path(f"music/{track}.txt").write_text("slow piano")
    run("teacher", "import", "./teacher", *family.source)
    own = {"ingest": (f"text.max_tokens={family.tokens}", *family.ingest), "distill-steps": family.noise}
    for stage, settings in SETTINGS.items():
        run(stage, *settings, *own.get(stage, ()), *OWN)
    if name == "stable-audio-open":
        run_sweep(family)
    run("export", "candidate-ls", "student", "--format", "diffusers", "--budget", "3", *OWN)
    run("export", "candidate-ls", "fixed", "--budget", "3")
    before = list_artifacts()
    run("teacher", "import", "./student", *family.source)
    (artifact,) = list_artifacts() - before
    run("generate", PROMPT, "--model", artifact, "storage.codec_folder=student", "storage.text_folder=student")
    assert list(Path(".presto/out").glob("*.wav"))
    student, folders = tmp_path / "store" / "artifacts" / artifact, OwnFolders(codec="teacher", text="teacher")
    card = open_model(str(student)).card
    for steps in (1, 2, 4, 8):
        theirs = sample_stock(tmp_path / "student", steps, family)
        for folder in (student, tmp_path / "fixed"):
            ours = sample_ours(folder, folders, card, steps)
            torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6 * float(ours.abs().max()))
    check_edits(open_generator(str(student), folders=folders))


def run_sweep(family: Family) -> None:
    """Two trials of the demo's space, and each again: with adapters of the imported teacher, at its depth."""
    steps = [setting for setting in SETTINGS["distill-steps"][2:] if "generator_updates" not in setting]
    size = ("steps.generator_updates=4", "sweep.depth=4", "sweep.samples=2", "sweep.grace=1", "sweep.repeats=2")
    inputs = ("inputs.teacher=presto-teacher@candidate", "inputs.dataset=presto-dataset@candidate")
    run("sweep", "sweeps/demo", *inputs, *steps, *family.noise, *size, *OWN)
    (winner,) = Path(".presto/reports").glob("sweep-*/winner.yaml")
    assert "steps:" in winner.read_text()


def check_edits(generator: Generator) -> None:
    """A shorter clip is cut; a region keeps what is around it, and a continuation what is before it."""
    (clip,) = generator.generate(PROMPT, seed=1, steps=2)
    (shorter,) = generator.generate(PROMPT, seed=1, steps=2, seconds=SECONDS / 4)
    assert (clip.audio.shape[1], shorter.audio.shape[1]) == (FRAMES * HOP, FRAMES * HOP // 4)
    third = clip.seconds / 3
    edited = generator.edit(clip, "jazz", regions=[(third, 2 * third)], steps=2, seed=1)
    longer = generator.extend(clip, "jazz", seconds=1, steps=2, seed=1)
    for made in (edited, longer):
        assert made.kept
        for part in made.list_kept_slices():
            assert np.array_equal(made.audio[:, part], clip.audio[:, part])
    assert not np.array_equal(edited.audio, clip.audio)


def sample_stock(folder: Path, steps: int, family: Family) -> torch.Tensor:
    """Return what the stock pipeline makes: [1, C, T]."""
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    given: dict[str, Any] = {}
    if not family.loads_scheduler:
        given["scheduler"] = FlowMatchEulerDiscreteScheduler.from_pretrained(str(folder), subfolder="scheduler")
    pipe = DiffusionPipeline.from_pretrained(str(folder), **given)
    pipe.set_progress_bar_config(disable=True)
    rng = make_step_rng(3, total_step=0)
    options: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent", **family.call}
    if not family.frames_first:
        return pipe(PROMPT, generator=rng, **options).audios
    with share_noise(pipe, rng):
        return pipe(PROMPT, **options).audios.transpose(1, 2)


def sample_ours(folder: Path, own: OwnFolders, student: ModelCard, steps: int) -> torch.Tensor:
    """Sample at the levels that the imported student's card has."""
    model, rng = open_model(str(folder), folders=own), make_step_rng(3, total_step=0)
    noise, cond = model.draw_noise(1, generator=rng), make_conditions(model, [PROMPT], [parse_prompt(PROMPT)])
    return sample_generator(model, noise, cond, steps=steps, schedule=student.schedule_at(steps), generator=rng)
