"""The transformer and the discriminator head: initial state, conditioning, taps, shapes, patches."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning, key_index, key_name
from presto_core.networks.block import RMSNorm, attend
from presto_core.networks.discriminator import PatchHead
from presto_core.networks.dit import DiT
from presto_core.networks.embeddings import rotary_angles, rotate
from presto_core.networks.layer_budget import LayerBudget
from tests.support.toy_networks import TEXT_DIM, conditions, tiny_dit

X, C_NOISE = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([-1.0, 0.0, 1.0])


def test_output_is_zero_at_initialisation():
    net = DiT(NetworkConfig(dim=16, depth=2, heads=2), channels=4, text_dim=TEXT_DIM)
    assert not net(X, C_NOISE, conditions(3)).any()


def test_the_filter_is_a_convolution_over_time_of_each_channel_alone():
    net = DiT(NetworkConfig(dim=16, depth=2, heads=2, filter_taps=3), channels=4, text_dim=TEXT_DIM)
    kernels = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    net.filter.bias.data = kernels.flatten()
    expected = torch.nn.functional.conv1d(X, kernels[:, None], padding=1, groups=4)
    torch.testing.assert_close(net(X, C_NOISE, conditions(3)), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_for_bf16_on_a_cpu_is_the_library_kernel_up_to_rounding(masked: bool):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=rng, dtype=torch.bfloat16) for n in (5, 7, 7))
    mask = (torch.arange(7) < 4).expand(2, 1, 1, 7) if masked else None
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask).double(), expected, atol=0.03, rtol=0.03)


def test_rms_norm_is_the_library_one_in_the_dtype_of_its_input():
    norm, x = RMSNorm(8), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    norm.weight.data = torch.linspace(0.5, 2, 8)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight))
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["presto", "ase"])
def test_kept_blocks_are_the_network_at_that_budget(mode):
    budget = LayerBudget(kept=(2, 3), edges=(1.0,), distribution={}, mode=mode)
    config = NetworkConfig(dim=16, depth=3, heads=2, spectrum_bins=8)
    net = DiT.for_budget(config, channels=4, text_dim=TEXT_DIM, budget=budget)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    for kept in (1, 2, 3):
        plain = net.keep_blocks(kept)
        assert (plain.depth, plain.budget) == (kept, None)
        expected = net(X, C_NOISE, conditions(3), kept)
        torch.testing.assert_close(plain(X, C_NOISE, conditions(3)), expected, rtol=1e-4, atol=1e-4)
        assert (expected - net(X, C_NOISE, conditions(3), kept % 3 + 1)).abs().max() > 0.1


def test_a_filter_has_a_middle():
    with pytest.raises(ValueError, match="filter_taps=4 must be odd"):
        NetworkConfig(filter_taps=4)


def test_unconditional_is_the_same_for_no_conditions_and_forgotten_ones():
    net = tiny_dit()
    torch.testing.assert_close(net(X, C_NOISE, None), net(X, C_NOISE, conditions(3).to_unconditional()))


@pytest.mark.parametrize("field", ["pooled", "tokens", "tempo_bpm", "key"])
def test_every_condition_matters(field: str):
    net, cond = tiny_dit(), conditions(3)
    other = replace(cond, **{field: getattr(cond, field) + 1})
    assert not torch.allclose(net(X, C_NOISE, cond), net(X, C_NOISE, other), atol=1e-4)


def test_masked_tokens_do_not_matter():
    net, cond = tiny_dit(), conditions(3)
    noise = torch.randn_like(cond.tokens) * ~cond.mask[:, :, None]
    torch.testing.assert_close(
        net(X, C_NOISE, cond), net(X, C_NOISE, replace(cond, tokens=cond.tokens + noise)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("unknown", [torch.nan, 0.0, -1.0])
def test_unknown_tempo_and_empty_caption_give_finite_output(unknown: float):
    cond = conditions(3)
    blank = replace(
        cond,
        pooled=torch.zeros_like(cond.pooled),
        tokens=torch.zeros_like(cond.tokens),
        mask=torch.zeros_like(cond.mask),
        tempo_bpm=torch.full((3,), unknown),
        key=torch.full((3,), UNKNOWN_KEY),
    )
    net = tiny_dit()
    out = net(X, C_NOISE, blank)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_a_sample_does_not_depend_on_its_batch():
    net, cond = tiny_dit(), conditions(3)
    alone = torch.cat([net(X[i : i + 1], C_NOISE[i : i + 1], cond.rows(slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(net(X, C_NOISE, cond), alone, atol=1e-6, rtol=1e-5)


def test_taps_are_the_activations_and_later_blocks_do_not_run():
    net, seen = tiny_dit(depth=4), []
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda *a, i=i: seen.append((i, a[2])))
    features = net(X, C_NOISE, conditions(3), taps=(0, 2))
    assert [i for i, _ in seen] == [0, 1, 2]
    assert [f.shape for f in features] == [(3, 16, 4)] * 2
    torch.testing.assert_close(features[1], seen[2][1].transpose(1, 2))


def test_output_and_taps_of_one_pass_are_those_of_two():
    net = tiny_dit(depth=4)
    raw, features = net(X, C_NOISE, conditions(3), taps=(0, 2), with_output=True)
    assert torch.equal(raw, net(X, C_NOISE, conditions(3)))
    assert all(map(torch.equal, features, net(X, C_NOISE, conditions(3), taps=(0, 2))))


def test_patches_cover_the_time_axis_in_order():
    """With one-frame and two-frame patches, tokens contain the right frames."""
    net = tiny_dit(patch=2)
    tokens = net._patchify(X)
    torch.testing.assert_close(tokens[:, 1], torch.cat([X[:, :, 2], X[:, :, 3]], dim=1))
    torch.testing.assert_close(net._unpatchify(tokens), X)


def test_frames_that_do_not_fill_a_patch_are_refused():
    with pytest.raises(ValueError, match="patch=2"):
        tiny_dit()(X[:, :, :7], C_NOISE, None)


def test_rotary_products_depend_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    cos, sin = rotary_angles(10, 8, torch.device("cpu"))

    def product(i: int, j: int) -> float:
        return float((rotate(q, cos[i], sin[i]) * rotate(k, cos[j], sin[j])).sum())

    assert product(5, 2) == pytest.approx(product(9, 6), abs=1e-4)


@pytest.mark.parametrize(("layers", "patches"), [(1, 16), (2, 8), (3, 4)])
def test_head_gives_one_score_a_patch(layers: int, patches: int):
    head = PatchHead(16, num_taps=2, channels=12, layers=layers)
    assert head([torch.randn(3, 16, 32)] * 2).shape == (3, patches)


@pytest.mark.parametrize(("name", "index"), [("C major", 0), ("C# minor", 13), ("Bb major", 10), ("", UNKNOWN_KEY)])
def test_key_names(name: str, index: int):
    assert key_index(name) == index


def test_every_key_has_a_name_that_gives_its_index() -> None:
    assert [key_index(key_name(index)) for index in range(24)] == list(range(24))
    with pytest.raises(ValueError, match="24"):
        key_name(UNKNOWN_KEY)


def test_wrong_key_name_is_refused():
    with pytest.raises(ValueError, match="'H dur'"):
        key_index("H dur")


def test_conditioning_cat_and_rows_are_inverse():
    cond = conditions(4)
    rebuilt = Conditioning.cat([cond.rows(slice(0, 1)), cond.rows(slice(1, 4))])
    torch.testing.assert_close(rebuilt.tokens, cond.tokens)
