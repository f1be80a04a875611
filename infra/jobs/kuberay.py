"""Render a command as a KubeRay RayJob from kuberay/base/rayjob.yaml; print it, or apply it with kubectl."""

from __future__ import annotations

import math
import subprocess
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import Any

import yaml

from infra.jobs.command import StageCommand, make_entrypoint, make_environment, make_job_id
from infra.jobs.portability import check_no_secrets, check_reachable, freeze_config
from infra.jobs.targets import Target
from pipelines.cluster.session import READER_CPUS, min_workers
from pipelines.console import console, print_text
from pipelines.stages.table import STAGES
from presto_core.config.loader import to_yaml
from presto_core.config.stage import StageConfig
from presto_core.config.sweep import SweepConfig
from presto_core.config.workers import count_sharing
from presto_core.errors import UserError

BASE = Path(__file__).parent.parent / "kuberay/base/rayjob.yaml"
APPLY_S = 60


def render_or_apply(command: StageCommand, target: Target, *, dry_run: bool) -> None:
    """Print a command's RayJob, or apply it if the target names a kubectl context.

    Raises:
        UserError: a setting does not work on the cluster, or kubectl is missing or fails.
    """
    config = freeze_config(command.stage, command.config)
    if not config.submit.image:
        raise UserError(
            "submit.image is empty, and pods get their code from an image only; set it to the image that infra/docker "
            "builds, with its digest: submit.image=registry/presto@sha256:…"
        )
    check_reachable(command.stage, config, target)
    document = _to_yaml(render_rayjob(command, config, make_job_id(command)))
    check_no_secrets(f"{to_yaml(config)}\n{document}")  # the document has the settings encoded
    if target.address and not dry_run:
        _apply(document, target.address, config)
    else:
        print_text(document, end="")


def render_rayjob(command: StageCommand, config: StageConfig, name: str) -> dict[str, Any]:
    """Return the RayJob manifest of a command.

    Args:
        config: settings with `submit.image` set.
    """
    config = _wait_for_run(config)
    job: dict[str, Any] = _copy_without_aliases(yaml.safe_load(BASE.read_text()))
    job["metadata"] |= {"name": name, "namespace": config.submit.namespace}
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    spec |= {
        "entrypoint": make_entrypoint(command, config),
        "jobId": name,
        "runtimeEnvYAML": _to_yaml({"env_vars": make_environment(config, name)}),
    }
    cluster["rayVersion"] = metadata.version("ray")
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    trains = STAGES[command.stage].workers == "train" or config.cluster.gpus_per_worker
    group = groups["train" if trains else "ingest"]
    cluster["workerGroupSpecs"] = (
        [_resize_group(group, command.stage, config)] if STAGES[command.stage].workers != "none" else []
    )
    of_ray = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
    for template in of_ray:
        template["spec"]["terminationGracePeriodSeconds"] = config.submit.stop_grace_seconds
    for template in (spec["submitterPodTemplate"], *of_ray):
        template["spec"]["containers"][0]["image"] = config.submit.image
    return job


def _wait_for_run(config: StageConfig) -> StageConfig:
    """Return the settings of a RayJob, whose retry starts while pods of the attempt before it may still be saving."""
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"wait_for_run": True})})


def _resize_group(group: dict[str, Any], stage: str, config: StageConfig) -> dict[str, Any]:
    """Return a worker group with as many pods as the stage has workers, each as large as a worker needs."""
    cluster = config.cluster
    most = count_sharing(cluster) if STAGES[stage].trains else cluster.data_workers
    least = min_workers(cluster) if STAGES[stage].trains else 1
    if isinstance(sweep := getattr(config, "sweep", None), SweepConfig):
        most = count_sharing(cluster) * max(sweep.concurrent, 1)
    cpus = math.ceil(cluster.cpus_per_worker + READER_CPUS)
    gpus = math.ceil(cluster.gpus_per_worker)
    own = {"cpu": str(cpus), "memory": f"{config.submit.memory_gib:g}Gi"}
    own |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    (container,) = group["template"]["spec"]["containers"]
    for amounts in container["resources"].values():
        amounts.pop("nvidia.com/gpu", None)
        amounts |= own
    group["rayStartParams"] |= {"num-cpus": str(cpus), **({"num-gpus": str(gpus)} if gpus else {})}
    return group | {"replicas": max(most, 1), "minReplicas": least, "maxReplicas": max(most, 1)}


class _ReadableDumper(yaml.SafeDumper):
    """YAML dumper that writes multi-line strings as block literals, so that YAML inside YAML stays readable."""

    def represent_str(self, text: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ReadableDumper.add_representer(str, _ReadableDumper.represent_str)


def _to_yaml(document: dict[str, Any]) -> str:
    return str(yaml.dump(document, Dumper=_ReadableDumper, sort_keys=False, width=1000))


def _copy_without_aliases(value: Any) -> Any:
    """Return a deep copy without shared objects, for which YAML would write anchors."""
    if isinstance(value, dict):
        return {key: _copy_without_aliases(item) for key, item in value.items()}
    return [_copy_without_aliases(item) for item in value] if isinstance(value, list) else value


def _apply(document: str, context: str, config: StageConfig) -> None:
    if not which("kubectl"):
        raise UserError("kubectl is not installed; install it, or print the RayJob with --on kuberay")
    try:
        done = subprocess.run(
            ["kubectl", "--context", context, "apply", "-f", "-"],
            input=document,
            capture_output=True,
            text=True,
            timeout=APPLY_S,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"kubectl got no response from context {context} within {APPLY_S} s; check kubectl cluster-info"
        ) from None
    if done.returncode:
        stderr = " ".join(done.stderr.split())[-300:]
        raise UserError(
            f"kubectl could not apply the RayJob in context {context} ({stderr}); fix the cause and run it again"
        )
    console.print(done.stdout.strip(), markup=False)
    console.print(
        f"follow it: kubectl --context {context} -n {config.submit.namespace} get rayjobs -w; its log: docs/jobs.md"
    )
