"""Changes to LongCat-Audio's transformer: text without an effect of its padding, and time that runs the other way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class TextConvolution(nn.Sequential):
    """The convolutions over a prompt's tokens, in which padding counts for nothing while a mask is set.

    The pipeline pads a batch to its longest prompt, and each block normalises by a sum over all positions: there, a
    prompt's conditions depend on the others of its batch. Here, they are those that it has alone.

    Attributes:
        mask: [B, S] bool, False for padding; None computes what the class does.
    """

    mask: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.mask is None:
            return super().forward(hidden)
        padding = ~self.mask[..., None]
        for block in self:
            hidden = _convolve(block, hidden, padding)
        return hidden


def _convolve(block: Any, hidden: Tensor, padding: Tensor) -> Tensor:
    """Compute what an AudioDiTConvNeXtV2Block does, with zeros in place of padding [B, S, 1] where positions meet."""
    hidden = hidden.masked_fill(padding, 0.0)
    inner = block.norm(block.dwconv(hidden.transpose(1, 2)).transpose(1, 2))
    inner = block.act(block.pwconv1(inner)).masked_fill(padding, 0.0)
    output: Tensor = hidden + block.pwconv2(block.grn(inner))
    return output


def replace_text_convolution(transformer: Any) -> None:
    """Let a new LongCatAudioDiTTransformer ignore padding; names of its weights stay."""
    if transformer.text_conv:
        transformer.text_conv_layer = TextConvolution(*transformer.text_conv_layer)


@contextmanager
def ignore_padding(transformer: Any, mask: Tensor) -> Iterator[None]:
    """Set the mask [B, S] of a transformer's text for one forward pass."""
    layer = getattr(transformer, "text_conv_layer", None)
    if not isinstance(layer, TextConvolution):
        yield
        return
    layer.mask = mask.bool()
    try:
        yield
    finally:
        layer.mask = None


@torch.no_grad()
def reverse_time(transformer: Any) -> None:
    """Change weights so that the network takes t in place of 1 - t, and its output has the opposite sign.

    Of v = x0 - eps with time 0 at noise, this makes v = eps - x0 with time 1 at noise. Twice is the identity.
    """
    # features of t are sin(a t), cos(a t) with a = 1000 f for frequencies f; those of 1 - t are a rotation of them:
    # sin(a - at) = sin(a) cos(at) - cos(a) sin(at),  cos(a - at) = cos(a) cos(at) + sin(a) sin(at)
    embedding, weight = transformer.time_embed, transformer.time_embed.time_mlp[0].weight
    sine, cosine = embedding.time_embed(weight.new_ones(1)).double().chunk(2, dim=-1)
    of_sine, of_cosine = weight.double().chunk(2, dim=1)
    weight.copy_(torch.cat([of_cosine * sine - of_sine * cosine, of_sine * sine + of_cosine * cosine], dim=1))
    transformer.proj_out.weight.neg_()
    transformer.proj_out.bias.neg_()
