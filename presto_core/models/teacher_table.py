"""The table of teachers that can be imported, by the class of their transformer.

A row is a family whose conditions, codec and text encoder this package computes.
"""

from __future__ import annotations

from presto_core.models.ace_step_kind import AceStepKind
from presto_core.models.longcat_audio_kind import LongCatAudioKind
from presto_core.models.stable_audio_kinds import StableAudio3Kind, StableAudioKind
from presto_core.models.teacher_kind import TeacherKind

TEACHERS: dict[str, TeacherKind] = {
    "StableAudioDiTModel": StableAudioKind(),
    "StableAudio3DiTModel": StableAudio3Kind(),
    "AceStepTransformer1DModel": AceStepKind(),
    "LongCatAudioDiTTransformer": LongCatAudioKind(),
}
