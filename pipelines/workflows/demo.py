"""`presto demo`: the whole flow at small size in one Ray session, from music to distilled models and their sounds.

The teacher is the one in the package, unless the demo trains its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pipelines.console import console
from pipelines.presets.resolve import PRESETS
from pipelines.stages.table import STAGES
from pipelines.workflows.flow_overrides import MADE_INPUTS, OWN_SERVER, check_not_fixed, check_read
from presto_core.config.data import IngestConfig
from presto_core.config.layers import PrestoLBudget, PrestoLSBudget, TableBudget, UniformBudget
from presto_core.config.loader import load_config
from presto_core.config.schema import CorpusStage, IngestStage, LayersStage, StepsStage, foreign_sections
from presto_core.config.sections import ClusterConfig, InputsConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import check_extra
from presto_core.models.pretrained import NAMES, list_pretrained

if TYPE_CHECKING:  # --dry-run starts without numpy
    from presto_core.artifacts.manifest import Artifact

OBJECT_STORE = Path(".presto/object_store")
BUCKET = "presto"


@dataclass(frozen=True)
class FlowNode:
    """One execution of a stage.

    Attributes:
        stage: name of the stage.
        inputs: input role -> node that makes the artifact.
        compared: nodes whose models an evaluation compares too.
        settings: overrides of this execution.
    """

    stage: str
    inputs: dict[str, str] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


TEACHER_INPUTS = {"dataset": "ingest", "teacher": "teacher"}
# adaptive score estimation as published: early exit, no budget conditioning, no self-teacher loss
ASE = ("layers.mode=ase", "layers.budget_conditioning=false", "layers.self_teacher_weight=0")
DEMO_FLOW = {
    "corpus": FlowNode("corpus"),
    "ingest": FlowNode("ingest"),
    "teacher": FlowNode("train-teacher", {"dataset": "ingest"}),
    "ASE": FlowNode("distill-layers", TEACHER_INPUTS, settings=ASE),
    "L": FlowNode("distill-layers", TEACHER_INPUTS),
    "S": FlowNode("distill-steps", TEACHER_INPUTS),
    "LS": FlowNode("distill-steps", TEACHER_INPUTS | {"layers": "L"}),
    "evaluate": FlowNode("evaluate", TEACHER_INPUTS, compared=("ASE", "L", "S", "LS")),
    "generate": FlowNode("generate", {"generator": "LS"}),
}
ONLY_FROM_SCRATCH = ("teacher", "ASE")


def run(preset: str, overrides: list[str], *, local: bool, from_scratch: bool = False) -> None:
    """Run every node on the artifacts of earlier nodes; finished runs are reused.

    Args:
        local: store artifacts in a folder instead of on a local S3 server.
        from_scratch: train a teacher; otherwise `inputs.teacher` is distilled.

    Raises:
        UserError: the teacher is missing or its clips have another length, or a stage failed.
    """
    started = time.monotonic()
    configs = load_configs(preset, overrides, from_scratch=from_scratch)
    check_extra("plots", "presto demo")  # otherwise evaluate fails, after all the training
    if not from_scratch:
        from pipelines.registry.presence import check_references

        check_installed(configs["S"].inputs.teacher)
        check_references(configs["S"].tracking, {"teacher": configs["S"].inputs.teacher})
    root = start_storage(local=local)
    artifacts: dict[str, Any] = {} if from_scratch else {"teacher": open_teacher(configs, root)}
    with open_training_session(configs["teacher"].cluster):
        for name in list_nodes(from_scratch=from_scratch):
            step_started = time.monotonic()
            artifacts[name] = run_node(name, configs[name], root, artifacts)
            console.print(f"{name} took {time.monotonic() - step_started:.0f} s", style="dim")
    _print_summary(configs, root, time.monotonic() - started)


def list_nodes(*, from_scratch: bool) -> list[str]:
    """The nodes that a demo runs, in order: all of them, or without training a teacher and the baseline ASE."""
    return [name for name in DEMO_FLOW if from_scratch or name not in ONLY_FROM_SCRATCH]


def list_stages(nodes: Iterable[str]) -> list[str]:
    """The stages that these nodes run."""
    return list(dict.fromkeys(DEMO_FLOW[name].stage for name in nodes))


def check_installed(teacher: str) -> None:
    """Refuse a teacher of the package that this installation lacks, before any work; raises UserError."""
    if teacher in NAMES and teacher not in list_pretrained():
        raise UserError(
            f"{teacher} is not in this installation: remake it with make pretrained (hours), name another teacher with "
            "inputs.teacher=..., or train a small one within the demo: presto demo --from-scratch"
        )


def open_teacher(configs: dict[str, StageConfig], root: str) -> Artifact:
    """Return the teacher that `inputs.teacher` names, after a check that rows of this flow have its length.

    Raises:
        UserError: it is unknown, or made for clips of other length.
    """
    from pipelines.registry.resolve import resolve
    from pipelines.tracking.client import open_tracker

    ingest, reference = configs["ingest"], configs["S"].inputs.teacher
    assert isinstance(ingest, IngestStage)
    teacher = resolve(open_tracker(ingest.tracking).client, reference, root)
    frames = teacher.manifest.get("model", {}).get("frames")
    if frames != ingest.ingest.chunk_frames:
        raise UserError(
            f"teacher {reference} makes clips of {frames} latent frames, and ingest.chunk_frames="
            f"{ingest.ingest.chunk_frames}; set ingest.chunk_frames={frames}, or train a teacher of that length: "
            "presto demo --from-scratch"
        )
    console.print(f"teacher: {reference} = {teacher.id}, {teacher.uri}", markup=False)
    return teacher


@contextmanager
def open_training_session(cluster: ClusterConfig) -> Iterator[None]:
    """One Ray session for all nodes; none if training runs in this process, so that Ray is not idle beside it."""
    from pipelines.cluster.session import count_workers, ray_session, training_cpus

    with ray_session(cluster, cpus=training_cpus(cluster)) if count_workers(cluster) else nullcontext():
        yield


def load_configs(preset: str, overrides: list[str], *, from_scratch: bool) -> dict[str, StageConfig]:
    """Return the settings of a demo's nodes, and of the teacher that it does not train.

    Raises:
        ConfigError: as `load_flow_configs`; or an override has no effect on this demo.
    """
    hints = dict.fromkeys(("teacher", "network"), "; --from-scratch trains a teacher")
    check_read("presto demo", overrides, list_stages(list_nodes(from_scratch=from_scratch)), hints)
    made = MADE_INPUTS | ({"teacher"} if from_scratch else set())
    check_not_fixed("presto demo", overrides, made, storage=OWN_SERVER)
    return load_flow_configs(preset, overrides)


def load_flow_configs(preset: str | None, overrides: list[str]) -> dict[str, StageConfig]:
    """Return every node's settings; an override goes to the stages that have its section.

    Raises:
        ConfigError: no node has the section of an override, or no stage the key.
    """
    check_read("a flow of several stages", overrides, list_stages(DEMO_FLOW))
    configs = {}
    for name, node in DEMO_FLOW.items():
        stage = STAGES[node.stage].config
        foreign = foreign_sections(stage)
        own_overrides = [o for o in overrides if o.partition("=")[0].partition(".")[0] not in foreign]
        configs[name] = load_config(stage, preset, [*own_overrides, *node.settings], preset_folder=PRESETS)
    configs["ingest"] = _set_default_source(configs["ingest"], configs["corpus"])
    configs["LS"] = _set_default_budget(configs["LS"], configs["L"])
    return configs


def _set_default_source(ingest: StageConfig, corpus: StageConfig) -> StageConfig:
    """Make ingest read the corpus that this flow builds, unless ingest.source is set."""
    assert isinstance(ingest, IngestStage)
    assert isinstance(corpus, CorpusStage)
    if ingest.ingest.source != IngestConfig().source:
        return ingest
    source = ingest.ingest.model_copy(update={"source": (corpus.corpus.folder,)})
    return ingest.model_copy(update={"ingest": source})


def _set_default_budget(generator: StageConfig, layers: StageConfig) -> StageConfig:
    """Give LS the budget of L, as `distill-steps` does by itself, unless that is the paper's or steps.budget is set."""
    assert isinstance(generator, StepsStage)
    assert isinstance(layers, LayersStage)
    budget = layers.layers.budget
    if generator.steps.budget is not None or isinstance(budget, PrestoLBudget | PrestoLSBudget):
        return generator
    if isinstance(budget, UniformBudget):
        budget = TableBudget(kept=(budget.kept,))
    steps = generator.steps.model_copy(update={"budget": budget})
    return generator.model_copy(update={"steps": steps})


