"""Configuration of jobs: what `--on` sends to a cluster, and what it runs in there."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from presto_core.config.section import Count, Positive, Section

# a dashboard shows a job's environment to whoever may look at the job
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE", re.IGNORECASE)
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


class SubmitConfig(Section):
    """How `--on` submits a command. The code comes either with the image (`image`) or with the job, never both."""

    image: str = ""
    """Image with the code, pinned: registry/name@sha256:<digest>. Empty sends the code of this checkout."""
    working_dir: str = ""
    """Folder of yours to send with the code; the job runs in it. Empty sends none."""
    excludes: tuple[str, ...] = ()
    """Patterns of files not to send, as in a .gitignore; credentials, environments and .git are never sent."""
    max_mb: Positive = 100
    """Largest size in MB to send, before compression."""
    shared_folders: tuple[str, ...] = ()
    """Folders that every node mounts at the same path; other local paths are refused."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the job; secrets belong in the nodes' own environment."""
    stop_grace_seconds: Count = 120
    """Seconds after SIGTERM in which a job can save its state before it is killed."""
    follow: bool = True
    """Stream the job's log until it ends and exit with its status; if false, return as soon as it is submitted."""
    autoscales: bool = False
    """Set it if the cluster adds nodes on demand, so that its present size is not checked."""
    allow_open_dashboard: bool = False
    """Submit to a remote cluster even if it requires no token, which lets anyone run code there."""
    namespace: str = "presto"
    """Kubernetes namespace (--on kuberay)."""
    memory_gib: Positive = 16
    """Memory of each pod in GiB (--on kuberay)."""

    @model_validator(mode="after")
    def _check_single_code_source(self) -> Self:
        if self.image and self.working_dir:
            raise ValueError(
                f"image={self.image} contains the code, and working_dir={self.working_dir} would hide it; "
                "set one of them"
            )
        if self.image and not DIGEST.search(self.image):
            raise ValueError(
                f"image={self.image} is not pinned, so nodes may run different code; give name@sha256:<digest>"
            )
        return self

    @model_validator(mode="after")
    def _check_no_secrets(self) -> Self:
        for name in self.env:
            if SECRET_NAME.search(name):
                raise ValueError(
                    f"env.{name} looks like a secret, which the dashboard would show; set it in the nodes' environment "
                    "(on Kubernetes: a Secret)"
                )
        return self
