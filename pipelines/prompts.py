"""What a prompt says: captions as conditions, tempo and key read from the words, a length in latent frames."""

from __future__ import annotations

import re

import torch

from pipelines.models import Model
from presto_core.config.errors import UserError
from presto_core.diffusion.conditioning import Conditioning, key_index

PATCH_ROOM = 16  # lengths are rounded to a multiple of it, which every patch size in use divides


def told(model: Model, prompts: list[str], *, tempo_bpm: float | None = None, key: str | None = None) -> Conditioning:
    """Prompts as conditions. Tempo and key are read from the prompt where they are not given ("90 bpm", "in D minor").

    Raises:
        UserError: the key is no key.
    """
    text = model.text.encode(prompts)
    tempi = [tempo_bpm or _tempo_in(p) for p in prompts]
    try:
        keys = [key_index(key or _key_in(p)) for p in prompts]
    except ValueError as error:
        raise UserError(f"generate.key: {error}") from None
    return Conditioning(
        pooled=text.pooled,
        tokens=text.tokens,
        mask=text.mask,
        tempo_bpm=torch.tensor([t if t is not None else torch.nan for t in tempi]),
        key=torch.tensor(keys),
        keep=torch.ones(len(prompts), dtype=torch.bool),
    )


def _tempo_in(prompt: str) -> float | None:
    found = re.search(r"(\d{2,3})\s*bpm", prompt, re.IGNORECASE)
    return float(found[1]) if found else None


def _key_in(prompt: str) -> str | None:
    found = re.search(r"\b([A-G][#b]?) (major|minor)\b", prompt)
    return f"{found[1]} {found[2]}" if found else None


def frames_of(model: Model, seconds: float | None) -> int:
    """Latent frames of a clip of this length; None means the length the model was trained on."""
    if seconds is None:
        return model.card.frames
    wanted = seconds * model.codec.sample_rate_hz / model.codec.hop
    return max(PATCH_ROOM, round(wanted / PATCH_ROOM) * PATCH_ROOM)