def describe_node(name: str, among: Iterable[str] = DEMO_FLOW) -> str:
    """Return a node's name and the nodes whose artifacts it reads, compared ones only if they are `among` these."""
    node = DEMO_FLOW[name]
    inputs = [f"{role} {maker}" for role, maker in node.inputs.items()]
    inputs += [f"compared {other}" for other in node.compared if other in among]
    return f"## {name}" + (f", made from {', '.join(inputs)}" if inputs else "")


def run_node(name: str, config: StageConfig, root: str, artifacts: dict[str, Any]) -> Any:
    """Run the stage of one node on the artifacts made so far, and return its artifact."""
    node = DEMO_FLOW[name]
    return STAGES[node.stage].run(resolve_inputs(node, config, root, artifacts))


def resolve_inputs(node: FlowNode, config: StageConfig, root: str, artifacts: dict[str, Any]) -> StageConfig:
    """Return the node's settings with this flow's storage and parents; models that were not made are not compared."""
    inputs = {"generator": ""} | {role: _refer(artifacts[name], root) for role, name in node.inputs.items()}
    compared = tuple(_refer(artifacts[name], root) for name in node.compared if name in artifacts)
    storage = config.storage.model_copy(update={"root": root})
    return config.model_copy(update={"storage": storage, "inputs": InputsConfig(**inputs, compared=compared)})


