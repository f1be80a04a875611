"""Builds a listening test: one blind HTML page with all of its audio, and the key that resolves its answers."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipelines.evaluate.listening.answers import read_key
from pipelines.evaluate.listening.clip_audio import (
    AUDIBLE_SHARE,
    encode_flac,
    make_low_anchor,
    measure_treble_share,
    read_clip,
)
from pipelines.evaluate.listening.design import (
    QUESTIONS,
    Clip,
    Design,
    Kind,
    add_mushra_trials,
    add_pair_trials,
    start_design,
)
from pipelines.evaluate.listening.material import (
    Material,
    read_material,
    select_prompts,
    select_reference,
    select_systems,
)
from presto_core.artifacts.durable import make_folders
from presto_core.errors import UserError

TEMPLATES = "templates"
SCRIPTS = ("order.js", "player.js", "listening.js", "trial.js", "answers.js", "keys.js")
LONG_MINUTES = 30.0  # ITU-R BS.1534-3, 7: sessions of at most 20 to 30 minutes
DEFAULT_PROMPTS = 8
MOST_MUSHRA_CLIPS = 12  # ITU-R BS.1534-3, 5.3: signals per trial, references and anchors included
CHECKING_CATCHES = 5  # all five right has probability 1/32 by chance; of four, 1/16


@dataclass(frozen=True)
class TestOptions:
    """What a user chooses of a test; empty names, or no number of prompts, mean the report's own choice."""

    __test__ = False  # for pytest: no test

    kind: Kind = "pairs"
    systems: tuple[str, ...] = ()
    reference: str = ""
    questions: tuple[str, ...] = ("quality",)
    prompts: int | None = None
    repeats: int = 4
    catches: int = 8
    seed: int = 0
    title: str = "Listening test"


@dataclass(frozen=True)
class ListeningTest:
    """A designed test: its material, and what its maker should know of it."""

    design: Design
    material: Material
    title: str
    notes: tuple[str, ...]


def design_test(folder: Path, options: TestOptions) -> ListeningTest:
    """Design a test of the clips of a local report folder, without reading more audio than it must.

    Raises:
        UserError: see `material`; an unknown question; more clips per MUSHRA trial than a rater can compare.
    """
    if unknown := [q for q in options.questions if q not in QUESTIONS]:
        raise UserError(f"question {unknown[0]!r} is unknown; choose from {', '.join(QUESTIONS)}")
    material = read_material(folder)
    systems = select_systems(material, options.systems)
    is_mushra = options.kind == "mushra"
    reference = select_reference(material, options.reference) if is_mushra or options.reference else ""
    prompts = select_prompts(material, [*systems, *filter(None, [reference])], options.prompts or DEFAULT_PROMPTS)
    design = start_design(
        material,
        options.kind,
        systems=systems,
        prompts=prompts,
        reference=reference,
        questions=() if is_mushra else tuple(dict.fromkeys(options.questions)),
        seed=options.seed,
    )
    notes = _add_mushra(design, material) if is_mushra else _add_pairs(design, material, options)
    notes += _list_notes(design, material, options)
    return ListeningTest(design, material, options.title, tuple(notes))


def render_test(test: ListeningTest) -> str:
    """Return the page: script, style and audio inline, so that it opens from a file and loads nothing.

    Raises:
        UserError: audio cannot be read, or the rates of clips differ.
    """
    audio, rate_hz = _encode_clips(test)
    design = test.design
    parameters = {
        "id": design.id,
        "kind": design.kind,
        "title": test.title,
        "rate_hz": rate_hz,
        "seed": design.seed,
        "questions": {name: QUESTIONS[name] for name in design.questions},
        "minutes": max(1, round(design.minutes)),
        "trials": [_describe_trial(design, trial_id) for trial_id in sorted(t.id for t in design.trials)],
    }
    script, style = "".join(map(_read_template, SCRIPTS)), _read_template("listening.css")
    values = {
        "SCRIPT_HASH": _hash_source(script),
        "STYLE_HASH": _hash_source(style),
        "SCRIPT": script,
        "STYLE": style,
        "TEST": _dump_for_html(parameters),
        "CLIPS": "\n".join(
            f'<script type="text/plain" id="clip-{clip_id}">{base64.b64encode(content).decode()}</script>'
            for clip_id, content in sorted(audio.items())
        ),
    }
    before, *parts = _read_template("listening.html").split("@@")
    # alternating text and names: what is filled in is never searched for names again
    return before + "".join(values[part] if i % 2 == 0 else part for i, part in enumerate(parts))


