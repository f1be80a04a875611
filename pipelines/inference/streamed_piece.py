"""A long piece whose latents are made, and whose audio is decoded part by part as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipelines.inference.clip import GeneratedClip
from pipelines.inference.clip_audio import Audio, begin_wav, check_finite, encode_part, fade_part, finish_audio
from pipelines.inference.model import Model
from presto_core.audio.running_limiter import RunningLimiter
from presto_core.device import explain_memory


@dataclass(frozen=True)
class StreamedPiece:
    """Reading it again decodes it again.

    Attributes:
        about: the clip that it becomes, with silence for its audio.
        x0: its latents, [1, C, T].
        is_long: it is longer than a window. Then it is turned down only where it is loud, so that its start does not
            depend on its end; else all of it, as what `generate` makes.
        before_part: called before a part is decoded; ends reading by what it raises.
    """

    model: Model
    about: GeneratedClip
    x0: torch.Tensor
    is_long: bool
    before_part: Callable[[], None] | None = None

    @property
    def settings(self) -> dict[str, object]:
        return self.about.settings

    def iter_audio(self) -> Iterator[Audio]:
        """Yield the audio in parts [channels, n]: together the bits of `read_all`.

        Raises:
            UserError: a sample is NaN or infinite.
        """
        for part, _gain_db in self._iter_limited():
            yield part

    def iter_wav(self) -> Iterator[bytes]:
        """Yield a 16-bit WAV in parts; its comment lacks only the gain, which nobody knows before the end."""
        audio, rate_hz = self.about.audio, self.about.sample_rate_hz
        details = self.about.describe()
        details.pop("gain_db")
        channels, samples = audio.shape
        yield begin_wav(samples=samples, channels=channels, rate_hz=rate_hz, title=self.about.prompt, details=details)
        for part in self.iter_audio():
            yield encode_part(part, rate_hz)

    def read_all(self) -> GeneratedClip:
        """Return the whole as a clip; raises UserError if a sample is NaN or infinite."""
        parts, lowest_db = [], 0.0
        for part, gain_db in self._iter_limited():
            parts.append(part)
            lowest_db = min(lowest_db, gain_db)
        return replace(self.about, audio=np.concatenate(parts, axis=1), gain_db=lowest_db)

    def _iter_limited(self) -> Iterator[tuple[Audio, float]]:
        """Yield parts, none of them empty, with the lowest gain in dB so far."""
        rate_hz, total = self.about.sample_rate_hz, self.about.audio.shape[1]
        if not self.is_long:
            with self._explain_memory():
                decoded = self.model.decode(self.x0)[0].cpu().numpy()
            yield finish_audio(decoded, rate_hz, seconds=total / rate_hz)
            return
        limiter, start = RunningLimiter(rate_hz), 0
        for part in self._iter_decoded():
            part = part[:, : total - start]
            check_finite(part)
            ready = limiter.push(fade_part(part, start=start, total=total, rate_hz=rate_hz))
            start += part.shape[1]
            if ready.size:
                yield ready, limiter.lowest_db
        rest = limiter.finish()
        if rest.size:
            yield rest, limiter.lowest_db

    def _explain_memory(self) -> AbstractContextManager[None]:
        return explain_memory(self.model.device, setting="seconds", value=self.about.seconds, least=1.0)

    def _iter_decoded(self) -> Iterator[Audio]:
        parts = self.model.decode_in_parts(self.x0)
        while True:
            if self.before_part is not None:
                self.before_part()
            with self._explain_memory():
                part = next(parts, None)
            if part is None:
                return
            yield part[0].cpu().numpy()
