"""Stages that commit and register, people who promote and roll back, and a gc with a stale list, in any order.

A state machine over a real registry (SQLite) and its storage root. The model is which artifacts exist, which are
registered and which a run starts from: gc may delete what is none of these, and nothing else.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.registry.garbage import ARTIFACT, GarbageCollector, GarbageItem, find_garbage
from pipelines.registry.promotion import Promoter
from pipelines.registry.publish import publish
from pipelines.registry.resolve import resolve
from pipelines.registry.root_identity import RegistryIdentity
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import artifact_folder, commit_artifact, read_artifact, run_folder
from presto_core.artifacts.run_layout import RUN_FILE
from presto_core.artifacts.store import read_file, write_bytes
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sections import TrackingConfig
from tests.support.many_examples import few
from tests.support.small_versions import SmallRegistry, pack_nothing

NOW, MONTH = timedelta(0), timedelta(days=30)
PICK = st.integers(0, 99)  # modulo how many there are
NUMBERS = itertools.count(1)  # of artifacts, runs and models over all examples, which share a registry


class RegistryMachine(RuleBasedStateMachine):
    """Artifacts by id, with what the model knows of each."""

    shelf: ClassVar[SmallRegistry]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        path = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.root, self.client = open_folder(path), self.shelf.client
        self.model = f"model-{next(NUMBERS)}"
        self.parents: dict[str, str] = {}  # artifact -> what it was made from; empty for nothing
        self.versions: list[str] = []  # artifact of each version
        self.runs: dict[str, str] = {}  # unfinished run -> the artifact it starts from
        self.champions: list[str] = []
        self.plan: list[GarbageItem] = []

    def teardown(self) -> None:
        self.stack.close()

    @initialize()
    def begin(self) -> None:
        """The first stage registers what it made, by which the root gets to know its registry."""
        self.commit(pick=0, has_parent=False)
        self.register(pick=0)

    # --- what stages and people do

    @rule(pick=PICK, has_parent=st.booleans())
    def commit(self, pick: int, has_parent: bool) -> None:
        parent = self._pick(pick) if has_parent and self.parents else ""
        self._commit(self._make_id(), parent)

    @rule(length=st.integers(3, 4))
    def commit_a_line(self, length: int) -> None:
        """Stages in a row, of which the last one registers what it made."""
        line = [self._make_id() for _ in range(length)]
        for parent, artifact_id in zip(["", *line], line):
            self._commit(artifact_id, parent)
        self._publish(line[-1])

    @precondition(lambda self: self.parents)
    @rule(pick=PICK)
    def register(self, pick: int) -> None:
        self._publish(self._pick(pick))

    def _publish(self, artifact_id: str) -> None:
        made = publish(
            self.client, self.model, read_artifact(artifact_folder(self.root, artifact_id)),
            mlflow_run=self.client.create_run(self.shelf.tracker.experiment_id).info.run_id,
            stage="made", root=self.root, pack=pack_nothing,
        )  # fmt: skip
        if artifact_id not in self.versions:
            self.versions.append(artifact_id)
        assert self.versions[made.number - 1] == artifact_id

    @precondition(lambda self: self.parents)
    @rule(pick=PICK)
    def start_run(self, pick: int) -> None:
        self._start_from(self._pick(pick))

    @precondition(lambda self: self.versions)
    @rule(by_run=st.booleans())
    def use_what_gc_has_listed(self, by_run: bool) -> None:
        artifact_id = self._make_id()
        self._commit(artifact_id, "")
        self.list_garbage()
        if by_run:
            self._start_from(artifact_id)
        else:
            self._publish(artifact_id)
            self._publish(artifact_id)
        while self.plan:
            self.delete_listed()

    def _start_from(self, parent: str) -> None:
        run_id = self._make_id()
        write_bytes(run_folder(self.root, run_id), RUN_FILE, json.dumps({"parents": {"base": parent}}).encode())
        self.runs[run_id] = parent

    @precondition(lambda self: self.runs)
    @rule(pick=PICK)
    def finish_run(self, pick: int) -> None:
        run_id = sorted(self.runs)[pick % len(self.runs)]
        self._commit(run_id, self.runs.pop(run_id))
        run_folder(self.root, run_id).delete()

    @precondition(lambda self: self.versions)
    @rule(pick=PICK)
    def promote(self, pick: int) -> None:
        self._promote(pick % len(self.versions) + 1)

    @precondition(lambda self: len(self.versions) > 1)
    @rule()
    def promote_two_and_roll_back(self) -> None:
        for number in (1, len(self.versions)):
            self._promote(number)
        self.roll_back()

    def _promote(self, number: int) -> None:
        promoter = Promoter(self.client, gate=lambda *args: [])
        promoter.promote(f"{self.model}@v{number}", PromoteConfig(), why="a try")
        if self.versions[number - 1] not in self.champions[-1:]:
            self.champions.append(self.versions[number - 1])

    @precondition(lambda self: len(self.champions) > 1)
    @rule()
    def roll_back(self) -> None:
        Promoter(self.client).rollback(self.model, why="it hums")
        self.champions.pop()

    # --- what gc does, perhaps long after it has looked

    @precondition(lambda self: self.versions)
    @rule()
    def list_garbage(self) -> None:
        self.plan = find_garbage(self.root, self.shelf.catalog.list_referenced(), older_than=NOW, runs_older_than=MONTH)
        found = {item.id for item in self.plan if item.kind == ARTIFACT}
        assert found == self.parents.keys() - self._find_needed()

    @precondition(lambda self: self.plan)
    @rule()
    def delete_listed(self) -> None:
        item = self.plan.pop(0)  # children first
        needed = self._find_needed() | set(self.parents.values()) | self.runs.keys()
        kept = self._open_collector().delete(item)
        assert bool(kept) == (item.id in needed), kept
        if not kept:
            del self.parents[item.id]

    @invariant()
    def nothing_that_is_needed_is_gone(self) -> None:
        for artifact_id in self.parents:
            artifact = read_artifact(artifact_folder(self.root, artifact_id))
            read_file(artifact_folder(self.root, artifact_id), "made.json", artifact.manifest)
        assert self._find_needed() <= self.parents.keys()

    @invariant()
    def the_champion_is_the_last_one_promoted(self) -> None:
        if self.champions:
            assert resolve(self.client, f"{self.model}@champion", self.root.uri).id == self.champions[-1]

    # --- the model

    def _pick(self, pick: int) -> str:
        return sorted(self.parents)[pick % len(self.parents)]

    def _make_id(self) -> str:
        return f"{next(NUMBERS):016x}"

    def _commit(self, artifact_id: str, parent: str) -> None:
        commit_artifact(
            artifact_folder(self.root, artifact_id), kind="generator", artifact_id=artifact_id, config_yaml="",
            parents={"base": parent} if parent else {}, files={"made.json": artifact_id.encode()}, details={},
        )  # fmt: skip
        self.parents[artifact_id] = parent

    def _find_needed(self) -> set[str]:
        """Registered artifacts, those that runs start from, and all that these were made from."""
        needed, queue = set[str](), [*self.versions, *self.runs.values()]
        while queue:
            artifact_id = queue.pop()
            needed.add(artifact_id)
            queue += [parent for parent in [self.parents.get(artifact_id, "")] if parent]
        return needed

    def _open_collector(self) -> GarbageCollector:
        identity = RegistryIdentity.read(self.client, self.shelf.tracker.experiment_id)
        return GarbageCollector(identity, self.root, NOW, MONTH)


RegistryMachine.TestCase.settings = settings(
    few(3), stateful_step_count=14, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # a smaller example takes minutes to find


@pytest.fixture(scope="module", autouse=True)
def shelf(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    database = tmp_path_factory.mktemp("registry") / "mlflow.db"
    database.write_bytes(mlflow_database.read_bytes())
    RegistryMachine.shelf = SmallRegistry("", open_tracker(TrackingConfig(uri=f"sqlite:///{database}")))


TestRegistry = RegistryMachine.TestCase
