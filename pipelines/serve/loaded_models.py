"""Models that a replica holds: found by name, loaded when asked for, and replaced when the registry's alias moves.

A new champion is loaded and warmed beside the old one, and takes over in one assignment: requests under way end with
the model they started with. A version that cannot be loaded is reported, and the old one stays.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.inference.batch import ClipRequest, generate_batch
from pipelines.inference.generator import Generator, open_generator
from pipelines.registry.catalog import Catalog
from pipelines.registry.names import (
    CHAMPION,
    GENERATOR,
    MODEL_KINDS,
    TEACHER,
    Reference,
    RegistryError,
    parse_reference,
)
from pipelines.registry.resolve import resolve, resolve_pretrained
from pipelines.serve.clips import OfferedModel
from pipelines.serve.refusal import refuse
from pipelines.serve.settings import ServeSettings
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.client import has_registry, open_tracker
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR, list_pretrained
from presto_core.models.recorded_components import OwnFolders
from presto_core.networks.compilation import CompiledNetwork

RETRY_S = 60.0  # until a version that could not be loaded is tried again


@dataclass(frozen=True)
class Target:
    """The exact model that a name means now.

    Attributes:
        uri, content: of the artifact.
        version: its label in the registry; empty for a model of the package.
    """

    uri: str
    content: str
    model_id: str
    kind: str
    version: str = ""

    @staticmethod
    def from_artifact(artifact: Artifact, version: str = "") -> Target:
        return Target(artifact.uri, content_hash(artifact.manifest), artifact.id, artifact.kind, version)


class LoadedModels:
    """The models of one replica; safe to use from several threads.

    Args:
        report: called with a line's fields for events: a model loaded, replaced or refused.
    """

    def __init__(self, settings: ServeSettings, *, report: Callable[..., None] = lambda **fields: None) -> None:
        self._settings, self._report = settings, report
        self._client: Any = None
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._loaded: OrderedDict[Target, Generator] = OrderedDict()
        self._targets: dict[str, Target] = {}
        self._problems: dict[str, str] = {}
        self._requested: set[str] = set()
        self._refused: dict[Target, float] = {}  # when to try again, in seconds of the monotonic clock
        self._follower = threading.Event()
        self.default = ""

    def open(self) -> None:
        """Find and load the default model; raises UserError if there is none."""
        self.default, target = self._find_default()
        packaged = {name: Target.from_artifact(_must(resolve_pretrained(name))) for name in list_pretrained()}
        self._load(target)
        self._targets = packaged | {self.default: target}
        self.refresh()

    def follow(self) -> None:
        """Look at the registry every `follow_s` seconds from a thread, until `close`."""
        if self._client is not None:
            threading.Thread(target=self._follow, name="registry follower", daemon=True).start()

    def close(self) -> None:
        self._follower.set()

    def find(self, wanted: str) -> tuple[str, Generator]:
        """Return the model that a request names, and its name; loads it if it is not in memory.

        Raises:
            RefusedError: no such model is offered.
            UserError: it cannot be loaded.
        """
        name = self._canonical(wanted)
        target = self._targets.get(name)
        if target is None:
            raise refuse(404, "there is no such model here", "take a name from GET /v1/models", value=wanted)
        self._requested.add(name)
        return name, self._load(target)

    def list_models(self) -> list[OfferedModel]:
        """Return all models that requests may name, the default first."""
        targets, problems = self._targets, self._problems
        offered = [
            OfferedModel(
                name,
                "registry" if target.version else "package",
                name == self.default,
                target in self._loaded,
                target.model_id,
                target.kind,
                target.version,
                problems.get(name, ""),
            )
            for name, target in targets.items()
        ]
        return sorted(offered, key=lambda model: (not model.is_default, model.source != "registry", model.name))

    def refresh(self) -> None:
        """Bring names up to date with the registry: what is in use is loaded before its name changes hands."""
        if self._client is None:
            return
        found = self._find_aliases()
        targets = {name: target for name, target in self._targets.items() if not target.version}
        # an alias that is gone stays for the default only: a service does not stop because a name was taken away
        if self.default not in targets and self.default not in found:
            targets[self.default] = self._targets[self.default]
            self._problems[self.default] = f"the registry has no {self.default} any more"
        for name, target in found.items():
            before = self._targets.get(name)
            is_used = name == self.default or name in self._requested
            targets[name] = self._prepare(name, before, target) if is_used and before else target
        self._targets = targets  # one assignment: a request sees the old names or the new ones

    def _prepare(self, name: str, before: Target, target: Target) -> Target:
        """Return the target once it is loaded, or the one before it if it cannot be."""
        if target == before:
            self._problems.pop(name, None)
            return target
        if time.monotonic() < self._refused.get(target, 0.0):
            return before
        try:
            self._load(target)
        except Exception as error:  # whatever is wrong with a new version, the old one still serves
            self._refused[target] = time.monotonic() + RETRY_S
            self._problems[name] = f"{target.version} cannot be served: {error}"
            self._report(event="model refused", model=name, version=target.version, problem=str(error)[:300])
            return before
        self._problems.pop(name, None)
        self._report(event="model replaced", model=name, version=target.version, before=before.version)
        return target

    def _follow(self) -> None:
        while not self._follower.wait(self._settings.follow_s):
            try:
                self.refresh()
            except Exception as error:  # the registry is away: what is served stays
                self._report(event="registry unreachable", problem=str(error)[:300])

    def _load(self, target: Target) -> Generator:
        """Return a model, loaded and warmed; drops the one that was not asked for longest if there are too many."""
        if (held := self._take(target)) is not None:
            return held
        with self._loading:
            if (held := self._take(target)) is not None:
                return held
            folders = OwnFolders.from_config(self._settings.storage)
            settings = self._settings
            generator = open_generator(
                target.uri,
                device=settings.device,
                folders=folders,
                content=target.content,
                autocast=settings.autocast,
                compiled=settings.compile,
                one_thread=False,  # models are loaded beside those at work
            )
            warm_up(generator, max_batch=settings.max_batch)
            with self._lock:
                self._loaded[target] = generator
                self._drop_oldest(target)
            self._report(event="model loaded", model_id=target.model_id, version=target.version)
            return generator

    def _take(self, target: Target) -> Generator | None:
        with self._lock:
            if target in self._loaded:
                self._loaded.move_to_end(target)
            return self._loaded.get(target)

    def _drop_oldest(self, newest: Target) -> None:
        kept = {newest, self._targets.get(self.default, newest)}
        for target in [target for target in self._loaded if target not in kept]:
            if len(self._loaded) <= self._settings.max_models:
                return
            del self._loaded[target]

    def _canonical(self, name: str) -> str:
        if not name:
            return self.default
        if name in self._targets:
            return name
        return _name_registered(name) or name

    def _find_default(self) -> tuple[str, Target]:
        wanted = self._settings.model
        if wanted and (artifact := resolve_pretrained(wanted)):
            self._try_connect()
            return wanted, Target.from_artifact(artifact)
        if wanted:
            self._connect()
            return self._find_registered(wanted)
        if self._try_connect():
            try:
                return self._find_registered(CHAMPION)
            except RegistryError:
                pass
        artifact = resolve_pretrained(DEFAULT_GENERATOR)
        if artifact is None:
            raise UserError(f"there is no champion and no {DEFAULT_GENERATOR}; name a model with --model")
        return DEFAULT_GENERATOR, Target.from_artifact(artifact)

    def _find_registered(self, wanted: str) -> tuple[str, Target]:
        reference = parse_reference(wanted)
        if reference is None:  # an id or a URI of the operator, never of a request
            artifact = resolve(self._client, wanted, absolute_uri(self._settings.storage.root))
            return artifact.id, Target.from_artifact(artifact, artifact.id)
        version = Catalog(self._client).get(reference)
        return str(reference), Target(version.uri, version.content, version.artifact_id, version.kind, version.label)

    def _find_aliases(self) -> dict[str, Target]:
        """Return what every alias of the registry's models means now, and the default if it is no alias."""
        catalog = Catalog(self._client)
        own = parse_reference(self.default)
        names = {GENERATOR, TEACHER} | ({own.name} if own and own.name in catalog.models else set())
        wanted = [
            Reference(name, alias)
            for name in sorted(names & set(catalog.models))
            for alias in catalog.models[name].aliases
            if not alias.startswith("archived")
        ]
        if own and own.number:
            wanted.append(own)
        found: dict[str, Target] = {}
        for reference in wanted:
            version = catalog.get(reference)
            if version.kind in MODEL_KINDS:
                target = Target(version.uri, version.content, version.artifact_id, version.kind, version.label)
                found[str(reference)] = target
        return found

    def _connect(self) -> None:
        self._client = open_tracker(self._settings.tracking).client

    def _try_connect(self) -> bool:
        if not has_registry(self._settings.tracking):
            return False
        self._connect()
        return True


def warm_up(generator: Generator, *, max_batch: int) -> None:
    """Make clips that nobody hears, so that the first request finds all that a process does once already done.

    A compiled model gets the graphs of its own length in every batch size, and no others: a request must not wait for
    a compiler.
    """
    network, few = generator.model.denoise.net, generator.artifact.kind == "generator"
    if not isinstance(network, CompiledNetwork):
        generate_batch(generator, [ClipRequest("warm-up", steps=1)])
        return
    for count in range(1, max_batch + 1):
        for steps in (1, 2, 4) if few else (8,):  # which meet all budgets, as a rule
            generate_batch(generator, [ClipRequest("warm-up", steps=steps)] * count)
    network.keep_graphs()


def _name_registered(text: str) -> str:
    """Return the full name of a registered model: presto-generator@champion of champion."""
    try:
        reference = parse_reference(text)
    except RegistryError:
        return ""
    return str(reference) if reference else ""


def _must(artifact: Artifact | None) -> Artifact:
    assert artifact is not None  # it was listed a moment ago
    return artifact
