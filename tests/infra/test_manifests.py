"""Manifests and machine configuration: valid for their consumers, pinned, unprivileged, without secrets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.presets.resolve import load_stage_config
from pipelines.serve.settings import ServeSettings
from tests.support.kustomize import Document, containers, read, render_overlay

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
OVERLAYS = [INFRA / "kuberay/base", *sorted((INFRA / "kuberay/overlays").iterdir())]
SERVICES = [INFRA / "mlflow/kubernetes.yaml", INFRA / "object_store/kubernetes.yaml"]
COMPOSE = [INFRA / "mlflow/compose.yaml", INFRA / "object_store/compose.yaml"]
CLUSTERS = [INFRA / "ray_cluster/aws.yaml", INFRA / "ray_cluster/gcp.yaml"]
CRDS = ROOT.parent / "shared/data/kuberay-crds"
KUBERNETES = "1.32"
RAY_KINDS = ("RayJob", "RayCluster", "RayService")


def documents(source: Path) -> list[Document]:
    return render_overlay(source) if source.is_dir() else read(source)


def relative_name(source: Path) -> str:
    return str(source.relative_to(INFRA))


everything = pytest.mark.parametrize("source", [*OVERLAYS, *SERVICES], ids=relative_name)


def pods(document: Document) -> list[Document]:
    """Return every pod spec in a document."""
    found: list[Document] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if "containers" in node:
                found.append(node)
            for value in node.values():
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)

    look(document)
    return found


def as_pod(spec: Document) -> Document:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=relative_name)
def test_what_the_tests_see_is_what_kustomize_renders(overlay: Path):
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    by_name = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    assert by_name == {(d["kind"], d["metadata"]["name"]): d for d in render_overlay(overlay)}


@everything
def test_kubernetes_kinds_are_valid(source: Path):
    """Unknown fields are rejected too, also in pods inside Ray's kinds, whose own schema is less strict."""
    for document in documents(source):
        if document["kind"] not in RAY_KINDS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        for pod in pods(document):
            kubernetes_validate.validate(as_pod(pod), KUBERNETES, strict=True)


def test_a_misspelt_field_is_refused():
    (job,) = [d for d in render_overlay(INFRA / "kuberay/base") if d["kind"] == "RayJob"]
    whole = as_pod(pods(job)[0] | {"securityContextt": {}})
    with pytest.raises(kubernetes_validate.ValidationError, match="securityContextt"):
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


