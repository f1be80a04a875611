"""The table of diffusers transformers that can be a teacher's network; a new one is a row of about eight lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from presto_core.errors import UserError
from presto_core.networks.longcat_audio import ignore_padding, replace_text_convolution

Arguments = Mapping[str, Tensor]
"""Conditions as keyword arguments of a model's forward pass, each with the batch as its first axis."""


@dataclass(frozen=True)
class Family:
    """One row: what differs from class to class.

    Attributes:
        blocks: attribute with the list of blocks.
        noise: submodule whose output [B, D] embeds the noise level; the embedding of a budget is added to it.
        batched: arguments of a block whose first axis is the batch.
        call: runs the model: (model, x, time, conditions) -> F, in the model's own layout.
        depth, width: settings of the class that hold the number of blocks and their features D; or a function of them.
        channels: setting that holds the latent channels.
        prefix: tokens before those of the audio; or the setting that holds their number.
        frames_first: whether the model wants latents as [B, T, C].
        adapt: changes a new model before it is used, without a change to the names of its weights.
        per_block: settings that are a list with an entry for each block.
        frozen: weights that no gradient reaches when music is made from text, or that the class keeps fixed.
        precondition: parameterisation of the class, as in `presto_core.diffusion.preconditions`.
        block_mask: argument of a block that masks padding of encoder_hidden_states, [B, 1, 1, S], if the class's own
            forward pass gives none: a condition of this name goes to the blocks.
    """

    blocks: str
    noise: str
    batched: frozenset[str]
    call: Callable[[Any, Tensor, Tensor, Arguments], Tensor]
    depth: str
    width: str | Callable[[Mapping[str, Any]], int]
    channels: str
    prefix: int | str = 0
    frames_first: bool = False
    adapt: Callable[[Any], None] | None = None
    per_block: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    precondition: str = "flow"
    block_mask: str = ""

    def run(self, model: Any, x: Tensor, time: Tensor, cond: Arguments) -> Tensor:
        """Return F [B, C, T] of x [B, C, T], whatever the model's own layout."""
        if not self.frames_first:
            return self.call(model, x, time, cond)
        return self.call(model, x.transpose(1, 2), time, cond).transpose(1, 2)

    def strip_padding(self, cond: Arguments) -> Arguments:
        """Return conditions of one clip as the class itself takes them: without padding, if it has no mask."""
        if self.block_mask not in cond:
            return cond
        kept = cond[self.block_mask][0, 0, 0]
        text = {"encoder_hidden_states": cond["encoder_hidden_states"][:, kept]}
        return {name: value for name, value in {**cond, **text}.items() if name != self.block_mask}

    def width_of(self, config: Mapping[str, Any]) -> int:
        """Return the features of the activations after a block."""
        return int(config[self.width] if isinstance(self.width, str) else self.width(config))

    def prefix_of(self, config: Mapping[str, Any]) -> int:
        """Return the number of tokens before those of the audio."""
        return int(config[self.prefix]) if isinstance(self.prefix, str) else self.prefix


@lru_cache(maxsize=8)
def rotary_tables(dim: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of Stable Audio's rotary embedding, which its pipeline makes."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    tables = get_1d_rotary_pos_embed(dim, length, use_real=True, repeat_interleave_real=False)
    cosine, sine = (table.to(device) for table in tables)
    return cosine, sine


def _call_stable_audio(model: Any, x: Tensor, time: Tensor, cond: Arguments) -> Tensor:
    # as in StableAudioPipeline, which makes the rotary table: one position more, for the prepended global token
    length = x.shape[2] + cond["global_hidden_states"].shape[1]
    rotary = rotary_tables(model.config.attention_head_dim // 2, length, x.device)
    output: Tensor = model(x, time, rotary_embedding=rotary, return_dict=False, **cond)[0]
    return output


def _call_stable_audio_3(model: Any, x: Tensor, time: Tensor, cond: Arguments) -> Tensor:
    output: Tensor = model(x, time, return_dict=False, **cond)[0]
    return output


def _call_ace_step(model: Any, x: Tensor, time: Tensor, cond: Arguments) -> Tensor:
    output: Tensor = model(x, time, time, return_dict=False, **cond)[0]  # no mean flow: r = t
    return output


def _call_longcat(model: Any, x: Tensor, time: Tensor, cond: Arguments) -> Tensor:
    with ignore_padding(model, cond["encoder_attention_mask"]):
        output: Tensor = model(hidden_states=x, timestep=time, return_dict=False, **cond)[0]
    return output


FAMILIES: dict[str, Family] = {
    "StableAudioDiTModel": Family(
        blocks="transformer_blocks", noise="timestep_proj", call=_call_stable_audio,
        batched=frozenset({"hidden_states", "encoder_hidden_states", "attention_mask", "encoder_attention_mask"}),
        depth="num_layers", width=lambda c: c["num_attention_heads"] * c["attention_head_dim"], channels="in_channels",
        prefix=1, frozen=("time_proj.",), precondition="v_cosine",
    ),
    "StableAudio3DiTModel": Family(
        blocks="transformer_blocks", noise="to_timestep_embed", call=_call_stable_audio_3,
        batched=frozenset({"hidden_states", "context", "global_modulation", "context_mask", "local_seq"}),
        depth="depth", width="embed_dim", channels="io_channels",
        prefix="num_memory_tokens", frozen=(".to_local_embed.",),
    ),
    "AceStepTransformer1DModel": Family(
        blocks="layers", noise="time_embed.linear_2", call=_call_ace_step,  # time_embed itself returns two tensors
        batched=frozenset({"hidden_states", "temb", "encoder_hidden_states", "encoder_attention_mask"}),
        depth="num_hidden_layers", width="hidden_size", channels="audio_acoustic_hidden_dim", frames_first=True,
        per_block=("layer_types",), block_mask="encoder_attention_mask",
    ),
    "LongCatAudioDiTTransformer": Family(
        blocks="blocks", noise="time_embed", call=_call_longcat,
        batched=frozenset({"hidden_states", "timestep_embed", "cond", "mask", "cond_mask", "adaln_global_out"}),
        depth="dit_depth", width="dit_dim", channels="latent_dim", frames_first=True, adapt=replace_text_convolution,
        frozen=("latent_embed.",),
    ),
}  # fmt: skip


def find_family(name: str) -> Family:
    """Return the row of a class of transformers.

    Raises:
        UserError: there is none.
    """
    if name not in FAMILIES:
        raise UserError(f"transformer class {name!r} is unknown; a teacher can be one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def build_transformer(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Build an untrained transformer of a class in the table, in fp32.

    Raises:
        UserError: diffusers is not installed or has no such class, or the settings are not those of the class.
    """
    find_family(name)
    try:
        import diffusers
    except ImportError:
        raise UserError(f"{name} needs diffusers; run pip install 'presto-distill[oobleck]'") from None
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise UserError(f"diffusers {diffusers.__version__} has no {name}; install a newer one")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        model: nn.Module = kind(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"settings of {name} do not fit diffusers {diffusers.__version__}: {error}") from None
    if (adapt := FAMILIES[name].adapt) is not None:
        adapt(model)
    return model.float()
