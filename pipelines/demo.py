"""The whole flow at small size, in one command and one Ray session: music in, a few-step generator and sounds out."""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.progress import console
from presto_core.config.loader import load_config
from presto_core.config.schema import STAGES, CorpusStage, IngestStage, StageConfig
from presto_core.config.section import Section
from presto_core.config.sections import IngestConfig, InputsConfig

PRESETS = Path(__file__).parent / "presets"
OBJECT_STORE = Path(".presto/object_store")
BUCKET = "presto"
MODULES = {
    "corpus": "build_corpus",
    "ingest": "ingest",
    "train-teacher": "train_teacher",
    "distill-steps": "distill_steps",
    "evaluate": "evaluate",
    "generate": "generate",
}
# which stage makes each input
MADE_BY = {
    "dataset": "ingest",
    "teacher": "train-teacher",
    "generator": "distill-steps",
}


def run(preset: str, overrides: list[str], *, local: bool) -> None:
    """Run every stage on what the one before it made; what is done already is used again.

    Raises:
        UserError: from the stage that could not go on.
    """
    started = time.monotonic()
    configs = stage_configs(preset, overrides)
    root = storage_root(local=local)
    from pipelines.cluster import ray_session, training_cpus

    made: dict[str, Any] = {}
    cluster = configs["train-teacher"].cluster
    with ray_session(cluster, cpus=training_cpus(cluster)):
        for stage, config in configs.items():
            begun = time.monotonic()
            made[stage] = run_stage_module(stage, placed(config, root, made))
            console.print(f"[dim]{stage} took {time.monotonic() - begun:.0f} s")
    _say_where_things_are(configs, root, time.monotonic() - started)


def stage_configs(preset: str, overrides: list[str]) -> dict[str, StageConfig]:
    """Every stage's settings; an override goes to the stages that have its section.

    Raises:
        ConfigError: an override that fits no stage.
    """
    configs = {}
    for name in MODULES:
        stage = STAGES[name]
        foreign = {f for other in STAGES.values() for f in other.model_fields} - set(stage.model_fields)
        mine = [o for o in overrides if o.partition("=")[0].partition(".")[0] not in foreign]
        configs[name] = load_config(stage, preset, mine, preset_folder=PRESETS)
    configs["ingest"] = _reading(configs["ingest"], configs["corpus"])
    return configs


def _reading(ingest: StageConfig, corpus: StageConfig) -> StageConfig:
    """Ingest of the corpus that this flow builds, unless it is told another source."""
    assert isinstance(ingest, IngestStage)
    assert isinstance(corpus, CorpusStage)
    if ingest.ingest.source != IngestConfig().source:
        return ingest
    source = ingest.ingest.model_copy(update={"source": corpus.corpus.folder})
    return ingest.model_copy(update={"ingest": source})


def run_stage_module(stage: str, config: StageConfig) -> Any:
    """Run one stage by its verb; returns the artifact it made."""
    return import_module(f"pipelines.{MODULES[stage]}").run(config)


def placed(config: StageConfig, root: str, made: dict[str, Any]) -> StageConfig:
    """The stage's settings with storage and parents as this flow has them."""
    update: dict[str, Section] = {"storage": config.storage.model_copy(update={"root": root})}
    if config.PARENTS:
        update["inputs"] = InputsConfig(**{role: made[MADE_BY[role]].id for role in config.PARENTS})
    return config.model_copy(update=update)


def storage_root(*, local: bool) -> str:
    """A folder, or a prefix on the embedded S3 server: started if need be, its credentials put into the environment."""
    if local:
        return str(Path(".presto/store").absolute())
    from pipelines import embedded_s3, storage

    server, started = embedded_s3.start(OBJECT_STORE)
    os.environ.update(server.environment())
    storage.create_bucket(BUCKET)
    console.print(f"object store {'started' if started else 'found'}: {server.endpoint}")
    return f"s3://{BUCKET}/demo"


def _say_where_things_are(configs: dict[str, StageConfig], root: str, seconds: float) -> None:
    from pipelines.tracking import tracking_uri

    s3 = root.startswith("s3://")
    stop = ' (stop it: presto down; use it: eval "$(presto up)")' if s3 else ""
    generated = configs["generate"].model_dump()["generate"]["output"]
    lines = {
        "done in": f"{seconds / 60:.1f} min; run it again to see what is reused",
        "listen": f"{generated}/*.wav, and side by side in .presto/reports/*/index.html",
        "plots": ".presto/reports/*/*.png (noise distributions, losses, quality against steps)",
        "storage": f"{root}{stop}",
        "runs": f"mlflow ui --backend-store-uri {tracking_uri(configs['ingest'].tracking)}",
        "more music": f'presto generate "harpsichord, fast, 140 bpm, D minor" storage.root={root}',
    }
    for name, text in lines.items():
        console.print(f"[bold]{name:>10}[/bold]  {text}")
