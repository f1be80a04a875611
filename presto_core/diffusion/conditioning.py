"""Conditions of the music: caption, tempo and key, each optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from presto_core.device import send
from presto_core.diffusion.musical_words import UNKNOWN_KEY, parse_key

__all__ = ["UNKNOWN_KEY", "Conditioning", "key_index", "key_name"]


@dataclass(frozen=True)
class Conditioning:
    """Conditions of a batch.

    Attributes:
        pooled: [B, E] caption as one vector.
        tokens: [B, S, E] caption as a sequence.
        mask: [B, S] bool, False for padding.
        tempo_bpm: [B] beats per minute; NaN or <= 0 if unknown.
        key: [B] int64; `UNKNOWN_KEY` if unknown.
        keep: [B] bool; False makes a sample unconditional.
        timing: [B, 2] seconds where the clip starts in its recording, and of the whole recording; None for models that
            do not know it.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    tempo_bpm: Tensor
    key: Tensor
    keep: Tensor
    timing: Tensor | None = None

    def __len__(self) -> int:
        return self.pooled.shape[0]

    def to(self, device: torch.device | str) -> Conditioning:
        """Return the batch on a device; a copy to a GPU does not wait for it."""
        return self._map(lambda value: send(value, torch.device(device)))

    def pin_memory(self) -> Conditioning:
        """Return the batch in memory of the host from which a GPU copies by itself."""
        return self._map(lambda value: value.pin_memory())

    def to_unconditional(self) -> Conditioning:
        """Return the batch with every sample unconditional."""
        return replace(self, keep=torch.zeros_like(self.keep))

    def keep_where(self, mask: Tensor) -> Conditioning:
        """Return the batch with samples unconditional where `mask` [B] is False (classifier-free guidance)."""
        return replace(self, keep=self.keep & mask.to(self.keep.device))

    def rows(self, index: Tensor | slice) -> Conditioning:
        """Return some of the batch's samples."""
        return self._map(lambda value: value[index])

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Concatenate batches."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Conditioning)}
        present = {name: values for name, values in columns.items() if values[0] is not None}
        return Conditioning(**{name: torch.cat(values) for name, values in present.items()})

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Return the batch with every tensor changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Conditioning(**{name: change(value) for name, value in values.items() if value is not None})


def key_index(name: str | None) -> int:
    """Return the index of a key name in any case and spelling: 'C# minor' -> 13; None or '' -> `UNKNOWN_KEY`.

    Raises:
        ValueError: the name is not a tonic followed by major or minor.
    """
    return parse_key(name) if name else UNKNOWN_KEY


_PITCH_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


def key_name(index: int) -> str:
    """Return the name of a key's index, the inverse of `key_index` but for the spelling: 13 -> 'C# minor'.

    Raises:
        ValueError: the index is not of a key.
    """
    if not 0 <= index < UNKNOWN_KEY:
        raise ValueError(f"key index {index} is not in 0 ... {UNKNOWN_KEY - 1}")
    return f"{_PITCH_NAMES[index % 12]} {'minor' if index >= 12 else 'major'}"
