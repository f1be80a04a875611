"""A registry with five tiny artifacts made by the stages (data, base, L, S, LS) and made-up evaluations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.catalog import Catalog
from pipelines.registry.evaluation_tags import EMBEDDINGS, record_measurements
from pipelines.registry.publish import publish
from pipelines.stages import distill_layers, distill_steps, train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import Tracker, open_tracker
from presto_core.artifacts.manifest import Artifact, artifact_folder, commit_artifact, read_artifact
from presto_core.artifacts.store import commit
from presto_core.config.loader import load_config
from presto_core.config.schema import LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import TrackingConfig
from tests.support.simulated_models import make_arrays
from tests.support.synthetic_dataset import make_dataset

SMALL = {"network.dim": 16, "network.depth": 3, "network.heads": 2, "network.patch": 2, "cluster.num_workers": 0}
QUICK = {"loop.log_every": 2, "loop.checkpoint_every": 4, "cluster.num_workers": 0}


@dataclass
class TinyRegistry:
    """A storage root, its tracker, and artifacts by name."""

    root: str
    tracker: Tracker
    made: dict[str, Artifact]

    @property
    def client(self) -> Any:
        return self.tracker.client

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.client)

    def args(self) -> list[str]:
        return [f"storage.root={self.root}"]

    def add_report(self, *students: Artifact, worse: tuple[float, ...] = (), teacher_off: float = 0.6) -> Artifact:
        """Register a report on models whose samples are off the reference by `worse`, and tag their versions."""
        rng, ids = np.random.default_rng(7), [s.id for s in students]
        real = rng.standard_normal((2, 400, 1, 6))
        arrays, systems = make_arrays("real music", real[0]), []
        arrays |= make_arrays("real music, train", real[1], split="train", first_track=1000)
        arrays |= make_arrays("real music, train, noise", real[1] + 2, split="train", first_track=1000)
        clips = rng.standard_normal((300, 1, 6))
        rows = {f"S {number}": (f"compared_{number}", off) for number, off in enumerate(worse)}
        for name, (model, off) in (rows | {"teacher 40": ("teacher", teacher_off)}).items():
            arrays |= make_arrays(name, clips + off + 0.05 * rng.standard_normal(clips.shape))
            systems.append(
                {"name": name, "model": model, "fd": 6 * off**2, "mmd": off / 4, "chosen": True,
                 "validation": {"fd": 6 * off**2, "mmd": off / 4}}
                | {"density": 1.0, "coverage": 0.9, "nfe": 4, "blocks_run": 12, "latency_ms": 20, "speed_up": 9.0}
            )  # fmt: skip
        result = {
            "systems": systems,
            "hardware": {"device": "a made-up processor", "threads": 1},
            "embedding": {"name": "made-up", "digest": "e" * 64},
            "fitness": {"made-up": {"mmd": {"fit": True, "state": "passed", "reason": ""}}},
        }
        name = f"{abs(hash((*ids, *worse, teacher_off))) % 16**16:016x}"
        folder = artifact_folder(open_folder(self.root), name)
        commit_artifact(
            folder,
            kind="report",
            artifact_id=name,
            config_yaml="",
            parents={f"compared_{n}": i for n, i in enumerate(ids)}
            | {"dataset": self.made["data"].id, "teacher": self.made["base"].id},
            files={EMBEDDINGS: save(arrays), "report.json": json.dumps(result).encode()},
            details={"report": {"measure": "made-up", "split": "test", "validation_split": "validation"}},
        )
        report = read_artifact(folder)
        self.register(report, "presto-report", "evaluate")
        record_measurements(self.client, report, result)
        return report

    def register(self, artifact: Artifact, name: str, stage: str) -> None:
        run = self.client.create_run(self.tracker.experiment_id).info.run_id
        publish(
            self.client,
            name,
            artifact,
            mlflow_run=run,
            stage=stage,
            root=open_folder(self.root),
            pack=save_mlflow_model,
        )


def make_tiny_registry(root: str, *, tracking_uri: str = "") -> TinyRegistry:
    """Run the stages for a few steps each."""
    tracking = TrackingConfig(uri=tracking_uri)
    home = TinyRegistry(root, open_tracker(tracking), {})
    folder = artifact_folder(open_folder(root), "0" * 16)
    make_dataset(folder.uri)
    data = read_artifact(folder)
    licensed = dict(data.manifest)
    rows = {"train": 30, "validation": 8, "test": 8}
    licensed["dataset"] |= {"licences": ["CC0-1.0"], "rows": rows, "hours": {"train": 0.1}}
    commit(folder, licensed, {})
    home.made["data"] = read_artifact(folder)
    home.register(home.made["data"], "presto-dataset", "ingest")
    keys = {"storage.root": root, "inputs.dataset": "presto-dataset@candidate", "tracking.uri": tracking_uri}
    some: dict[str, object] = {"teacher.steps": 4, "teacher.global_batch_size": 4}
    home.made["base"] = train_teacher.run(load_config(TeacherStage, None, SMALL | QUICK | some | keys))
    some = {"layers.steps": 2, "layers.global_batch_size": 4}
    home.made["L"] = distill_layers.run(load_config(LayersStage, None, QUICK | some | keys))
    some = {"steps.generator_updates": 1, "steps.global_batch_size": 4, "steps.gan.head_layers": 1}
    home.made["S"] = distill_steps.run(load_config(StepsStage, None, QUICK | some | keys))
    some |= {"inputs.layers": "presto-generator@candidate-l"}
    home.made["LS"] = distill_steps.run(load_config(StepsStage, None, QUICK | some | keys))
    return home


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def presto(home: TinyRegistry, *args: str, code: int = 0) -> str:
    """Run a command of `presto registry`, which must exit with `code`, and return its standard output."""
    done = CliRunner().invoke(app, ["registry", *args, *home.args()], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout


def aliases_of(home: TinyRegistry, model: str) -> dict[str, int]:
    """Return alias -> version; a database returns numbers, a server strings."""
    return {alias: int(number) for alias, number in home.client.get_registered_model(model).aliases.items()}


def edit(folder: Path, **changes: object) -> None:
    """Change entries of an artifact's local manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
