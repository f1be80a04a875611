"""Batches of clips in one pass: each clip is the one made alone, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.inference.batch import (
    LATENT_TOLERANCE,
    SOUND_TOLERANCE_DB,
    AbandonedError,
    ClipRequest,
    generate_batch,
    group_requests,
    sample_latents,
)
from pipelines.inference.generator import Generator, load_generator
from presto_core.config.sampling import ScheduleConfig
from presto_core.errors import UserError

REQUESTS = [
    ClipRequest("slow piano in A minor, 80 bpm", steps=2, seed=3, seconds=2.0),
    ClipRequest("techno", steps=2, seed=3, seconds=2.0, tempo_bpm=128.0, key="Dm"),
    ClipRequest("a string quartet, waltz", steps=2, seed=11, seconds=2.0),
]


@pytest.fixture(scope="module", params=["presto-tiny-ls", "presto-tiny-l"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return load_generator(request.param, device="cpu")


def compare_db(a: np.ndarray, b: np.ndarray) -> float:
    """Power of the difference, relative to that of a."""
    return float(10 * np.log10((np.square(a - b).mean() + 1e-20) / np.square(a).mean()))


def test_latents_of_a_batch_are_those_made_alone(generator: Generator):
    model, words = generator.model, [request.check(generator.model) for request in REQUESTS]
    together = sample_latents(model, REQUESTS, words)
    for row, request in enumerate(REQUESTS):
        alone = sample_latents(model, [request], [words[row]])[0]
        assert (together[row] - alone).abs().max() < LATENT_TOLERANCE


def test_a_clip_of_a_batch_is_the_one_made_alone(generator: Generator):
    together = generate_batch(generator, REQUESTS, decode_threads=2)
    for request, clip in zip(REQUESTS, together):
        (alone,) = generator.generate(
            request.prompt,
            steps=request.steps,
            seed=request.seed,
            seconds=request.seconds,
            tempo_bpm=request.tempo_bpm,
            key=request.key,
        )
        assert clip.settings == alone.settings
        assert clip.audio.shape == alone.audio.shape
        assert compare_db(alone.audio, clip.audio) < SOUND_TOLERANCE_DB
    # the tolerance tells clips apart: same seed and length, another prompt
    assert compare_db(together[0].audio, together[1].audio) > SOUND_TOLERANCE_DB + 15


def test_a_batch_of_one_has_the_bits_of_the_clip_alone(generator: Generator):
    (clip,) = generate_batch(generator, REQUESTS[:1])
    (alone,) = generator.generate(REQUESTS[0].prompt, steps=2, seed=3, seconds=2.0)
    assert np.array_equal(clip.audio, alone.audio)


def test_order_and_neighbours_change_nothing(generator: Generator):
    (first, *_), (*_, last) = generate_batch(generator, REQUESTS), generate_batch(generator, REQUESTS[::-1])
    assert compare_db(first.audio, last.audio) < SOUND_TOLERANCE_DB


def test_requests_of_one_pass_have_equal_length_steps_and_levels(generator: Generator):
    first = REQUESTS[0]
    requests = [
        first,
        replace(first, steps=3),
        replace(first, seed=9, prompt="jazz"),
        replace(first, seconds=5.0),
        replace(first, schedule=ScheduleConfig(sigma_max=40.0)),
        replace(first, seconds=None),
    ]
    assert group_requests(generator.model, requests) == [[0, 2], [1], [3], [4], [5]]
    with pytest.raises(UserError):
        generate_batch(generator, requests[:2])


def test_clips_with_guidance_share_a_pass_of_their_own():
    generator = load_generator("presto-tiny-l", device="cpu")
    restraints: dict[str, Any] = {"guidance_rescale": 0.7, "guidance_interval": (0.1, 90.0)}
    how: dict[str, Any] = {"guidance_scale": 2.0, "negative_prompt": "drums", **restraints}
    guided = [replace(request, **how) for request in REQUESTS[:2]]
    others = [replace(guided[0], guidance_rescale=0.5), replace(guided[0], guidance_interval=(0.2, 90.0))]
    assert group_requests(generator.model, [*guided, *others]) == [[0, 1], [2], [3]]
    assert group_requests(generator.model, [*guided, REQUESTS[0]]) == [[0, 1], [2]]
    words = [request.check(generator.model) for request in guided]
    together = sample_latents(generator.model, guided, words)
    alone = sample_latents(generator.model, guided[1:], words[1:])
    assert (together[1] - alone[0]).abs().max() < LATENT_TOLERANCE


@pytest.mark.parametrize("change", [{"steps": 0}, {"seed": -1}, {"key": "H flat"}, {"tempo_bpm": 1e9}])
def test_one_bad_request_is_refused_before_the_pass(generator: Generator, change: dict[str, object]):
    with pytest.raises(UserError):
        replace(REQUESTS[0], **change).check(generator.model)  # type: ignore[arg-type]


def test_a_batch_that_nobody_waits_for_stops_between_steps(generator: Generator):
    calls: list[int] = []

    def is_wanted() -> bool:
        calls.append(1)
        return len(calls) < 3

    with pytest.raises(AbandonedError):
        generate_batch(generator, [replace(REQUESTS[0], steps=5)], is_wanted=is_wanted)
    assert len(calls) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_clip_of_a_batch_is_close_to_the_one_made_alone():
    generator = load_generator("presto-tiny-ls", device="cuda")
    for request, clip in zip(REQUESTS, generate_batch(generator, REQUESTS)):
        (alone,) = generate_batch(generator, [request])
        assert np.corrcoef(clip.audio[0], alone.audio[0])[0, 1] > 0.99
