"""`presto pretrain`: the models in the package, remade from nothing: corpus, teacher, its gate, L, S, LS, evaluation.

Training runs in this process on latents alone. Re-running the command resumes at the last checkpoint. What is evaluated
is what is shipped: the exported weights, with the noise levels that validation chose for them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import console
from pipelines.workflows.demo import (
    TEACHER_INPUTS,
    FlowNode,
    list_stages,
    load_flow_configs,
    open_training_session,
    resolve_inputs,
    run_node,
)
from pipelines.workflows.flow_overrides import MADE_INPUTS, check_not_fixed, check_read
from presto_core.artifacts.durable import make_folders
from presto_core.config.schema import EvaluateStage
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import check_extra
from presto_core.models.pretrained import get_pretrained_folder

if TYPE_CHECKING:  # --dry-run starts without numpy
    from presto_core.artifacts.manifest import Artifact

BEFORE_GATE, DISTILLED = ("corpus", "ingest", "teacher"), ("L", "S", "LS")
NODES = (*BEFORE_GATE, *DISTILLED, "evaluate")
ONE_THREAD = ("ingest", "evaluate")  # nodes that run several workers


def run(preset: str, overrides: list[str], *, folder: Path | None, anyway: bool) -> list[Artifact]:
    """Train, evaluate and export the models; what is finished is reused.

    Args:
        folder: receives one folder per model; None means the package's own.
        anyway: distill a teacher that fails its gate.

    Returns:
        The exported artifacts.

    Raises:
        UserError: the folder cannot be written, the teacher fails its gate, or a stage failed.
    """
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.workflows.pretrained_export import Export, choose_all_schedules, print_sizes

    configs = load_configs(preset, overrides)
    target = (folder or get_pretrained_folder()).absolute()
    check_writable(target)
    for extra in ("corpus", "plots"):
        check_extra(extra, "presto pretrain")
    root = absolute_uri(configs["ingest"].storage.root)
    artifacts: dict[str, Any] = {}
    with open_training_session(configs["teacher"].cluster):
        _run_nodes(BEFORE_GATE, configs, root, artifacts)
        gate = check_gate(configs, root, artifacts, anyway=anyway)
        _run_nodes(DISTILLED, configs, root, artifacts)
        export = Export(configs, artifacts, target, gate, choose_all_schedules(configs, artifacts, target))
        models = artifacts | export.write()
        _run_nodes(("evaluate",), configs, root, models)
        exported = export.write(report=models["evaluate"])
    print_sizes(exported.values(), target)
    return list(exported.values())


def load_configs(preset: str, overrides: list[str]) -> dict[str, StageConfig]:
    """Return the settings of each node; those that run several workers get one thread per worker."""
    check_read("presto pretrain", overrides, list_stages(NODES))
    check_not_fixed("presto pretrain", overrides, MADE_INPUTS | {"teacher"})
    configs = load_flow_configs(preset, overrides)
    return {name: _set_threads(configs[name], 1) if name in ONE_THREAD else configs[name] for name in NODES}


def _set_threads(config: StageConfig, threads: int) -> StageConfig:
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"torch_threads": threads})})


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot receive the models, before hours of work; raises UserError."""
    try:
        make_folders(folder)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; give another folder with --output") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written; give another folder with --output")


def _run_nodes(names: tuple[str, ...], configs: dict[str, StageConfig], root: str, artifacts: dict[str, Any]) -> None:
    for name in names:
        started = time.monotonic()
        artifacts[name] = run_node(name, configs[name], root, artifacts)
        console.print(f"{name} took {(time.monotonic() - started) / 60:.1f} min", style="dim")


def check_gate(
    configs: dict[str, StageConfig], root: str, artifacts: dict[str, Any], *, anyway: bool
) -> dict[str, Any]:
    """Return the gate of the teacher, for its manifest; raises UserError if it fails, unless `anyway`."""
    from pipelines.workflows.teacher_study import check_teacher

    config = resolve_inputs(FlowNode("evaluate", TEACHER_INPUTS), configs["evaluate"], root, artifacts)
    assert isinstance(config, EvaluateStage)
    gate = check_teacher(config)
    if gate.has_failed and not anyway:
        raise UserError(
            f"teacher {gate.teacher} does not pass its gate ({gate.verdict}), so that nothing is distilled from it; "
            "train a better one (teacher.steps, network.dim, corpus.minutes), or continue with --anyway"
        )
    return gate.to_dict()
