"""Names of devices, what a machine lacks, and memory: one message each, and golden bits of what a CPU decodes."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from presto_core.audio.load_codec import load_codec
from presto_core.audio.mel_codec.chunked_inversion import (
    count_margin_frames,
    invert_in_chunks,
    invert_in_growing_chunks,
)
from presto_core.audio.mel_codec.griffin_lim import BLOCK_FRAMES
from presto_core.audio.mel_codec.mel_pca import MelPcaCodec
from presto_core.config.sections import ClusterConfig
from presto_core.device import DeviceError, check_autocast, estimate_fit, explain_memory, resolve_device
from presto_core.metrics.latency import find_device

NO_GPU = not torch.cuda.is_available()


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1.5", "cuda:9999", "cpu:0", "", "cuda0"])
def test_an_unknown_name_is_refused_by_settings_and_by_python(name: str):
    with pytest.raises(ValidationError, match="auto, cpu, cuda"):
        ClusterConfig(device=name)
    with pytest.raises(DeviceError, match="auto, cpu, cuda") as caught:
        resolve_device(name, setting="cluster.device")
    assert "\n" not in str(caught.value)


def test_a_very_long_name_is_not_repeated_in_full():
    with pytest.raises(DeviceError) as caught:
        resolve_device("c" * 60 + "u" * 5000)
    assert "u" * 100 not in str(caught.value).partition(": ")[2]


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_without_a_gpu_names_the_setting_and_the_fix(name: str | torch.device):
    with pytest.raises(DeviceError, match=r"cluster\.device=cuda.*auto or cpu") as caught:
        resolve_device(name, setting="cluster.device")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_mps_without_an_apple_gpu_is_refused():
    with pytest.raises(DeviceError, match="mps"):
        resolve_device("mps")


def test_auto_is_the_first_gpu_or_the_cpu():
    assert resolve_device("auto") == torch.device("cpu" if NO_GPU else "cuda:0")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")


def test_reserved_gpus_that_the_device_leaves_idle_are_refused():
    with pytest.raises(ValidationError, match="gpus_per_worker=1"):
        ClusterConfig(device="cpu", gpus_per_worker=1)
    with pytest.raises(ValidationError, match="device=cuda"):
        ClusterConfig(device="cuda:1", gpus_per_worker=1)
    assert ClusterConfig(device="cuda", gpus_per_worker=0.5).device == "cuda"


def test_bf16_is_refused_where_the_device_has_none():
    check_autocast(torch.device("cpu"), torch.bfloat16)
    check_autocast(torch.device("mps"), None)
    with pytest.raises(DeviceError, match=r"loop\.autocast=none"):
        check_autocast(torch.device("mps"), torch.bfloat16)


@pytest.mark.parametrize(
    ("message", "total", "fits"),
    [
        ("CUDA out of memory. Tried to allocate 10.00 GiB. GPU 0 ...", 10 * 2**30, 4.0),  # a tenth used: 0.8 * 9 / 18
        ("CUDA out of memory. Tried to allocate 512.00 MiB.", 10 * 2**30, 5.0),  # at most half of what did not fit
        ("out of memory", 0, 5.0),
    ],
)
def test_what_would_fit_is_in_proportion_and_at_most_half(message: str, total: int, fits: float):
    gib = 2**30
    assert estimate_fit(message, value=10, used=gib, peak=9 * gib, total=total) == fits


def test_too_little_memory_is_one_message_with_what_would_fit():
    with (
        pytest.raises(DeviceError, match=r"evaluate\.batch_size=16 .* evaluate\.batch_size=8 would") as caught,
        explain_memory(torch.device("cuda"), setting="evaluate.batch_size", value=16, least=1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(DeviceError, match="nor would 1"),
        explain_memory(torch.device("cuda"), setting="evaluate.batch_size", value=1, least=1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("frames", [1, 24, 25, 131])
def test_chunks_of_the_mel_codec_have_the_bits_of_the_whole(frames: int):
    decoder = MelPcaCodec.load().decoder
    latents = torch.randn(64, frames, generator=torch.Generator().manual_seed(frames))
    with torch.inference_mode():
        log_mel = decoder.predict_log_mel(latents)
        whole = invert_in_chunks(decoder, log_mel)
        for blocks in (1, 2):
            assert torch.equal(invert_in_chunks(decoder, log_mel, chunk_frames=blocks * BLOCK_FRAMES), whole)
        parts = list(invert_in_growing_chunks(decoder, log_mel))
    assert torch.equal(torch.cat(parts, -1), whole)
    assert len(parts) == math.ceil(math.log2(frames * 4 / BLOCK_FRAMES + 1))
    assert whole.shape == (frames * 2048,)
    assert count_margin_frames(decoder) == BLOCK_FRAMES


def test_a_batch_of_the_mel_codec_in_one_tensor_is_its_clips_within_rounding():
    """What a GPU computes: all clips at once, instead of one by one."""
    codec, rng = MelPcaCodec.load(), torch.Generator().manual_seed(0)
    latents, audio = torch.randn(3, 64, 7, generator=rng), torch.randn(3, 9000, generator=rng)
    with torch.inference_mode():
        together = codec._decode(latents)
        one_by_one = codec.decode(latents)[:, 0]
        assert (together - one_by_one).std() < 1e-3 * one_by_one.std()
        torch.testing.assert_close(codec.encoder.encode(audio), codec.encode(audio[:, None]), atol=1e-4, rtol=1e-4)


def test_parts_of_a_model_name_their_device():
    codec = load_codec("mel_pca", device="meta")
    assert find_device(codec).type == codec.device.type == "meta"
    assert codec.decode(torch.randn(2, 64, 5)).device.type == "meta"
    assert codec.digest == load_codec("mel_pca").digest