@cache
def kuberay(kind: str) -> jsonschema.Draft7Validator:
    """Return a validator for KubeRay's schema of a kind, which also rejects unknown fields."""
    (path,) = CRDS.glob(f"ray.io_{kind.lower()}s.yaml")
    (version,) = [v for v in yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"] if v["name"] == "v1"]
    schema = close_schema(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # validated like that of any Kubernetes object
    return jsonschema.Draft7Validator(schema)


def close_schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [close_schema(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: close_schema(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's CRDs are not beside this checkout (../shared/data)")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=relative_name)
def test_ray_kinds_fit_kuberays_schemas(overlay: Path):
    ray = [d for d in render_overlay(overlay) if d["kind"] in RAY_KINDS]
    assert len(ray) == 1
    validator = kuberay(ray[0]["kind"])
    assert [error.message for error in validator.iter_errors(ray[0])] == []
    (error,) = validator.iter_errors(ray[0] | {"spec": ray[0]["spec"] | {"rayVersionn": "1"}})
    assert "rayVersionn" in error.message


@everything
def test_pods_run_without_privileges_and_within_limits(source: Path):
    for document in documents(source):
        for pod in pods(document):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert not any(key in pod for key in ("hostNetwork", "hostPID", "hostIPC"))
            assert not any("hostPath" in volume for volume in pod.get("volumes", []))
        for container in containers(document):
            security, resources = container["securityContext"], container["resources"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= resources["limits"].keys()
            assert {"cpu", "memory"} <= resources["requests"].keys()
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=relative_name)
def test_ray_pods_keep_no_state_and_use_gpus_only_for_training(overlay: Path):
    (ray,) = [d for d in render_overlay(overlay) if d["kind"] in RAY_KINDS]
    spec = ray["spec"].get("rayClusterSpec") or ray["spec"].get("rayClusterConfig") or ray["spec"]
    for pod in pods(ray):
        assert all("emptyDir" in volume or {"secret", "projected"} & volume.keys() for volume in pod["volumes"])
    gpus = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for group in spec["workerGroupSpecs"]
    }
    assert gpus.get("ingest") is None
    assert gpus.get("train", "1") == "1"
    assert gpus.get("serve", "1") == "1"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["enableInTreeAutoscaling"]


def read_pin(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def test_the_manifests_ray_is_the_images():
    (job,) = [d for d in render_overlay(INFRA / "kuberay/base") if d["kind"] == "RayJob"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == read_pin("ray")


@pytest.mark.parametrize("overlay", ["production", "cluster", "service"])
def test_production_has_its_code_in_an_image_that_a_digest_names(overlay: str):
    (ray,) = [d for d in render_overlay(INFRA / "kuberay/overlays" / overlay) if d["kind"] in RAY_KINDS]
    images = {container["image"] for container in containers(ray)}
    assert len(images) == 1
    assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", images.pop())
    assert "working_dir" not in json.dumps(ray)
    assert "runtimeEnvYAML" not in ray["spec"]


def test_the_command_of_the_job_is_one_that_presto_takes():
    """Its settings resolve, and it joins the cluster instead of starting one."""
    for overlay in OVERLAYS:
        for job in (d for d in render_overlay(overlay) if d["kind"] == "RayJob"):
            program, command, *args = job["spec"]["entrypoint"].split()
            assert (program, load_stage_config(command, args).cluster.address) == ("presto", "auto")


def test_the_service_is_one_that_presto_builds():
    """Its Serve config is Ray's, its arguments are the service's, and it lets nobody in without a token."""
    from ray.serve.schema import ServeDeploySchema

    (service,) = [d for d in render_overlay(INFRA / "kuberay/overlays/service") if d["kind"] == "RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(import_module(module), name))
    settings = ServeSettings.model_validate(application.args)
    assert not settings.is_loopback
    token = Path(settings.token_file)
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == read_pin("ray")
    for container in containers(service):
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts[str(token.parent)] == "token"
        assert settings.port in {port["containerPort"] for port in container["ports"]}
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    per_pod = int(float(limits["nvidia.com/gpu"]) / settings.gpus_per_replica)
    assert per_pod * group["maxReplicas"] >= settings.most_replicas
    assert per_pod * settings.cpus_per_replica <= float(limits["cpu"])
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > settings.limits.request_timeout_s
    assert config.http_options.port == settings.port


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    return subprocess.run([program, "--no-color", dockerfile], capture_output=True, text=True, timeout=120)


def test_the_dockerfile_is_clean(tmp_path: Path):
    dockerfile = INFRA / "docker/Dockerfile"
    done = hadolint(dockerfile)
    assert (done.returncode, done.stdout) == (0, "")
    worse = tmp_path / "Dockerfile"
    worse.write_text(dockerfile.read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(worse).stdout


def test_the_image_takes_the_pins_and_the_code_and_nothing_else():
    text = (INFRA / "docker/Dockerfile").read_text()
    copied = {path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for path in line.split()}
    packages = {path for path in copied if path.startswith("infra/docker/")}  # before the code, in a layer of their own
    assert packages == {"infra/docker/requirements.lock", "infra/docker/install_packages.sh"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied - packages == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^ARG PYTHON=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)


@pytest.mark.parametrize("path", CLUSTERS, ids=relative_name)
def test_cluster_launcher_files_fit_rays_schema(path: Path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    for command in config["head_start_ray_commands"][1:]:
        assert "--dashboard-host=127.0.0.1" in command
    assert re.search(r"@sha256:[0-9a-f]{64}$", config["docker"]["image"])
    with pytest.raises(jsonschema.ValidationError, match="max_workerss"):
        validate_config(config | {"max_workerss": 3})


@pytest.mark.parametrize("path", COMPOSE, ids=relative_name)
def test_compose_files_listen_on_localhost_and_take_secrets_from_outside(path: Path):
    for name, service in yaml.safe_load(path.read_text())["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert {"image", "mem_limit", "healthcheck"} <= service.keys(), name
        for key, value in service["environment"].items():
            if key.endswith(("PASSWORD", "SECRET_ACCESS_KEY")):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), f"{key} must have no default"


def test_compose_and_kubernetes_run_the_same_object_store():
    compose = yaml.safe_load((INFRA / "object_store/compose.yaml").read_text())["services"]["object-store"]
    (container,) = containers(documents(INFRA / "object_store/kubernetes.yaml"))
    assert compose["command"] == container["command"]
