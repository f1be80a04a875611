"""What every stage does around its own work: resolve parents, know its run_id, reuse or make, record and register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.progress import console
from pipelines.storage import absolute, open_folder
from pipelines.tracking import TrackedRun, open_tracker
from presto_core.config.schema import StageConfig
from presto_core.registry.manifest import Artifact, artifact_folder, read_artifact, run_folder
from presto_core.registry.store import Folder

REPORTS = Path(".presto/reports")


@dataclass(frozen=True)
class Workplace:
    """Where one execution of a stage reads and writes.

    Attributes:
        run_id: id of the run and of the artifact it makes.
        parents: role -> artifact it starts from.
        artifact: folder to commit the artifact in.
        scratch: folder of checkpoints and partial results.
        run: its record in MLflow.
    """

    run_id: str
    parents: dict[str, Artifact]
    artifact: Folder
    scratch: Folder
    run: TrackedRun

    def show(self, name: str, picture: bytes) -> None:
        """Keep a plot where it can be opened, and with the run's record."""
        path = REPORTS / self.run_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        self.run.attach(path)

    @property
    def parent_ids(self) -> dict[str, str]:
        return {role: artifact.id for role, artifact in self.parents.items()}


def run_stage(
    stage: str,
    config: StageConfig,
    make: Callable[[Workplace], None],
    *,
    register_as: str,
    inputs: dict[str, str] | None = None,
) -> Artifact:
    """Make a stage's artifact unless it exists, and register it.

    Args:
        make: does the work and commits `workplace.artifact`; may resume from `workplace.scratch`.
        inputs: hashes of inputs that are no artifacts (a folder of audio).

    Raises:
        UserError: whatever the stage, storage or tracking could not do.
    """
    root = open_folder(absolute(config.storage.root))
    tracker = open_tracker(config.tracking)
    parents = {role: tracker.resolve(said, root.uri) for role, said in config.references().items()}
    run_id = config.run_id({role: a.id for role, a in parents.items()} | (inputs or {}))
    folder = artifact_folder(root, run_id)
    with tracker.run(stage, config, run_id, {role: a.id for role, a in parents.items()}) as run:
        if folder.exists():
            console.print(f"{stage}: run {run_id} is done already, its result is used")
        else:
            console.print(f"{stage}: run {run_id}")
            place = Workplace(run_id, parents, folder, run_folder(root, run_id), run)
            make(place)
            place.scratch.delete()  # checkpoints and partial results of a finished run are of no further use
        artifact = read_artifact(folder)
        version = tracker.register(register_as, artifact, run)
    console.print(f"{stage}: {register_as} version {version} = {artifact.id}, {artifact.uri}")
    return artifact
