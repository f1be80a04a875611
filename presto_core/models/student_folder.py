"""Write a distilled network as a diffusers folder that the stock pipeline of its teacher's class loads and samples.

One budget per folder: its blocks alone are written, and its embedding is part of the noise embedding's bias. Codec,
text encoder and tokenizer are copies of the teacher's.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from presto_core.artifacts.durable import delete_leftovers, make_folders, name_partial
from presto_core.errors import UserError
from presto_core.models.conditioner_import import compare_conditioner
from presto_core.models.lcm_grid import STEPS
from presto_core.models.model_card import ModelCard
from presto_core.models.teacher_components import INDEX, PICKLES
from presto_core.models.teacher_folder import read_teacher_folder
from presto_core.models.teacher_import import TOLERANCE, compare_with_scheduler
from presto_core.models.teacher_kind import Grid, TeacherKind
from presto_core.models.teacher_table import TEACHERS
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.families import build_transformer
from presto_core.networks.network import Network


class ExportError(UserError):
    """A model cannot be exported in a format; the message says why, and which format can."""


@dataclass(frozen=True)
class StudentFolder:
    """What was written.

    Attributes:
        sigmas: the noise levels that the stock sampler visits, by number of steps.
        load: the expression that loads the pipeline.
        call: what the pipeline's call must be told besides prompt and steps.
        error: largest difference of x0 between the written transformer with its scheduler and this package's denoiser,
            relative to the largest value.
    """

    path: Path
    budget: int
    sigmas: dict[int, list[float]]
    load: str
    call: str
    error: float


def choose_budget(card: ModelCard, budget: int | None) -> int:
    """Return the number of blocks that a folder of one budget has.

    Raises:
        ExportError: the model runs another number of blocks from level to level, and none is given.
    """
    trained = sorted(set(card.budget.kept)) if card.budget else [card.depth]
    if budget is None and len(trained) > 1:
        raise ExportError(
            f"the model runs {', '.join(map(str, trained))} blocks, by noise level, and this format holds one number; "
            f"choose it, as in --budget {trained[-1]}, or use --format presto"
        )
    return trained[0] if budget is None else budget


def check_can_write(card: ModelCard) -> TeacherKind:
    """Return the family of a model; raises ExportError if no stock pipeline knows it."""
    name = card.network.get("transformer_class")
    if name not in TEACHERS:
        what = name or "Presto's own transformer"
        raise ExportError(f"no pipeline of diffusers samples {what}; export with --format presto or torch-export")
    return TEACHERS[name]


def write_student_folder(
    network: Network, card: ModelCard, *, teacher: Path, target: Path, budget: int, licence: str, model_id: str
) -> StudentFolder:
    """Write the folder, read its transformer back, and compare.

    Args:
        teacher: folder of the teacher, with the components that are copied.
        target: new folder; nothing is left of it if the export fails.
        budget: number of blocks.

    Raises:
        ExportError: no pipeline can sample the model, a component is missing, or the comparison fails.
        UserError: the budget is not between 1 and the depth.
    """
    kind = check_can_write(card)
    assert isinstance(network, DiffusersNetwork)
    assert network.conditioner is not None
    assert card.sigma_range is not None
    if missing := [name for name in kind.copied if not (teacher / name).is_dir()]:
        raise ExportError(
            f"{teacher} lacks {', '.join(missing)}; name the teacher's folder with storage.codec_folder=…"
        )
    plain, precondition = network.keep_blocks(budget), card.precondition or {}
    grid = kind.make_grid(precondition=precondition, sigma_max=card.sigma_range[1])
    call = kind.list_call_arguments(plain.config.clip_seconds)
    partial = name_partial(target)
    make_folders(partial)
    delete_leftovers(target.parent, names=[target.name])
    try:
        pickles = shutil.ignore_patterns(*(f"*{end}" for end in PICKLES))
        for name in kind.copied:
            shutil.copytree(teacher / name, partial / name, ignore=pickles)
        transformer = _copy_transformer(plain, kind)
        kind.convert_to_grid(transformer, precondition=precondition, grid=grid)
        transformer.save_pretrained(str(partial / "transformer"))
        assert plain.conditioner is not None
        if (projection := plain.conditioner.projection) is not None:
            projection.save_pretrained(str(partial / str(kind.projection)))  # type: ignore[operator]
        _write_json(partial / "scheduler" / "scheduler_config.json", grid.to_settings())
        _write_json(partial / INDEX, _make_index(teacher, grid, kind))
        for file in teacher.glob("LICEN[CS]E*"):
            shutil.copy(file, partial)
        (partial / "README.md").write_text(_make_readme(kind, licence, model_id, target.name, call))
        written = read_teacher_folder(partial, licence=licence or "unknown", seconds=_read_seconds(plain, kind))
        is_copied = kind.projection in kind.copied
        if is_copied and not compare_conditioner(written, plain) <= TOLERANCE:
            raise ExportError(
                f"{kind.projection} of {teacher} is not the one that the model was imported with; name that folder "
                "with storage.codec_folder=… storage.text_folder=…"
            )
        error = max(compare_with_scheduler(written, plain, card.precondition).values())
        if not error <= TOLERANCE:
            raise ExportError(
                f"comparison failed: x0 of the written transformer and of this package differ by {error:.1e} of the "
                "largest value; report this with the versions of diffusers and torch"
            )
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sigmas = {steps: grid.list_sigmas(steps) for steps in STEPS}
    return StudentFolder(target, budget, sigmas, _describe_loading(kind, str(target)), call, error)


def _read_seconds(plain: DiffusersNetwork, kind: TeacherKind) -> float | None:
    """Return the length of clips that a folder is told, if its family makes any."""
    return plain.config.clip_seconds if kind.default_seconds else None


def _copy_transformer(plain: DiffusersNetwork, kind: TeacherKind) -> Any:
    """Return a transformer of the class itself, with the weights of a network and the settings of a few-step model."""
    settings = {**plain.config.transformer, **kind.student_settings}
    transformer = build_transformer(plain.config.transformer_class, settings)
    transformer.load_state_dict(plain.transformer.state_dict())
    return transformer


def _make_index(teacher: Path, grid: Grid, kind: TeacherKind) -> dict[str, Any]:
    """Return the teacher's model_index.json with the scheduler of a student, without components that are not read."""
    index = json.loads((teacher / INDEX).read_text())
    index["scheduler"] = ["diffusers", grid.to_settings()["_class_name"]]
    return index | {name: [None, None] for name in kind.unused if name in index}


def _describe_loading(kind: TeacherKind, path: str) -> str:
    """Return the expression that loads a folder's pipeline, with the scheduler that it would not load itself."""
    folder = json.dumps(path, ensure_ascii=False)
    if not kind.given_scheduler:
        return f"DiffusionPipeline.from_pretrained({folder})"
    scheduler = f'{kind.given_scheduler}.from_pretrained({folder}, subfolder="scheduler")'
    return f"DiffusionPipeline.from_pretrained({folder}, scheduler={scheduler})"


def _make_readme(kind: TeacherKind, licence: str, model_id: str, name: str, call: str) -> str:
    front = f"---\nlicense: {json.dumps(licence)}\n---\n" if licence else ""
    return front + (
        f"# {name}\n\nA few-step model, distilled with Presto (artifact {model_id}). Sample it without guidance:\n\n"
        f"```python\nfrom diffusers import {', '.join(filter(None, ['DiffusionPipeline', kind.given_scheduler]))}\n\n"
        f"pipe = {_describe_loading(kind, name)}\n"
        f'audio = pipe("PROMPT", num_inference_steps=4, {call}).audios[0]\n```\n'
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
