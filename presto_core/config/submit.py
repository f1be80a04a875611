"""Configuration of jobs: what is sent to a cluster with `--on`, and in what it runs there."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from presto_core.config.section import Count, Positive, Section

# a dashboard shows a job's environment to whoever may look at the job
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE", re.IGNORECASE)
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


class SubmitConfig(Section):
    """How a verb is sent with `--on`. Either the nodes have the code (`image`), or it is sent along; never both."""

    image: str = ""
    """Image the cluster runs, code included, pinned: registry/name@sha256:<digest>. Empty sends the code from here."""
    working_dir: str = ""
    """A folder of yours to send with the code, in which the job then runs; empty sends nothing of yours."""
    excludes: tuple[str, ...] = ()
    """What of it stays here, as in a .gitignore; credentials, environments and .git always do."""
    max_mb: Positive = 100
    """The most that may be sent, before compression."""
    shared_folders: tuple[str, ...] = ()
    """Folders that every node mounts at the same place; other paths of this machine are refused."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the job; no secrets, which belong into the nodes' own environment."""
    stop_grace_seconds: Count = 120
    """Time a job has after SIGTERM to save its state and end, before it is killed."""
    follow: bool = True
    """Show the job's log until it ends, and end with its exit status; otherwise return once it is sent."""
    autoscales: bool = False
    """The cluster adds nodes on demand, so that what it has now is no limit."""
    allow_open_dashboard: bool = False
    """Send to a cluster beyond this machine even though it asks for no token, so that anyone may run code there."""
    namespace: str = "presto"
    """Kubernetes namespace (--on kuberay)."""
    memory_gib: Positive = 16
    """Memory of each pod (--on kuberay)."""

    @model_validator(mode="after")
    def _check_single_code_source(self) -> Self:
        if self.image and self.working_dir:
            raise ValueError(
                f"image={self.image} holds the code, and what working_dir={self.working_dir} sends would hide it; "
                "leave one of them out"
            )
        if self.image and not DIGEST.search(self.image):
            raise ValueError(
                f"image={self.image} is not pinned, so that nodes may run different code; give name@sha256:<digest>"
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
