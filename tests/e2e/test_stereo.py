"""Stereo music through the whole flow: encoded, judged on mid and side, and generated in two channels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

PRESTO = str(Path(sys.executable).parent / "presto")
RATE_HZ, SECONDS, TRACKS = 16_000, 9, 18
SETTINGS = (
    "storage.root=store",
    "codec.kind=oobleck",
    "codec.path=codec",
    "storage.codec_folder=codec",
    "ingest.source=music",
    "ingest.channels=stereo",
    "ingest.chunk_frames=1000",
    "ingest.overlap_frames=0",
    "ingest.validation_fraction=0.25",
    "ingest.test_fraction=0.25",
    "cluster.num_workers=0",
    "cluster.data_workers=1",
    "network.dim=32",
    "network.depth=3",
    "network.heads=2",
    "teacher.steps=3",
    "teacher.global_batch_size=4",
    "steps.generator_updates=1",
    "steps.fake_updates_per_generator_update=1",
    "steps.global_batch_size=4",
    "evaluate.num_samples=6",
    "evaluate.validation_samples=4",
    "evaluate.interval_groups=3",
    "evaluate.nearest_k=2",
    "evaluate.base=[{sampler: euler, steps: 2}]",
    "evaluate.student_steps=[1]",
    "evaluate.save_audio=2",
    "generate.steps=1",
)


def save_codec(folder: Path) -> None:
    """An autoencoder of two audio channels, hop 64, with random weights."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderOobleck(
        encoder_hidden_size=16, downsampling_ratios=[4, 4, 4], channel_multiples=[1, 2, 2], decoder_channels=8,
        decoder_input_channels=8, audio_channels=2, sampling_rate=RATE_HZ,
    )  # fmt: skip
    model.save_pretrained(folder, safe_serialization=True)


def save_music(folder: Path) -> None:
    """Pieces whose left and right channels are tones of different pitch."""
    folder.mkdir()
    time_s = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    for number in range(TRACKS):
        pitches_hz = 220 * 2 ** (number / 12), 330 * 2 ** (number / 7)
        channels = [0.3 * np.sin(2 * np.pi * pitch_hz * time_s) for pitch_hz in pitches_hz]
        soundfile.write(folder / f"two tones {number}.wav", np.stack(channels, axis=1), RATE_HZ)


def run_presto(*args: str, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "MLFLOW_"))}
    stage, *rest = args
    settings = [s for s in SETTINGS if is_read_by(stage, s)]
    done = subprocess.run(
        [PRESTO, stage, *rest, *settings], cwd=cwd, env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def is_read_by(stage: str, setting: str) -> bool:
    from pipelines.stages.table import STAGES
    from presto_core.config.schema import foreign_sections

    return setting.partition(".")[0] not in foreign_sections(STAGES[stage].config)


# over 10 s: five stages, each a process that imports torch
@pytest.mark.slow
@pytest.mark.ray
def test_stereo_music_is_encoded_evaluated_and_generated_on_both_channels(tmp_path: Path) -> None:
    save_codec(tmp_path / "codec")
    save_music(tmp_path / "music")
    for stage in ("ingest", "train-teacher", "distill-steps"):
        run_presto(stage, cwd=tmp_path)
    run_presto("evaluate", "inputs.generator=candidate-s", cwd=tmp_path)
    (path,) = (tmp_path / ".presto/reports").glob("*/report.json")
    report = json.loads(path.read_text())
    for row in (*report["systems"], report["floor"]):
        assert {name.rpartition(", ")[2] for name in row["by_embedder"] if ", " in name} == {"side"}, row["name"]
    recorded = next(row for row in report["controls"] if row["name"] == "original")
    assert recorded["clips"] > 0
    for clip in path.parent.glob("audio/*.wav"):
        audio, rate_hz = soundfile.read(clip)
        assert rate_hz == RATE_HZ
        assert audio.shape[1] == 2
    original, _ = soundfile.read(next(path.parent.glob("audio/original-0.wav")))
    assert abs(np.corrcoef(original[:, 0], original[:, 1])[0, 1]) < 0.2  # the two tones, not their mix

    run_presto("generate", "two tones", "--model", "candidate-s", cwd=tmp_path)
    (song,) = (tmp_path / ".presto/out").glob("*.wav")
    audio, _ = soundfile.read(song)
    assert audio.shape[1] == 2
    assert not np.array_equal(audio[:, 0], audio[:, 1])
