"""Conditions as LongCat-Audio's pipeline makes them: text states with their mask, and no latents to continue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.families import Arguments


class LongCatAudioConditioner(nn.Module):
    """`Conditioning` -> arguments of a LongCatAudioDiTTransformer.

    An unconditional row has zeros for its text states and keeps its mask, as in the pipeline's guidance; a row without
    text has one such token. Latents to continue are zeros, as the pipeline's always are. All frames belong to the clip,
    so they need no mask. The length of a clip is no condition.
    """

    projection: nn.Module | None = None

    def __init__(self, config: DiffusersNetworkConfig) -> None:
        super().__init__()
        self.text_dim = int(config.conditioner["text_dim"])
        self.text_tokens, self.clip_seconds = config.text_tokens, config.clip_seconds

    def forward(self, cond: Conditioning | None, x: Tensor) -> Arguments:
        batch = x.shape[0]
        if cond is None:
            tokens = x.new_zeros(batch, 1, self.text_dim)
            mask = torch.ones(batch, 1, dtype=torch.bool, device=x.device)
        else:
            tokens = (cond.tokens * cond.keep[:, None, None]).to(x.dtype)
            first = torch.arange(tokens.shape[1], device=x.device) == 0
            mask = cond.mask | (first & ~cond.mask.any(dim=1, keepdim=True))
        return {
            "encoder_hidden_states": tokens,
            "encoder_attention_mask": mask,
            "latent_cond": torch.zeros_like(x).transpose(1, 2),
        }
