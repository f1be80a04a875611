"""Conditions as ACE-Step's pipeline makes them of a text alone: music without lyrics, voice or sound to go by."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.families import Arguments

SILENCE_FRAMES = 15_000  # of the condition encoder's silence_latent: 10 min
TIMBRE_SECONDS = 30  # of silence that the timbre encoder reads if it has no recording


class AceStepConditioner(nn.Module):
    """`Conditioning` -> arguments of an AceStepTransformer1DModel, with what the teacher's condition encoder computes.

    The transformer reads lyrics, timbre and text as one sequence without order. Lyrics and timbre are the same for
    every instrumental clip, so that their tokens are computed once, by `fill`; text is projected. The class attends to
    padding, of which a clip made alone has none: blocks get a mask. An unconditional row has the teacher's learned
    embedding at every token. The context is silence, all of it to be generated.
    """

    def __init__(self, config: DiffusersNetworkConfig) -> None:
        super().__init__()
        settings = config.conditioner
        self.text_dim, width = int(settings["text_hidden_dim"]), int(settings["hidden_size"])
        self.text_projector = nn.Linear(self.text_dim, width, bias=False)
        self.register_buffer("fixed", torch.zeros(1, int(settings["fixed_tokens"]), width))
        self.register_buffer("null", torch.zeros(1, 1, width))
        self.register_buffer("silence", torch.zeros(1, SILENCE_FRAMES, int(settings["timbre_hidden_dim"])))

    fixed: Tensor
    null: Tensor
    silence: Tensor
    projection: None = None  # the condition encoder itself is not kept

    @torch.no_grad()
    def fill(self, encoder: Any, lyrics: Tensor, *, frames_per_second: float) -> None:
        """Take the weights of an AceStepConditionEncoder, and compute the tokens that all clips share.

        Args:
            lyrics: [1, L, E] embedded tokens of what stands for no lyrics.
            frames_per_second: latent frames.

        Raises:
            ValueError: the number of tokens is not that of the settings.
        """
        self.text_projector.weight.copy_(encoder.text_projector.weight)
        self.null.copy_(encoder.null_condition_emb)
        self.silence.copy_(encoder.silence_latent)
        seen = torch.ones(lyrics.shape[:2], dtype=torch.bool)
        tokens, _ = encoder.eval()(
            text_hidden_states=lyrics.new_zeros(1, 0, self.text_dim),
            text_attention_mask=seen[:, :0],
            lyric_hidden_states=lyrics,
            lyric_attention_mask=seen,
            refer_audio_acoustic_hidden_states_packed=self.silence[:, : math.ceil(TIMBRE_SECONDS * frames_per_second)],
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
        )
        if tokens.shape != self.fixed.shape:
            raise ValueError(f"{tokens.shape[1]} tokens of lyrics and timbre are not {self.fixed.shape[1]}")
        self.fixed.copy_(tokens)

    def forward(self, cond: Conditioning | None, x: Tensor) -> Arguments:
        batch, context = x.shape[0], self._make_context(x)
        if cond is None:
            tokens, mask = self.null.expand(batch, 1, -1), x.new_ones(batch, 1, dtype=torch.bool)
        else:
            text, fixed = self.text_projector(cond.tokens.to(self.fixed.dtype)), self.fixed.expand(batch, -1, -1)
            known = cond.keep & cond.mask.any(dim=1)
            tokens = torch.where(known[:, None, None], torch.cat([fixed, text.to(fixed.dtype)], dim=1), self.null)
            mask = torch.cat([torch.ones_like(fixed[..., 0], dtype=torch.bool), cond.mask], dim=1)
        return {
            "encoder_hidden_states": tokens,
            "context_latents": context,
            "encoder_attention_mask": mask[:, None, None],
        }

    def _make_context(self, x: Tensor) -> Tensor:
        """Return latents of silence and a mask of ones, for x [B, C, T]: [B, T, 2 C]."""
        frames = x.shape[2]
        tiled = self.silence.repeat(1, math.ceil(frames / self.silence.shape[1]), 1)[:, :frames]
        silence = tiled.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([silence, torch.ones_like(silence)], dim=2)
