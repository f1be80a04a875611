"""Conditions as Stable Audio's pipeline makes them: projected text and timing tokens, and a global vector of timing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.families import Arguments


class StableAudioConditioner(nn.Module):
    """`Conditioning` -> arguments of a StableAudioDiTModel, with the teacher's own projection model.

    Text: [B, S, E] projected, zero where the mask is, and always as long as the teacher's tokenizer makes it, since the
    transformer attends to padding too. An unconditional row has zeros for text and timing tokens and keeps the global
    vector, as in the pipeline's classifier-free guidance.
    """

    def __init__(self, config: DiffusersNetworkConfig) -> None:
        super().__init__()
        from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

        settings = {name: value for name, value in config.conditioner.items() if not name.startswith("_")}
        self.projection: nn.Module = StableAudioProjectionModel(**settings).float()
        self.text_dim = int(config.conditioner["text_encoder_dim"])
        self.text_tokens, self.clip_seconds = config.text_tokens, config.clip_seconds

    def forward(self, cond: Conditioning | None, x: Tensor) -> Arguments:
        batch = x.shape[0]
        timing = x.new_tensor([[0.0, self.clip_seconds]]).expand(batch, 2)
        if cond is None:
            text, visible = x.new_zeros(batch, self.text_tokens, self.text_dim), x.new_zeros(batch, self.text_tokens)
            keep = x.new_zeros(batch)
        else:
            text, keep = pad_tokens(cond.tokens, self.text_tokens), cond.keep
            visible = pad_tokens(cond.mask.to(x.dtype)[..., None], self.text_tokens)[..., 0]
            timing = timing if cond.timing is None else cond.timing.to(x.dtype)
        out = self.projection(text, timing[:, 0], timing[:, 1])
        start, end = out.seconds_start_hidden_states, out.seconds_end_hidden_states
        tokens = torch.cat([out.text_hidden_states * visible[..., None], start, end], dim=1)
        kept = keep.to(tokens.dtype)[:, None, None]
        return {"encoder_hidden_states": tokens * kept, "global_hidden_states": torch.cat([start, end], dim=2)}


def pad_tokens(values: Tensor, length: int) -> Tensor:
    """Pad [B, S, ...] with zeros to the teacher's number of tokens; raises ValueError if S is more."""
    missing = length - values.shape[1]
    if missing < 0:
        raise ValueError(f"{values.shape[1]} text tokens are more than the teacher's {length}")
    return torch.cat([values, values.new_zeros(values.shape[0], missing, values.shape[2])], dim=1)
