"""What quality is computed from: embeddings of generated, real and the teacher's music. Read without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from presto_core.metrics.distances import Embeddings, Labels, Mask


@dataclass(frozen=True)
class EmbeddingSets:
    """Attributes:
    generated, reference: [N, D] and [M, D] embeddings of a system's clips and of real music.
    teacher: [N, D] of the teacher's own clips from the same noise, row by row; None if they are not compared with.
    nearest_k: neighbors of precision, recall, density and coverage; None leaves these out.
    generated_groups, reference_groups: [N] and [M] number of the track that each row's prompt or music is from; equal
        numbers in both are the same track. None takes each row as a track.
    teacher_groups: [N] of the teacher's rows; they must be those of `generated`, which says that the rows pair.
    """

    generated: Embeddings
    reference: Embeddings
    teacher: Embeddings | None = None
    nearest_k: int | None = None
    generated_groups: Labels | None = None
    reference_groups: Labels | None = None
    teacher_groups: Labels | None = None

    @cached_property
    def prdc(self) -> dict[str, float]:
        """Precision, recall, density and coverage, computed together."""
        from presto_core.metrics.prdc import prdc

        assert self.nearest_k is not None
        return prdc(
            generated=self.generated,
            reference=self.reference,
            k=self.nearest_k,
            generated_groups=self.generated_groups,
            reference_groups=self.reference_groups,
        )

    def select(self, *, generated: Mask | None = None, reference: Mask | None = None) -> EmbeddingSets:
        """Only some rows of a set (booleans [N] or [M]); the teacher's rows follow the generated ones."""
        sets = self
        if generated is not None:
            sets = replace(
                sets,
                generated=self.generated[generated],
                generated_groups=None if self.generated_groups is None else self.generated_groups[generated],
                teacher=None if self.teacher is None else self.teacher[generated],
                teacher_groups=None if self.teacher_groups is None else self.teacher_groups[generated],
            )
        if reference is not None:
            groups = None if self.reference_groups is None else self.reference_groups[reference]
            sets = replace(sets, reference=self.reference[reference], reference_groups=groups)
        return sets

    @property
    def fewest_rows(self) -> int:
        return min(len(self.generated), len(self.reference))

    @property
    def fewest_tracks(self) -> int:
        sides = ((self.generated, self.generated_groups), (self.reference, self.reference_groups))
        return min(len(rows) if groups is None else len(set(groups.tolist())) for rows, groups in sides)


def compute_fd(sets: EmbeddingSets) -> float:
    """Fréchet distance to real music."""
    from presto_core.metrics.frechet import frechet_distance

    return frechet_distance(generated=sets.generated, reference=sets.reference)


def compute_fd_inf(sets: EmbeddingSets) -> float:
    """Fréchet distance to real music for infinitely many samples."""
    from presto_core.metrics.frechet import frechet_distance_infinity

    return frechet_distance_infinity(
        generated=sets.generated,
        reference=sets.reference,
        generated_groups=sets.generated_groups,
        reference_groups=sets.reference_groups,
    )


def compute_mmd(sets: EmbeddingSets) -> float:
    """Squared maximum mean discrepancy to real music."""
    from presto_core.metrics.distances import mmd

    return mmd(
        generated=sets.generated,
        reference=sets.reference,
        generated_groups=sets.generated_groups,
        reference_groups=sets.reference_groups,
    )


def compute_sample_distance(sets: EmbeddingSets) -> float:
    """Distance to the teacher's clips from the same noise.

    Raises:
        ValueError: rows do not pair.
    """
    import numpy as np

    from presto_core.metrics.sample_distance import sample_distance

    assert sets.teacher is not None
    groups, teacher_groups = sets.generated_groups, sets.teacher_groups
    if groups is not None and teacher_groups is not None and not np.array_equal(groups, teacher_groups):
        raise ValueError("the teacher's clips are of other prompts than the generated ones: their tracks differ")
    return sample_distance(generated=sets.generated, teacher=sets.teacher, groups=groups)
