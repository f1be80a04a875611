"""Attention heads whose rotary positions count beats: the same at every tempo, unknown tempos, budgets, settings."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipelines.stages.train_teacher import make_card
from pipelines.train.spec import Models
from presto_core.config.schema import TeacherStage
from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.dit import DiT
from presto_core.networks.embeddings import (
    DEFAULT_TEMPO_BPM,
    RotaryPositions,
    rotary_angles,
    rotary_angles_in_beats,
    rotate,
)
from presto_core.networks.layer_budget import LayerBudget
from tests.support.toy_networks import TEXT_DIM, conditions

CONFIG = NetworkConfig(dim=48, depth=3, heads=3, beat_heads=1, frame_rate=16)
HEAD_DIM, TOKENS = 16, 12


def make_net(config: NetworkConfig = CONFIG) -> DiT:
    torch.manual_seed(0)
    budget = LayerBudget(kept=(2, 3), edges=(1.0,), distribution={})
    net = DiT.for_budget(config, channels=4, text_dim=TEXT_DIM, budget=budget)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def make_inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    rng = torch.Generator().manual_seed(batch)
    cond = replace(conditions(batch), tempo_bpm=torch.linspace(60, 180, batch))
    return torch.randn(batch, 4, 2 * TOKENS, generator=rng), torch.randn(batch, generator=rng), cond


def test_tokens_at_twice_the_tempo_pass_twice_as_many_beats():
    slow, fast = (
        rotary_angles_in_beats(TOKENS, HEAD_DIM, torch.tensor([bpm]), tokens_per_second=8) for bpm in (70.0, 140.0)
    )
    for one, two in zip(slow, fast):
        torch.testing.assert_close(one[0, ::2], two[0, : TOKENS // 2], atol=1e-5, rtol=0)


def test_a_product_depends_on_the_distance_in_beats_and_returns_after_a_phrase():
    tempo, per_second = 120.0, 8.0  # four tokens per beat
    cos, sin = rotary_angles_in_beats(200, HEAD_DIM, torch.tensor([tempo]), tokens_per_second=per_second)
    q, k = torch.randn(1, 1, 1, HEAD_DIM), torch.randn(1, 1, 1, HEAD_DIM)

    def product(i: int, j: int) -> float:
        return float((rotate(q, cos[0, i], sin[0, i]) * rotate(k, cos[0, j], sin[0, j])).sum())

    assert product(9, 5) == pytest.approx(product(57, 53), abs=1e-4)
    beats_to_return = 48  # the least number of beats that is whole in sixteenths and in thirds
    assert product(beats_to_return * 4, 0) == pytest.approx(product(0, 0), abs=1e-3)
    assert product(4, 0) != pytest.approx(product(6, 0), abs=1e-2)


def test_without_beat_heads_all_rows_share_the_positions_of_tokens():
    positions = RotaryPositions(NetworkConfig(dim=48, depth=3, heads=3))
    rotary = positions(torch.zeros(2, TOKENS, 48), conditions(2))
    for got, expected in zip(rotary, rotary_angles(TOKENS, HEAD_DIM, torch.device("cpu")), strict=True):
        assert torch.equal(got, expected)
    assert positions.take_rows(rotary, slice(1)) is rotary


def test_the_other_heads_keep_positions_in_tokens():
    rotary = RotaryPositions(CONFIG)(torch.zeros(2, TOKENS, 48), conditions(2))
    plain = rotary_angles(TOKENS, HEAD_DIM, torch.device("cpu"))
    for got, expected in zip(rotary, plain, strict=True):
        assert got.shape == (2, 3, TOKENS, HEAD_DIM // 2)
        assert torch.equal(got[:, :2], expected.expand(2, 2, -1, -1))
        assert not torch.allclose(got[:, 2], expected)


def test_an_unconditional_sample_and_one_of_unknown_tempo_have_the_beats_of_the_default_tempo():
    hidden, known = torch.zeros(1, TOKENS, 48), conditions(1)
    positions, tempo = RotaryPositions(CONFIG), torch.tensor([DEFAULT_TEMPO_BPM])
    expected = positions(hidden, replace(known, tempo_bpm=tempo))
    unknown = [replace(known, tempo_bpm=torch.tensor([bpm])) for bpm in (float("nan"), 0.0, -1.0)]
    for cond in (None, known.to_unconditional(), *unknown):
        for got, want in zip(positions(hidden, cond), expected, strict=True):
            assert torch.equal(got, want)
    assert not torch.equal(positions(hidden, known)[0], expected[0])


def test_the_tempo_of_dropped_conditions_changes_nothing():
    net, (x, time, cond) = make_net(), make_inputs(3)
    others = replace(cond, tempo_bpm=cond.tempo_bpm.flip(0))
    assert torch.equal(net(x, time, cond.to_unconditional()), net(x, time, others.to_unconditional()))
    assert not torch.allclose(net(x, time, cond)[0], net(x, time, others)[0], atol=1e-3)


@pytest.mark.parametrize("budgets", [[2, 3, 1, 3], [1, 1, 1], [3]])
def test_mixed_budgets_equal_one_sample_at_a_time(budgets: list[int]):
    net, (x, time, cond) = make_net(), make_inputs(len(budgets))
    alone = [net(x[i : i + 1], time[i : i + 1], cond.rows(slice(i, i + 1)), budget) for i, budget in enumerate(budgets)]
    torch.testing.assert_close(net(x, time, cond, torch.tensor(budgets)), torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_taps_and_kept_blocks_have_the_positions_of_the_network():
    net, (x, time, cond) = make_net(), make_inputs(3)
    _, hidden = net(x, time, cond, with_hidden=True)
    (tapped,) = net(x, time, cond, taps=(2,))
    torch.testing.assert_close(tapped.transpose(1, 2), hidden)
    torch.testing.assert_close(net.keep_blocks(2)(x, time, cond), net(x, time, cond, 2))


def test_the_card_of_a_teacher_records_the_frame_rate_of_its_data_set():
    info = {
        "codec": {"kind": "mel_pca", "sample_rate_hz": 44100, "hop": 2048},
        "text": {"kind": "minilm", "dim": TEXT_DIM},
        "latents": {"channels": 4, "frames": 8, "mean": [0.0] * 4, "std": [1.0] * 4},
    }
    dataset: Any = SimpleNamespace(info=info)  # what a card is made from

    def record(**network: float) -> float:
        config = TeacherStage(network=NetworkConfig(dim=48, heads=3, **network))
        return make_card(config, Models({}), dataset).network["frame_rate"]

    assert record(beat_heads=1) == 44100 / 2048
    assert record(beat_heads=1, frame_rate=10.0) == 10.0
    assert record() == 0.0  # and the run id of former releases


def test_impossible_settings_are_refused():
    with pytest.raises(ValidationError, match="beat_heads=4 are more than heads=3"):
        NetworkConfig(dim=48, heads=3, beat_heads=4)
    with pytest.raises(ValueError, match="frame_rate"):
        make_net(NetworkConfig(dim=48, heads=3, beat_heads=1))
