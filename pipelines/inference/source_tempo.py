"""The tempo of given audio, for edits whose prompt states none: what goes on, or fills a hole, keeps the beat."""

from __future__ import annotations

from dataclasses import replace

from pipelines.console import console
from pipelines.inference.clip_audio import Audio
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords
from presto_core.metrics.adherence.tempo import estimate_tempo

CONTEXT_SECONDS = 15.0  # on each side: a tempo further away may be another one


def add_source_tempo(model: Model, words: PromptWords, audio: Audio, *, start: int, stop: int) -> PromptWords:
    """Return the prompt's words with the tempo that is heard around a region that is made, and print it.

    The words stay as they are if they state a tempo, if no clear beat is heard, or if the model knows no tempi.

    Args:
        audio: [A, N], silent where there is nothing given.
        start, stop: the region that is made, in samples; what is in it is not listened to.
    """
    if words.tempo_bpm is not None or model.card.is_imported:
        return words
    rate_hz = model.codec.sample_rate_hz
    reach = round(CONTEXT_SECONDS * rate_hz)
    before, after = audio[:, max(0, start - reach) : start], audio[:, stop : stop + reach]
    longer = max(before, after, key=lambda part: part.shape[1])  # joined, their beats would be out of step
    tempo_bpm = estimate_tempo(longer.mean(axis=0), rate_hz=rate_hz)
    if tempo_bpm is None:
        return words
    tempo_bpm = round(tempo_bpm, 1)
    console.print(f"edit: the prompt states no tempo; {tempo_bpm:g} bpm is heard in the audio and kept")
    return replace(words, tempo_bpm=tempo_bpm)
