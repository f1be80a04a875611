"""`presto doctor`: tries out all that a preset needs, and says in a table what fails and how to mend it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from threading import Thread

from pipelines.cluster.session import joined_address
from pipelines.console import console, print_table
from pipelines.doctor import machine_checks as probes
from pipelines.doctor import service_checks as round_trips
from pipelines.stages.resources import SkippedError, stages_with_workers
from pipelines.tracking.client import HOME, without_password
from pipelines.workflows.demo import FLOW, stage_configs
from presto_core.errors import UserError

LIMIT_S = 60.0  # for an import or a start on a busy machine; servers that are silent are given up sooner, see storage
SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)


class Result(StrEnum):
    OK = "ok"
    FAILED = "failed"
    LACKING = "lacking"  # what only some uses need
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One thing to try.

    Attributes:
        about: what is tried, for --dry-run.
        run: says what it found; raises UserError ("what is wrong; how to mend it") or SkippedError.
        required: whether its failure is the command's.
        mend: what to do where a failure does not tell.
        after: the check without whose success this one has nothing to try.
    """

    name: str
    about: str
    run: Callable[[], str] = field(repr=False)
    required: bool = True
    mend: str = "mend that, and try again"
    after: str = ""
    limit_s: float = LIMIT_S


@dataclass(frozen=True)
class Finding:
    """What came of a check."""

    check: str
    result: Result
    detail: str
    mend: str = ""


def checks(preset: str | None, overrides: list[str]) -> list[Check]:
    """What to try for a preset, in the order in which it is needed.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    configs = {FLOW[name].stage: config for name, config in stage_configs(preset, overrides).items()}
    ingest = configs["ingest"]
    root, cluster = ingest.storage.root, ingest.cluster
    ray = probes.RayProbe(cluster)
    oobleck = probes.codec_kind(ingest) == "oobleck"
    m4a = ("av", "av", "m4a and AAC files", "pip install 'presto-distill[m4a]'")
    diffusers = ("diffusers", "diffusers", "codec.kind=oobleck", "pip install 'presto-distill[oobleck]'")
    return [
        Check("python", "its version", probes.python),
        Check("torch", "its version, GPUs and nccl where workers use them", partial(probes.torch_and_gpus, cluster)),
        Check("disk", f"free space at {HOME}", partial(probes.free_space, HOME.absolute())),
        Check(
            "storage",
            f"put, get, list and delete below {root}",
            partial(round_trips.storage, root),
            mend="choose another storage.root",
        ),
        Check(
            "conditional put",
            f"two below {root}",
            partial(round_trips.conditional_put, root),
            required=False,
            after="storage",
        ),
        Check("clock", "against the object store's", partial(probes.clock, root)),
        Check(
            "MLflow",
            f"a run with a metric and an artifact in experiment {ingest.tracking.experiment!r}",
            partial(round_trips.mlflow, ingest.tracking),
        ),
        Check("Ray", _ray_plan(joined_address(cluster)), ray.reach),
        *(
            Check(
                f"Ray: {stage}", "its workers against the cluster's resources", partial(ray.holds, stage), after="Ray"
            )
            for stage in stages_with_workers()
        ),
        Check("PyAV", "for m4a and AAC files", partial(probes.package, *m4a), required=False),
        Check("diffusers", "for codec.kind=oobleck", partial(probes.package, *diffusers), required=oobleck),
    ]


def _ray_plan(address: str) -> str:
    return f"join {address}" if address else "start it on this machine, and stop it"


def run(tried: list[Check]) -> list[Finding]:
    """Do the checks, one after the other, whatever comes of them."""
    findings = list[Finding]()
    for check in tried:
        fine = {finding.check for finding in findings if finding.result is Result.OK}
        if check.after and check.after not in fine:
            findings.append(Finding(check.name, Result.SKIPPED, f"without {check.after} there is nothing to try"))
            continue
        with console.status(f"doctor: {check.name}"):
            findings.append(examine(check))
    return findings


def show(findings: list[Finding], *, as_json: bool = False) -> bool:
    """Print what was found; returns whether all that is required is well."""
    failed = [finding.check for finding in findings if finding.result is Result.FAILED]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in findings]}, indent=2))
        return not failed
    rows = [[f.check, f.result.upper() if f.check in failed else f.result, f.detail, f.mend] for f in findings]
    print_table("presto doctor", ("check", "result", "detail", "mend"), rows)
    console.print(f"doctor: to be mended: {', '.join(failed)}" if failed else "doctor: all is well")
    return not failed


def examine(check: Check) -> Finding:
    """Do one check, in a thread of its own: what hangs is left behind after a while, and the others still run."""
    found: list[Finding] = []
    thread = Thread(target=lambda: found.append(_tried(check)), daemon=True)
    thread.start()
    thread.join(check.limit_s)
    silent = _failure(check, f"no answer within {check.limit_s:g} s", "see that the service is well, and try again")
    return found[0] if found else silent


def _tried(check: Check) -> Finding:
    try:
        return Finding(check.name, Result.OK, hidden(check.run()))
    except SkippedError as why:
        return Finding(check.name, Result.SKIPPED, str(why))
    except UserError as error:
        wrong, _, mend = str(error).rpartition("; ")
        return _failure(check, wrong or mend, mend if wrong else check.mend)
    except ImportError as error:
        return _failure(check, f"package {error.name!r} cannot be imported: {error.msg}", "install Presto again: make")
    except OSError as error:
        return _failure(check, f"{error.filename or 'system'}: {error.strerror or error}", check.mend)
    except Exception as error:  # of any library: the other checks go on
        said = " ".join(str(error).split())[:300]
        return _failure(check, f"unexpected {type(error).__name__}: {said}", "this is a bug, please report it")


def _failure(check: Check, detail: str, mend: str) -> Finding:
    return Finding(check.name, Result.FAILED if check.required else Result.LACKING, hidden(detail), hidden(mend))


def hidden(text: str) -> str:
    """A text without secrets: passwords in URIs, and values of the environment that are none of a reader's business."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return without_password(text)


def show_plan(tried: list[Check], *, as_json: bool = False) -> None:
    """Say what would be checked."""
    if as_json:
        print(json.dumps([{"check": c.name, "about": c.about, "required": c.required} for c in tried], indent=2))
    else:
        rows = [[c.name, hidden(c.about), "required" if c.required else "optional"] for c in tried]
        print_table("presto doctor would check", ("check", "what", ""), rows)
