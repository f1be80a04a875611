"""The commands of docs/own_teacher.md on a random model of Stable Audio Open's size: python -m tests.bench.full_size.

Random weights of the published sizes: the transformer of 1.06 B parameters, T5 base, and the codec. Needs 16 GiB of
memory, 12 GiB of disk and half an hour on two cores; `--blocks 2 --seconds 2` tries it in a minute.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from tests.support.tiny_teachers import make_tokenizer, save_stable_audio

TEXT_DIM, CHANNELS, RATE_HZ, HOP = 768, 64, 44100, 2048
GIB = 2**30


def write_teacher(folder: Path, *, blocks: int, frames: int) -> Path:
    """Write a random pipeline with the settings of Stable Audio Open 1.0, but for the number of blocks and frames."""
    from diffusers import AutoencoderOobleck, StableAudioDiTModel
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "transformer": StableAudioDiTModel(
            sample_size=frames, in_channels=CHANNELS, num_layers=blocks, attention_head_dim=64, num_attention_heads=24,
            num_key_value_attention_heads=12, out_channels=CHANNELS, cross_attention_dim=TEXT_DIM, time_proj_dim=256,
            global_states_input_dim=2 * TEXT_DIM, cross_attention_input_dim=TEXT_DIM,
        ),
        "projection_model": StableAudioProjectionModel(TEXT_DIM, TEXT_DIM, 0, 512),
        "text_encoder": T5EncoderModel(T5Config(d_model=TEXT_DIM, d_ff=3072, num_layers=12, num_heads=12)),
        "vae": AutoencoderOobleck(
            encoder_hidden_size=128, downsampling_ratios=[2, 4, 4, 8, 8], channel_multiples=[1, 2, 4, 8, 16],
            decoder_channels=128, decoder_input_channels=CHANNELS, audio_channels=2, sampling_rate=RATE_HZ,
        ),
        "tokenizer": make_tokenizer(longest=128),
    }  # fmt: skip
    return save_stable_audio(folder, parts, licence="apache-2.0")


def list_commands(frames: int) -> dict[str, list[str]]:
    """Return the commands by what they do."""
    own = ["storage.codec_folder=teacher", "storage.text_folder=teacher"]
    return {
        "import": ["teacher", "import", "./teacher"],
        "ingest of three clips": [
            "ingest", "codec.kind=diffusers", "codec.path=teacher", "text.kind=diffusers", "text.path=teacher",
            "text.max_tokens=128", f"ingest.chunk_frames={frames}", "ingest.tail=pad", "ingest.channels=stereo",
            "ingest.source=music", "ingest.validation_fraction=0.34", "ingest.test_fraction=0",
            "cluster.data_workers=1",
        ],
        "one critic and one generator update": [
            "distill-steps", "steps.p_gen.sigma_min=0.3", "steps.p_gen.sigma_max=500", "steps.guidance_scale=7",
            "steps.generator_updates=1", "steps.fake_updates_per_generator_update=1", "steps.global_batch_size=1",
            "steps.lora.rank=16", "loop.activation_checkpointing=true", "cluster.num_workers=0", *own,
        ],
        "a clip in four steps": ["generate", "slow jazz piano", "--model", "candidate-s", *own],
        **{
            f"plan for {gpus} GPUs": [
                "plan", "paper", "--teacher", "teacher", "--gpus", str(gpus), "--device", "h100", "data.crop_frames=0",
                "loop.activation_checkpointing=true", "loop.micro_batch_size=4", "layers.lora.rank=16",
                "steps.lora.rank=16",
            ]
            for gpus in (1, 8)
        },
    }  # fmt: skip


def run(command: list[str], log: Path) -> tuple[float, float, float]:
    """Run presto in a process of its own; return its seconds, CPU seconds and peak memory in GiB."""
    started = time.perf_counter()
    with log.open("w") as output:
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)]
        whole = [sys.executable, "-m", "infra.cli.main", *command]
        pid = os.posix_spawn(sys.executable, whole, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"presto {' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1024 * HOP / RATE_HZ, help="length of a clip")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if empty")
    arguments = parser.parse_args()
    frames = round(arguments.seconds * RATE_HZ / HOP)
    os.environ |= {"PYTHONPATH": str(Path.cwd())}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        os.chdir(scratch)
        # in a process of its own: the peak of a child begins with its parent's memory
        sizes = {"blocks": arguments.blocks, "frames": frames}
        writer = get_context("spawn").Process(target=write_teacher, args=(Path("teacher"),), kwargs=sizes)
        writer.start()
        writer.join()
        Path("music").mkdir()
        for track in range(3):
            audio = np.random.default_rng(track).normal(scale=0.1, size=(frames * HOP, 2))
            soundfile.write(f"music/{track}.wav", audio, RATE_HZ)
            Path(f"music/{track}.txt").write_text("slow piano")
        print("| command | seconds | CPU seconds | peak memory, GiB |\n|---|---:|---:|---:|", flush=True)
        for name, command in list_commands(frames).items():
            seconds, cpu_seconds, peak = run(command, Path("log.txt"))
            print(f"| {name} | {seconds:.0f} | {cpu_seconds:.0f} | {peak:.1f} |", flush=True)
            if command[0] == "plan":
                print(Path("log.txt").read_text(), file=sys.stderr)


if __name__ == "__main__":
    main()