def _refer(artifact: Artifact, root: str) -> str:
    """A reference that the stages resolve: its id if it is below this storage root, otherwise its URI."""
    return artifact.id if artifact.uri.startswith(f"{root}/") else artifact.uri


def start_storage(*, local: bool) -> str:
    """Return a folder, or a prefix on the local S3 server after starting it and exporting its credentials."""
    if local:
        return str(Path(".presto/store").absolute())
    from pipelines.storage import filesystem as storage
    from pipelines.storage import local_s3

    server, started = local_s3.start(OBJECT_STORE)
    os.environ.update(server.environment())
    storage.create_bucket(BUCKET)
    console.print(f"S3 server {'started' if started else 'is running'}: {server.endpoint}")
    return f"s3://{BUCKET}/demo"


def _print_summary(configs: dict[str, StageConfig], root: str, seconds: float) -> None:
    from pipelines.tracking.client import tracking_uri

    s3 = root.startswith("s3://")
    stop = ' (use it: eval "$(presto s3 start)"; stop it: presto s3 stop)' if s3 else ""
    output_folder = configs["generate"].model_dump()["generate"]["output"]
    lines = {
        "done in": f"{seconds / 60:.1f} min; run the command again to see what is reused",
        "listen": f"{output_folder}/*.wav, and side by side in .presto/reports/*/index.html",
        "plots": ".presto/reports/*/*.png (noise, losses, quality against blocks run, activations by depth)",
        "storage": f"{root}{stop}",
        "runs": f"mlflow ui --backend-store-uri {tracking_uri(configs['ingest'].tracking)}",
        "more music": f'presto generate "harpsichord, fast, 140 bpm, D minor" storage.root={root}',
    }
    for name, text in lines.items():
        console.print(Text.assemble((f"{name:>10}", "bold"), f"  {text}"))
