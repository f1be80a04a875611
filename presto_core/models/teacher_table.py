"""The table of teachers that can be imported, by the class of their transformer.

A row is a family whose conditions, codec and text encoder this package computes.
"""

from __future__ import annotations

from presto_core.models.longcat_audio_kind import LongCatAudioKind
from presto_core.models.teacher_kinds import StableAudio3Kind, StableAudioKind, TeacherKind

TEACHERS: dict[str, TeacherKind] = {
    "StableAudioDiTModel": StableAudioKind(),
    "StableAudio3DiTModel": StableAudio3Kind(),
    "LongCatAudioDiTTransformer": LongCatAudioKind(),
}
