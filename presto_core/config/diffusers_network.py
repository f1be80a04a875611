"""Settings of a diffusers transformer in a model card, as `presto teacher import` reads them from a folder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from presto_core.config.section import Section


class DiffusersNetworkConfig(Section):
    """A network of a class of diffusers, with its conditioner."""

    kind: Literal["diffusers"] = "diffusers"
    transformer_class: str
    """Class of the transformer."""
    transformer: dict[str, Any]
    """Settings of the transformer, as in its config.json."""
    conditioner: dict[str, Any] = Field(default_factory=dict)
    """Settings of the projection model; empty if conditions are the transformer's own arguments."""
    text_tokens: int = Field(0, ge=0)
    """Number of tokens to which the teacher's tokenizer pads every text."""
    clip_seconds: float = Field(0, ge=0)
    """Length of the clips that the teacher always makes."""
    frozen: tuple[str, ...] = ()
    """Names of weights that are not trained."""
