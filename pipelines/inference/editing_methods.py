"""What a generator does beside `generate`: edit and extend audio, make loops, compose and stream longer pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

from pipelines.inference import composing, editing
from pipelines.inference.clip import EditedClip, GeneratedClip
from pipelines.inference.model import Model
from pipelines.inference.prompts import PromptWords, check_prompts, check_words, parse_prompt
from pipelines.inference.sampling_request import SamplingArguments, SamplingRequest
from pipelines.inference.sound import HasAudio
from pipelines.inference.streamed_piece import StreamedPiece


class WordArguments(TypedDict):
    """What may be said beside a prompt."""

    tempo_bpm: float | None
    key: str | None


class Editing:
    """Methods of a generator that edit and compose.

    `sampling` stands for steps, seed, schedule, tempo_bpm, key, guidance_scale, guidance_interval, guidance_rescale and
    negative_prompt, which are those of `Generator.generate`, and for `before_step`, which is called before every
    evaluation of the model: it may count them, or end the work by raising. The same arguments give the same bits.
    """

    model: Model

    def edit(
        self,
        sound: HasAudio,
        prompt: str,
        *,
        strength: float | None = None,
        regions: Sequence[tuple[float, float]] = (),
        **sampling: Unpack[SamplingArguments],
    ) -> EditedClip:
        """Make audio anew: all of it, or only regions, outside of which every sample stays as it is.

        If neither the prompt nor `tempo_bpm` states a tempo, regions get the one that is heard around them, if a beat
        is; it is printed, and is `tempo_bpm` of the clip.

        Audio of another rate, or number of channels, is converted first, which is printed and is `converted` of the
        clip. Peaks of what is made stay at or below -1 dBFS, or the highest peak of what is kept.

        Args:
            sound: a `Sound`, such as `read_sound` returns, or a clip; 0.1 s to an hour long.
            prompt: what it becomes.
            strength: noise level to start from, as a share of the schedule: 0 keeps all, 1 nothing. None is 0.5 for the
                whole and 1 for regions.
            regions: (from, to) in seconds; none for the whole.

        Raises:
            UserError: the audio is empty, silent, too short or too long, or has NaN; a region is not within it, is
                reversed or overlaps another; the strength is out of range; or as `generate`.
        """
        request, words = self._read(prompt, sampling)
        return editing.edit(self.model, sound, prompt, words, request, strength=strength, regions=regions)

    def extend(
        self,
        sound: HasAudio,
        prompt: str,
        *,
        seconds: float,
        at: Literal["end", "start"] = "end",
        **sampling: Unpack[SamplingArguments],
    ) -> EditedClip:
        """Continue audio by `seconds`, or lead into it, at its own tempo unless one is stated; the given samples stay.

        But for a fade of 5 ms where it goes on, as generated clips have: it would leave a hole (`kept` of the clip).

        Args:
            sound: as `edit`.
            seconds: how much to add, 0.05 s to an hour; more than a clip is made in overlapping windows.
            at: whether it goes on at its end, or begins earlier.

        Raises:
            UserError: as `edit`.
        """
        request, words = self._read(prompt, sampling)
        return editing.extend(self.model, sound, prompt, words, request, seconds=seconds, at=at)

    def make_loop(
        self,
        prompt: str,
        *,
        seconds: float | None = None,
        **sampling: Unpack[SamplingArguments],
    ) -> GeneratedClip:
        """Generate a clip whose end flows into its start.

        Args:
            seconds: length of the loop, to the sample; None for the length the model was trained on.

        Raises:
            UserError: as `generate`.
        """
        request, words = self._read(prompt, sampling)
        return composing.make_loop(self.model, prompt, words, request, seconds=seconds)

    def compose(
        self,
        sections: Sequence[tuple[float, str]],
        *,
        seconds: float,
        overlap_seconds: float | None = None,
        **sampling: Unpack[SamplingArguments],
    ) -> GeneratedClip:
        """Generate a piece longer than the model's clips, in overlapping windows, with prompts that change over time.

        Args:
            sections: (start in seconds, prompt), the first from 0; a window takes the prompt at its middle.
            seconds: length of the piece, exactly.
            overlap_seconds: what two windows share; None for two fifths of a window.
            sampling: a tempo or key in it is of the whole piece; without, each prompt may name its own.

        Raises:
            UserError: the sections are not in order within the piece, or the overlap leaves no room; or as `generate`.
        """
        return self.stream(sections, seconds=seconds, overlap_seconds=overlap_seconds, **sampling).read_all()

    def stream(
        self,
        sections: Sequence[tuple[float, str]],
        *,
        seconds: float,
        overlap_seconds: float | None = None,
        **sampling: Unpack[SamplingArguments],
    ) -> StreamedPiece:
        """Make the latents of a piece; its audio is decoded as it is read, and has the bits of `compose`.

        Args are those of `compose`; `before_step` is called before every part that is decoded, too.

        Raises:
            UserError: as `compose`.
        """
        request, words = self._split(sampling)
        return composing.open_piece(
            self.model, sections, request, seconds=seconds, overlap_seconds=overlap_seconds, **words
        )

    def _read(self, prompt: str, sampling: SamplingArguments) -> tuple[SamplingRequest, PromptWords]:
        (text,) = check_prompts([prompt])
        request, words = self._split(sampling)
        return request, parse_prompt(text, **words)

    def _split(self, sampling: SamplingArguments) -> tuple[SamplingRequest, WordArguments]:
        """Return what says how, checked, and what is said beside the prompt."""
        how: dict[str, Any] = {**sampling}
        words: WordArguments = {"tempo_bpm": how.pop("tempo_bpm", None), "key": how.pop("key", None)}
        request = SamplingRequest(**how)
        request.check(self.model)
        check_words(self.model, **words)
        return request, words
