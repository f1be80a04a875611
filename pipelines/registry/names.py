"""Names in the registry: models, aliases, tags, and references to versions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.tracking.tags import ARTIFACT_ID as ARTIFACT_ID
from pipelines.tracking.tags import ARTIFACT_URI as ARTIFACT_URI
from pipelines.tracking.tags import CONTENT as CONTENT
from pipelines.tracking.tags import KIND as KIND
from pipelines.tracking.tags import METHOD as METHOD
from pipelines.tracking.tags import PARENT as PARENT
from pipelines.tracking.tags import PARENTS as PARENTS
from pipelines.tracking.tags import RUN_ID as RUN_ID
from pipelines.tracking.tags import STAGE as STAGE
from presto_core.config.overrides import ConfigError
from presto_core.config.registry_name import check_registry_name
from presto_core.errors import UserError

TEACHER, GENERATOR, DATASET, REPORT = "presto-teacher", "presto-generator", "presto-dataset", "presto-report"
NAME_OF_KIND = {
    "teacher": TEACHER,
    "layers": GENERATOR,
    "generator": GENERATOR,
    "dataset": DATASET,
    "report": REPORT,
}
MODEL_KINDS = ("teacher", "layers", "generator")

CANDIDATE, CHAMPION, ARCHIVED = "candidate", "champion", "archived-"
LICENCES, BUDGET, SIZE = "presto.licences", "presto.budget", "presto.bytes"
SETTINGS = "presto.settings"  # tag of a version: its settings by dotted key, as JSON
COMMIT, ENVIRONMENT = "presto.commit", "presto.environment"  # tags of a version: the code that made it
HEALTH = "presto.health"  # tag of a version: its health signals at the end of training, as JSON
PROMOTION_LOG_TAG = "presto.record"  # tag of a model: the folder whose files decide which version is champion
MEASURED = "presto.measured."  # tags of a version: results of an evaluation
GATE = "presto.gate"  # tag of a teacher's version: whether it counts as a base for distillation
METRIC = "registry."  # metrics of a run: the same results as numbers, for MLflow's own pages

HASH_DIGITS = 12


def make_version_tag(model: str) -> str:
    """Return the tag of a run that has the number of its version of a model; characters that MLflow refuses are `_`."""
    return f"presto.as.{re.sub(r'[^A-Za-z0-9_. :/-]', '_', model)}"


class RegistryError(UserError):
    """The registry does not have what was requested, or refuses it; the message has the cause and the fix."""


def check_model_name(option: str, name: str) -> str:
    """Return a name to register a model under; ConfigError names the option, the name and the rule."""
    try:
        return check_registry_name(name)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def candidate_alias(method: str) -> str:
    """Return the alias of a method's newest version: candidate-l, candidate-s, candidate-ls, candidate-ase, ..."""
    return f"{CANDIDATE}-{re.sub(r'[^a-z0-9]+', '-', method.lower())}"


@dataclass(frozen=True)
class Reference:
    """A version as a user names it.

    Attributes:
        name: name of the model.
        alias: candidate, champion, ..., or the first digits of a content hash.
        number: MLflow's version number; 0 if the reference has an alias.
    """

    name: str
    alias: str = CANDIDATE
    number: int = 0

    def __str__(self) -> str:
        return f"{self.name}@{f'v{self.number}' if self.number else self.alias}"


def parse_reference(text: str) -> Reference | None:
    """Parse a reference by name; return None for an artifact's id or URI.

    `presto-generator`, `presto-generator@champion`, `presto-generator@v3`, `presto-generator@3f9c1a2b` (content hash),
    `models:/presto-generator@champion`, `models:/presto-generator/3`; an alias alone is one of presto-generator.

    Raises:
        RegistryError: it starts with models:/ and is not one of these forms.
    """
    if text.startswith("models:/"):
        match = re.fullmatch(r"models:/([^/@]+)(?:@([\w-]+)|/(\d+))", text)
        if not match:
            raise RegistryError(f"{text!r} names no model; use models:/{GENERATOR}@champion or models:/{GENERATOR}/3")
        return Reference(match[1], match[2] or CANDIDATE, int(match[3] or 0))
    if "/" in text or re.fullmatch(r"[0-9a-f]{16}", text):
        return None
    if re.fullmatch(r"champion|candidate(-\w+)*|archived-\d+|v\d+", text):
        text = f"{GENERATOR}@{text}"
    name, _, alias = text.partition("@")
    if number := re.fullmatch(r"v(\d+)", alias):
        return Reference(name, number=int(number[1]))
    return Reference(name, alias or CANDIDATE)
