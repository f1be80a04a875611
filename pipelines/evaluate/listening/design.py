"""The design of a listening test: which clips meet in which trial, under ids that tell a rater nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from pipelines.evaluate.listening.material import Material

Kind = Literal["pairs", "mushra"]
Role = Literal["system", "reference", "anchor"]
Purpose = Literal["compare", "repeat", "catch"]
QUESTIONS = {"quality": "Which clip sounds better?", "prompt": "Which clip follows the description better?"}
KEY_FORMAT = 1
SECONDS_PER_CLIP = 9.0  # a clip of 6 s, heard once or twice, and the answer


@dataclass(frozen=True)
class Clip:
    """A clip of a test: what it plays. An anchor is the low-pass copy of `system`'s clip."""

    role: Role
    system: str
    prompt: int


@dataclass(frozen=True)
class Trial:
    """Clips that a rater compares. Ids are opaque; `expected` is the clip that a catch trial's rater must prefer."""

    id: str
    purpose: Purpose
    prompt: int
    clips: tuple[str, ...]
    repeat_of: str = ""
    expected: str = ""


@dataclass
class Design:
    """A whole test; `id` identifies it in the page, the key file and every file of answers."""

    kind: Kind
    seed: int
    report: str
    systems: tuple[str, ...]
    reference: str
    questions: tuple[str, ...]
    captions: dict[int, str]
    secret: bytes = field(repr=False)
    clips: dict[str, Clip] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    @property
    def id(self) -> str:
        content = f"{sorted(self.clips.items())}{self.trials}{self.questions}{sorted(self.captions.items())}"
        return make_opaque_id(self.secret, content)

    @property
    def minutes(self) -> float:
        """Roughly how long a rater takes."""
        return sum(len(trial.clips) for trial in self.trials) * SECONDS_PER_CLIP / 60

    def add_clip(self, clip: Clip) -> str:
        """Add a clip if it is new; returns its opaque id."""
        clip_id = make_opaque_id(self.secret, f"{clip.role}\0{clip.system}\0{clip.prompt}")
        self.clips[clip_id] = clip
        return clip_id

    def add_trial(self, purpose: Purpose, prompt: int, clips: Sequence[str], **details: str) -> str:
        """Add a trial; returns its opaque id. Clips are sorted by id, which hides the order of systems."""
        trial_id = make_opaque_id(self.secret, f"trial\0{len(self.trials)}")
        self.trials.append(Trial(trial_id, purpose, prompt, tuple(sorted(clips)), **details))
        return trial_id

    def to_key(self) -> dict[str, Any]:
        """What the key file holds: all that the page hides."""
        return {
            "format": KEY_FORMAT,
            "test": self.id,
            "kind": self.kind,
            "seed": self.seed,
            "report": self.report,
            "questions": list(self.questions),
            "systems": list(self.systems),
            "reference": self.reference,
            "clips": {clip_id: vars(clip) for clip_id, clip in sorted(self.clips.items())},
            "trials": {trial.id: {k: v for k, v in vars(trial).items() if k != "id"} for trial in self.trials},
        }


def make_opaque_id(secret: bytes, content: str) -> str:
    """Return 12 hex digits that only a holder of the secret can derive from the content."""
    return hashlib.blake2b(content.encode(), key=secret[:64], digest_size=6).hexdigest()


def start_design(
    material: Material,
    kind: Kind,
    *,
    systems: Sequence[str],
    prompts: Sequence[int],
    reference: str,
    questions: Sequence[str],
    seed: int,
) -> Design:
    """Return a design without trials. Its secret comes from the report, the kind and the seed: same input, same ids."""
    secret = hashlib.blake2b(material.digest + f"{kind}{seed}".encode()).digest()
    captions = {prompt: material.captions[prompt] for prompt in prompts}
    return Design(
        kind, seed, material.name, tuple(systems), reference, tuple(questions), captions=captions, secret=secret
    )


def add_mushra_trials(design: Design) -> None:
    """One trial per prompt: all systems, the hidden reference and its low anchor (ITU-R BS.1534-3, 5.1)."""
    for prompt in design.captions:
        clips = [Clip("system", system, prompt) for system in design.systems if system != design.reference]
        clips += [Clip("reference", design.reference, prompt), Clip("anchor", design.reference, prompt)]
        design.add_trial("compare", prompt, [design.add_clip(clip) for clip in clips])


def add_pair_trials(design: Design, *, repeats: int, catch_sources: Sequence[tuple[str, int]]) -> None:
    """Each pair of systems on each prompt; some once more with sides swapped; and pairs with a known answer.

    Args:
        catch_sources: (system, prompt) of clips to compare with their own low anchor.
    """
    for prompt in design.captions:
        for pair in combinations(design.systems, 2):
            design.add_trial("compare", prompt, [design.add_clip(Clip("system", s, prompt)) for s in pair])
    for trial in _pick(design, repeats):
        design.add_trial("repeat", trial.prompt, trial.clips, repeat_of=trial.id)
    for system, prompt in catch_sources:
        full = design.add_clip(Clip("system" if system in design.systems else "reference", system, prompt))
        anchor = design.add_clip(Clip("anchor", system, prompt))
        design.add_trial("catch", prompt, [full, anchor], expected=full)
    design.trials.sort(key=lambda trial: trial.id)


def _pick(design: Design, count: int) -> list[Trial]:
    """Some trials, drawn by the secret: ids are as good as random."""
    return sorted(design.trials, key=lambda trial: trial.id)[:count]
