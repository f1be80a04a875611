"""`presto doctor`: checks everything that a preset needs, and prints what fails and how to fix it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from threading import Thread

from pipelines.cluster.session import cluster_address
from pipelines.console import console, print_table, print_text
from pipelines.doctor import machine_checks, service_checks
from pipelines.stages.resources import SkippedError, list_stages_with_workers
from pipelines.tracking.client import HOME, strip_password
from pipelines.workflows.demo import DEMO_FLOW, load_flow_configs
from presto_core.errors import UserError

TIMEOUT_S = 60.0  # for an import or a start on a busy machine; storage gives up on silent servers sooner
SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)
EXTRA_PURPOSES = {
    "corpus": "presto corpus build",
    "sweep": "presto sweep run",
    "plots": "presto evaluate and plots of training",
}


class Result(StrEnum):
    OK = "ok"
    FAILED = "failed"
    LACKING = "lacking"  # needed by some uses only
    SKIPPED = "skipped"


@dataclass(frozen=True)
class DoctorCheck:
    """One check.

    Attributes:
        name: first column of the table.
        about: what is checked, for --dry-run.
        run: returns what it found; raises UserError ("what is wrong; how to fix it") or SkippedError.
        required: whether the command fails if this check fails.
        fix: the fix to print for an error that names none.
        after: name of a check that must pass before this one can run.
        timeout_s: seconds until a check without an answer fails.
    """

    name: str
    about: str
    run: Callable[[], str] = field(repr=False)
    required: bool = True
    fix: str = "fix the cause and try again"
    after: str = ""
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True)
class CheckOutcome:
    """Outcome of a check."""

    check: str
    result: Result
    detail: str
    fix: str = ""


def make_checks(preset: str | None, overrides: list[str]) -> list[DoctorCheck]:
    """Return the checks for a preset, in the order in which stages need them.

    Raises:
        ConfigError: a setting is invalid.
    """
    configs = {DEMO_FLOW[name].stage: config for name, config in load_flow_configs(preset, overrides).items()}
    ingest = configs["ingest"]
    root, cluster = ingest.storage.root, ingest.cluster
    ray = machine_checks.RayCheck(cluster)
    oobleck = machine_checks.get_codec_kind(ingest) == "oobleck"
    m4a = ("av", "av", "m4a and AAC files", "pip install 'presto-distill[m4a]'")
    diffusers = ("diffusers", "diffusers", "codec.kind=oobleck", "pip install 'presto-distill[oobleck]'")
    return [
        DoctorCheck("python", "its version", machine_checks.check_python),
        DoctorCheck(
            "torch",
            "its version, and GPUs and nccl if workers use them",
            partial(machine_checks.check_torch_and_gpus, cluster),
        ),
        DoctorCheck("disk", f"free space at {HOME}", partial(machine_checks.check_free_space, HOME.absolute())),
        DoctorCheck(
            "S3 settings",
            "those that every S3 client uses",
            partial(service_checks.check_s3_settings, (root, *machine_checks.list_sources(ingest))),
            fix="correct it, or choose another storage.root",
        ),
        DoctorCheck(
            "storage",
            f"put, get, list and delete below {root}",
            partial(service_checks.check_storage, root),
            fix="choose another storage.root",
        ),
        DoctorCheck(
            "conditional put",
            f"two below {root}",
            partial(service_checks.check_conditional_put, root),
            required=False,
            after="storage",
        ),
        DoctorCheck("clock", "against the object store's", partial(machine_checks.check_clock, root)),
        DoctorCheck(
            "MLflow",
            f"a run with a metric and an artifact in experiment {ingest.tracking.experiment!r}",
            partial(service_checks.check_mlflow, ingest.tracking),
        ),
        DoctorCheck("Ray", _describe_ray(cluster_address(cluster)), ray.connect),
        *(
            DoctorCheck(
                f"Ray: {stage}",
                "its workers against the cluster's resources",
                partial(ray.check_fits, stage),
                after="Ray",
            )
            for stage in list_stages_with_workers()
        ),
        DoctorCheck("PyAV", "for m4a and AAC files", partial(machine_checks.check_package, *m4a), required=False),
        DoctorCheck(
            "diffusers", "for codec.kind=oobleck", partial(machine_checks.check_package, *diffusers), required=oobleck
        ),
        *(
            DoctorCheck(
                f"extra: {extra}",
                f"for {purpose}",
                partial(machine_checks.check_extra_packages, extra, purpose),
                required=False,
            )
            for extra, purpose in EXTRA_PURPOSES.items()
        ),
        DoctorCheck("extra: s3-server", "for presto s3 start", machine_checks.check_s3_program, required=False),
    ]


def _describe_ray(address: str) -> str:
    return f"join {address}" if address else "start it on this machine and stop it"


def run(checks: list[DoctorCheck]) -> list[CheckOutcome]:
    """Run the checks one after the other; a failure does not stop the others."""
    outcomes = list[CheckOutcome]()
    for check in checks:
        passed = {outcome.check for outcome in outcomes if outcome.result is Result.OK}
        if check.after and check.after not in passed:
            outcomes.append(CheckOutcome(check.name, Result.SKIPPED, f"needs the check {check.after} to pass"))
            continue
        with console.status(f"doctor: {check.name}"):
            outcomes.append(run_check(check))
    return outcomes


def show(outcomes: list[CheckOutcome], *, as_json: bool = False) -> bool:
    """Print the outcomes, and return whether all required checks passed."""
    failed = [finding.check for finding in outcomes if finding.result is Result.FAILED]
    if as_json:
        print_text(json.dumps({"ok": not failed, "checks": [asdict(finding) for finding in outcomes]}, indent=2))
        return not failed
    rows = [[f.check, f.result.upper() if f.check in failed else f.result, f.detail, f.fix] for f in outcomes]
    print_table("presto doctor", ("check", "result", "detail", "fix"), rows)
    console.print(f"doctor: failed: {', '.join(failed)}" if failed else "doctor: all required checks passed")
    return not failed


def run_check(check: DoctorCheck) -> CheckOutcome:
    """Run one check in its own thread, which is abandoned after a timeout so that the other checks run."""
    outcomes: list[CheckOutcome] = []
    thread = Thread(target=lambda: outcomes.append(_run_catching_errors(check)), daemon=True)
    thread.start()
    thread.join(check.timeout_s)
    timed_out = _make_failure(
        check, f"no answer within {check.timeout_s:g} s", "check that the service works, and try again"
    )
    return outcomes[0] if outcomes else timed_out


def _run_catching_errors(check: DoctorCheck) -> CheckOutcome:
    try:
        return CheckOutcome(check.name, Result.OK, redact(check.run()))
    except SkippedError as why:
        return CheckOutcome(check.name, Result.SKIPPED, str(why))
    except UserError as error:
        problem, _, fix = str(error).rpartition("; ")
        return _make_failure(check, problem or fix, fix if problem else check.fix)
    except ImportError as error:
        return _make_failure(
            check, f"package {error.name!r} cannot be imported: {error.msg}", "install Presto again: make"
        )
    except OSError as error:
        return _make_failure(check, f"{error.filename or 'system'}: {error.strerror or error}", check.fix)
    except Exception as error:  # from any library: the other checks still run
        message = " ".join(str(error).split())[:300]
        return _make_failure(check, f"unexpected {type(error).__name__}: {message}", "this is a bug; report it")


def _make_failure(check: DoctorCheck, detail: str, fix: str) -> CheckOutcome:
    return CheckOutcome(check.name, Result.FAILED if check.required else Result.LACKING, redact(detail), redact(fix))


def redact(text: str) -> str:
    """Remove secrets from a text: passwords in URIs, and values of secret environment variables."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return strip_password(text)


def show_plan(checks: list[DoctorCheck], *, as_json: bool = False) -> None:
    """Print what would be checked."""
    if as_json:
        print_text(json.dumps([{"check": c.name, "about": c.about, "required": c.required} for c in checks], indent=2))
    else:
        rows = [[c.name, redact(c.about), "required" if c.required else "optional"] for c in checks]
        print_table("presto doctor would check", ("check", "what", ""), rows)
