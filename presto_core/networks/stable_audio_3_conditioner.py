"""Conditions as Stable Audio 3's pipeline makes them: text states, and an embedding of the clip's duration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.families import Arguments
from presto_core.networks.stable_audio_conditioner import pad_tokens


class StableAudio3Conditioner(nn.Module):
    """`Conditioning` -> arguments of a StableAudio3DiTModel, with the teacher's own duration embedder.

    The duration is that of the music in the clip: what is left of the recording, at most the clip. It is a token after
    those of the text, and the global vector. The transformer replaces text positions without a token by a learned
    embedding; an unconditional row has none. The pipeline's guidance encodes an empty text instead, of which a
    tokenizer may make a token.
    """

    def __init__(self, config: DiffusersNetworkConfig) -> None:
        super().__init__()
        from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder

        settings = {name: value for name, value in config.conditioner.items() if not name.startswith("_")}
        self.projection: nn.Module = StableAudio3DurationEmbedder(**settings).float()
        self.text_dim = int(config.transformer["cond_token_dim"])
        self.text_tokens, self.clip_seconds = config.text_tokens, config.clip_seconds

    def forward(self, cond: Conditioning | None, x: Tensor) -> Arguments:
        batch = x.shape[0]
        if cond is None:
            text = x.new_zeros(batch, self.text_tokens, self.text_dim)
            mask = torch.zeros(batch, self.text_tokens, dtype=torch.bool, device=x.device)
        else:
            text = pad_tokens(cond.tokens, self.text_tokens)
            mask = pad_tokens(cond.mask[..., None], self.text_tokens)[..., 0] & cond.keep[:, None]
        if cond is None or cond.timing is None:
            seconds = x.new_full((batch,), self.clip_seconds)
        else:
            timing = cond.timing.to(x.dtype)
            seconds = (timing[:, 1] - timing[:, 0]).clamp(max=self.clip_seconds)
        duration = self.projection(seconds)
        return {
            "encoder_hidden_states": torch.cat([text.to(duration.dtype), duration[:, None]], dim=1),
            "global_hidden_states": duration,
            "encoder_attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1),
        }