def write_test(test: ListeningTest, page: Path) -> Path:
    """Write the page, and its key beside it; returns the key's path. Same input and seed, same bytes.

    Raises:
        UserError: see `render_test`; the key of another test is there, whose answers may be on their way.
    """
    key = page.with_suffix(".key.json")
    if key.exists() and (other := read_key(key).test) != test.design.id:
        raise UserError(f"{key} is the key of test {other}, needed to score it; name another page with --out")
    content = render_test(test)
    make_folders(page.parent)
    page.write_text(content, encoding="utf-8")
    key.write_text(json.dumps(test.design.to_key(), indent=1) + "\n", encoding="utf-8")
    return key


def _add_mushra(design: Design, material: Material) -> list[str]:
    add_mushra_trials(design)
    clips = len(design.trials[0].clips)
    if clips > MOST_MUSHRA_CLIPS:
        raise UserError(f"{clips} clips per trial are too many to rate at once; name fewer with --systems (at most 10)")
    dull = [p for p in design.captions if _is_dull(material, design.reference, p)]
    if not dull:
        return []
    return [f"{len(dull)} of {len(design.trials)} references have next to nothing above 3.5 kHz: anchors sound alike"]


def _add_pairs(design: Design, material: Material, options: TestOptions) -> list[str]:
    sources, dull = _find_catch_sources(design, material, options.catches)
    add_pair_trials(design, repeats=options.repeats, catch_sources=sources)
    notes = []
    if dull:
        notes.append(f"{dull} clips have next to nothing above 3.5 kHz and make no catch trial")
    if len(sources) < options.catches:
        notes.append(f"{len(sources)} catch trials instead of {options.catches}: no more clips serve")
    if len(sources) < CHECKING_CATCHES:
        notes.append(f"fewer than {CHECKING_CATCHES} catch trials: cannot screen raters who guess")
    return notes


def _find_catch_sources(design: Design, material: Material, count: int) -> tuple[list[tuple[str, int]], int]:
    """The first clips whose low anchor is plainly worse, real music first; and how many are too dull for that."""
    real = [design.reference] if design.reference else [s for s in ("real music", "original") if s in material.systems]
    systems = dict.fromkeys([*real[:1], *design.systems])
    sources: list[tuple[str, int]] = []
    dull = 0
    for source in ((system, p) for system in systems for p in design.captions if (system, p) in material.clips):
        if len(sources) == count:
            break
        if _is_dull(material, *source):
            dull += 1
        else:
            sources.append(source)
    return sources, dull


def _is_dull(material: Material, system: str, prompt: int) -> bool:
    samples, rate_hz = read_clip(material.clips[system, prompt])
    return measure_treble_share(samples, rate_hz=rate_hz) < AUDIBLE_SHARE


def _list_notes(design: Design, material: Material, options: TestOptions) -> list[str]:
    notes = []
    if options.prompts and len(design.captions) < options.prompts:
        notes.append(f"{len(design.captions)} prompts instead of {options.prompts}: all that every system has clips of")
    limited = sum((clip.system, clip.prompt) in material.limited for clip in design.clips.values())
    if limited:
        notes.append(f"{limited} of {len(design.clips)} clips were limited and may be quieter than the others")
    if design.minutes > LONG_MINUTES:
        notes.append(f"about {design.minutes:.0f} minutes per rater are too long; name fewer --systems or --prompts")
    return notes


def _encode_clips(test: ListeningTest) -> tuple[dict[str, bytes], int]:
    audio: dict[str, bytes] = {}
    rates: set[int] = set()
    for clip_id, clip in test.design.clips.items():
        audio[clip_id], rate_hz = _encode_clip(test.material, clip)
        rates.add(rate_hz)
    if len(rates) > 1:
        raise UserError(f"report {test.material.name} has clips of several rates: {sorted(rates)} Hz; evaluate again")
    return audio, rates.pop()


def _encode_clip(material: Material, clip: Clip) -> tuple[bytes, int]:
    samples, rate_hz = read_clip(material.clips[clip.system, clip.prompt])
    if clip.role == "anchor":
        samples = make_low_anchor(samples, rate_hz=rate_hz)
    return encode_flac(samples, rate_hz=rate_hz), rate_hz


def _describe_trial(design: Design, trial_id: str) -> dict[str, Any]:
    """What the page knows of a trial; not its purpose."""
    trial = next(t for t in design.trials if t.id == trial_id)
    described: dict[str, Any] = {"id": trial.id, "prompt": design.captions[trial.prompt], "clips": list(trial.clips)}
    if trial.repeat_of:
        described["repeat_of"] = trial.repeat_of
    if design.kind == "mushra":
        described["reference"] = next(c for c in trial.clips if design.clips[c].role == "reference")
    return described


def _dump_for_html(value: object) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, indent=1)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _read_template(name: str) -> str:
    return (files(__package__) / TEMPLATES / name).read_text(encoding="utf-8")


def _hash_source(source: str) -> str:
    """The hash of an inline script or style in a content security policy: only what we wrote runs."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
