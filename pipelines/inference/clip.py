"""What a generator returns: a clip of music with all that it was made with, which encodes itself as a WAV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

from pipelines.inference.clip_audio import encode_wav
from presto_core.audio.seam import Seam
from presto_core.config.sampling import ScheduleConfig


@dataclass(frozen=True)
class GeneratedClip:
    """One generated clip.

    Attributes:
        audio: [channels, samples], float32 with peaks of at most -1 dBFS, faded over 5 ms at both ends.
        guidance_scale, guidance_interval, guidance_rescale, negative_prompt: the same; few-step generators have none.
        computing: how the network computed, if not plainly in fp32: bf16, compiled or both.
        form: how it was made if not by `generate`: JSON values that decide it.
        device: what it was made on; another kind of device draws other noise, and so gives another clip.
        model_id, steps, seed, tempo_bpm, key, schedule: what it was made with; tempo and key may be the prompt's own,
            and a schedule of None is the one stored for the number of steps.
        gain_db: what a clip with higher peaks was turned down by, else 0.
        cut_text: end of the prompt that is beyond what the text encoder reads; a tempo or key in it counts, but not for
            imported models.
    """

    prompt: str
    audio: npt.NDArray[np.float32]
    sample_rate_hz: int
    model_id: str
    steps: int
    seed: int
    tempo_bpm: float | None = None
    key: str | None = None
    schedule: ScheduleConfig | None = None
    gain_db: float = 0.0
    cut_text: str = ""
    device: str = "cpu"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    computing: str = ""
    form: Mapping[str, object] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate_hz

    @property
    def settings(self) -> dict[str, object]:
        """All that decides the clip: equal settings give equal bits on the same machine."""
        schedule = None if self.schedule is None else self.schedule.model_dump()
        # names of files hash the settings, and clips of a CPU had their names before there was a choice
        device = {} if self.device == "cpu" else {"device": self.device}
        guidance = {"guidance_scale": self.guidance_scale, "negative_prompt": self.negative_prompt}
        restraints = {"guidance_interval": self.guidance_interval, "guidance_rescale": self.guidance_rescale}
        return (
            device
            | ({"computing": self.computing} if self.computing else {})
            | ({} if self.guidance_scale == 1 else guidance)
            | {name: value for name, value in restraints.items() if value}
            | dict(self.form)
            | {
                "prompt": self.prompt,
                "model": self.model_id,
                "steps": self.steps,
                "seed": self.seed,
                "samples": self.audio.shape[1],
                "tempo_bpm": self.tempo_bpm,
                "key": self.key,
                "schedule": schedule,
            }
        )

    def to_wav(self) -> bytes:
        """Return a 16-bit WAV that holds its settings: the prompt as title, all of them as JSON in the comment."""
        return self._encode(exact=())

    def _encode(self, *, exact: Sequence[slice]) -> bytes:
        audio, rate_hz = self.audio, self.sample_rate_hz
        return encode_wav(audio, rate_hz, title=self.prompt, details=self.describe(), exact=exact)

    def describe(self) -> dict[str, object]:
        """Return what the comment of its WAV holds."""
        return {**self.settings, "gain_db": round(self.gain_db, 3), "presto": _find_version()}


@dataclass(frozen=True)
class EditedClip(GeneratedClip):
    """A clip of which the model made only parts anew, or which it made from given audio.

    Attributes:
        audio: [channels, samples], float32; the parts in `kept` have the bits of the given audio, or of what it became
            by resampling and mixing (`converted`).
        kept: seconds (from, to) of the result that are the given audio's.
        seams: where kept and made audio meet, measured; `presto_core.audio.seam` has what music has elsewhere.
        strength: noise that the given audio was made anew from: 0 none, 1 all.
        gain_db: what the made parts were turned down by, so that no peak of theirs is above -1 dBFS and the kept ones'.
        converted: how the given audio was resampled or mixed for the model; empty if it was not touched.
    """

    kept: tuple[tuple[float, float], ...] = ()
    seams: tuple[Seam, ...] = ()
    strength: float = 1.0
    converted: str = ""

    @property
    def seam_db(self) -> float | None:
        """The largest change of the sound at a seam in dB; None without seams."""
        return max((seam.change_db for seam in self.seams), default=None)

    def to_wav(self) -> bytes:
        """Return a WAV that holds its settings, of as many bits as the kept samples need: 16, 24, or 32 as floats."""
        return self._encode(exact=self.list_kept_slices())

    def list_kept_slices(self) -> list[slice]:
        """The kept parts as slices of samples."""
        return [slice(round(a * self.sample_rate_hz), round(b * self.sample_rate_hz)) for a, b in self.kept]


def _find_version() -> str:
    try:
        return version("presto-distill")
    except PackageNotFoundError:  # the code that a job brings is not installed
        return "not installed"
