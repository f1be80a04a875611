"""The commands of docs/own_teacher.md on a random model of the real class, from its folder to a stock pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pipelines.inference.model import open_model, sample_generator
from pipelines.inference.prompts import make_conditions, parse_prompt
from presto_core.models.recorded_components import OwnFolders
from presto_core.training.state import make_step_rng
from tests.support.tiny_teachers import FRAMES, TOKENS, write_stable_audio

RATE_HZ, HOP, TRACKS, PROMPT = 8000, 1024, 12, "slow jazz piano"
SETTINGS = {
    "ingest": (
        "codec.kind=diffusers", "codec.path=teacher", "text.kind=diffusers", "text.path=teacher",
        f"text.max_tokens={TOKENS}", f"ingest.chunk_frames={FRAMES}", "ingest.tail=pad", "ingest.channels=stereo",
        "ingest.source=music", "ingest.validation_fraction=0.25", "ingest.test_fraction=0.25",
        "cluster.data_workers=1",
    ),
    "distill-layers": ("layers.steps=2", "layers.global_batch_size=4", "cluster.num_workers=0"),
    "distill-steps": (
        "--from", "candidate-l", "steps.p_gen.sigma_min=0.3", "steps.p_gen.sigma_max=500", "steps.guidance_scale=7",
        "steps.generator_updates=1", "steps.fake_updates_per_generator_update=1", "steps.global_batch_size=4",
        "steps.gan.head_layers=1", "steps.gan.head_channels=8", "steps.lora.rank=2", "cluster.num_workers=0",
    ),
    "evaluate": (
        "inputs.generator=candidate-ls", "evaluate.num_samples=4", "evaluate.validation_samples=2",
        "evaluate.interval_groups=0", "evaluate.nearest_k=2", "evaluate.base=[{sampler: euler, steps: 2}]",
        "evaluate.student_steps=[1]", "evaluate.save_audio=1", "cluster.data_workers=1",
    ),
}  # fmt: skip
OWN = ("storage.codec_folder=teacher", "storage.text_folder=teacher")


def run(home: Path, *args: str) -> str:
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "infra.cli.main", *args, "storage.root=store"]
    result = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


@pytest.mark.slow
def test_from_a_diffusers_folder_to_a_stock_pipeline(mlflow_database: Path, tmp_path: Path):
    write_stable_audio(tmp_path / "teacher", strides=(4, 8, 8, 4))
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    (tmp_path / "music").mkdir()
    for track in range(TRACKS):
        audio = np.random.default_rng(track).normal(scale=0.1, size=(RATE_HZ * 9, 2))
        soundfile.write(tmp_path / "music" / f"{track}.wav", audio, RATE_HZ)
        (tmp_path / "music" / f"{track}.txt").write_text("slow piano")
    run(tmp_path, "teacher", "import", "./teacher")
    for stage, settings in SETTINGS.items():
        run(tmp_path, stage, *settings, *OWN)
    run(tmp_path, "export", "candidate-ls", "student", "--format", "diffusers", "--budget", "3", *OWN)
    run(tmp_path, "export", "candidate-ls", "fixed", "--budget", "3")
    printed = run(tmp_path, "teacher", "import", "./student", "name=mine")
    artifact = printed.rpartition("--model ")[2].split()[0]
    own = ("storage.codec_folder=student", "storage.text_folder=student")
    clips = run(tmp_path, "generate", PROMPT, "--model", artifact, *own)
    assert ".wav" in clips
    theirs = sample_stock(tmp_path / "student")
    for folder in (tmp_path / "store" / "artifacts" / artifact, tmp_path / "fixed"):
        ours = sample_ours(folder, tmp_path)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6 * float(ours.abs().max()))


def sample_stock(folder: Path) -> torch.Tensor:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    rng = make_step_rng(3, total_step=0)
    options: dict[str, Any] = {"generator": rng, "output_type": "latent", "audio_end_in_s": FRAMES * HOP / RATE_HZ}
    return pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, **options).audios


def sample_ours(folder: Path, home: Path) -> torch.Tensor:
    """Sample at the levels that the imported student's card has."""
    own = str(home / "teacher")
    model = open_model(str(folder), folders=OwnFolders(codec=own, text=own))
    student = [open_model(str(path)) for path in (home / "store" / "artifacts").iterdir() if is_student(path)]
    rng = make_step_rng(3, total_step=0)
    noise, cond = model.draw_noise(1, generator=rng), make_conditions(model, [PROMPT], [parse_prompt(PROMPT)])
    return sample_generator(model, noise, cond, steps=4, schedule=student[0].card.schedule_at(4), generator=rng)


def is_student(folder: Path) -> bool:
    return "LCMScheduler" in (folder / "manifest.json").read_text()
