"""Client of a Ray head: its Jobs API, its nodes, and its token authentication."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.jobs.targets import API_SERVER, is_loopback_url
from pipelines.console import console
from presto_core.errors import UserError

CONNECT_S, ANSWER_S = 5, 60
MAX_NODES = 10_000
TOKEN_FILE = "~/.ray/auth_token"
DENIED = (401, 403)


class HeadError(UserError):
    """The head does not respond; it may later."""


class RayJobsClient:
    """Client of the Ray Jobs API at an address.

    Args:
        address: http(s)://HEAD:8265 or ray://HEAD:10001.

    Raises:
        HeadError: the head does not respond.
        UserError: the head rejects the token or requires one, or its Ray is too old.
    """

    def __init__(self, address: str) -> None:
        self.address, self.token = address, find_token()
        if address.startswith("ray://"):
            self.address = self._resolve_dashboard(address)
        with self._translate_errors():
            self.client = _make_client(self.address, self.token)

    @cached_property
    def allows_anonymous(self) -> bool:
        """Whether the head accepts jobs without a token."""
        import requests

        with self._translate_errors():
            answer = requests.get(f"{self.address}/api/version", timeout=(CONNECT_S, ANSWER_S))
            return answer.status_code not in DENIED

    def list_node_resources(self) -> list[dict[str, float]]:
        """Return the resources of each live node, under Ray's names."""
        query = f"/api/v0/nodes?detail=1&limit={MAX_NODES}&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        with self._translate_errors():
            answer = self.client._do_request("GET", query)
            answer.raise_for_status()
            return [node["resources_total"] for node in answer.json()["data"]["result"]["result"]]

    def list_jobs(self) -> list[Any]:
        """Return the submitted jobs, newest first."""
        with self._translate_errors():
            jobs = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: -(job.start_time or 0))

    def find_job(self, name: str) -> Any:
        """Return the job with this id, or the newest job of the run with this id.

        Raises:
            UserError: there is no such job.
        """
        jobs = self.list_jobs()
        for job in jobs:
            if name in (job.submission_id, run_id_of(job)):
                return job
        known = ", ".join(job.submission_id for job in jobs[:8]) or "none"
        raise UserError(f"no job {name} at {self.address}; use one of: {known}")

    def get_info(self, job_id: str) -> Any:
        with self._translate_errors():
            return self.client.get_job_info(job_id)

    def get_logs(self, job_id: str) -> str:
        with self._translate_errors():
            return str(self.client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """Stop a job: SIGTERM, and SIGKILL after its grace period."""
        with self._translate_errors():
            self.client.stop_job(job_id)

    def send(self, *, entrypoint: str, job_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        with self._translate_errors():
            self.client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=metadata
            )

    def _resolve_dashboard(self, address: str) -> str:
        """Return the Jobs API address of the cluster behind a Ray client server."""
        from pipelines.cluster.session import check_reachable

        check_reachable(address)
        if self.token:
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported
            os.environ.setdefault("RAY_AUTH_TOKEN", self.token)
        import ray

        with self._translate_errors(), _without_env():
            context = ray.init(address, logging_level=logging.ERROR)
            ray.shutdown()
        return f"http://{context.dashboard_url}"

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise connection and HTTP errors as one `UserError` message."""
        import requests

        try:
            yield
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"the certificate of {self.address} is not trusted ({_root_cause(error)}); set REQUESTS_CA_BUNDLE"
            ) from None
        except (OSError, requests.exceptions.RequestException) as error:
            raise HeadError(
                f"no Ray head responds at {self.address} ({_root_cause(error)}); check that it runs and that --on "
                "is its address"
            ) from None
        except UserError:
            raise
        except Exception as error:
            if is_auth_error(error):
                raise UserError(self._auth_error_message()) from None
            kind = HeadError if "status code 5" in str(error) else UserError
            raise kind(f"{self.address} rejected the request: {_root_cause(error)}") from error

    def _auth_error_message(self) -> str:
        if not self.token:
            return f"{self.address} requires a token and none is set; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        return f"{self.address} rejects the token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


def run_id_of(job: Any) -> str:
    return str((job.metadata or {}).get("presto.run_id", ""))


def find_token() -> str:
    """Return the token of this environment, of the file it names, or of Ray's own file; empty if there is none.

    Raises:
        UserError: the token file cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named or TOKEN_FILE).expanduser()
    if not named and not path.is_file():
        return ""
    try:
        if path.stat().st_mode & 0o077:  # Ray creates it with mode 600
            path.chmod(0o600)
            console.print(f"{path} was readable by other users; its mode is 600 now", style="yellow")
        return path.read_text().strip()
    except OSError as error:
        raise UserError(f"the token file {path} cannot be read ({error.strerror}); fix RAY_AUTH_TOKEN_PATH") from None


def warn_plain_http(address: str, token: str) -> None:
    if token and address.startswith("http://") and not is_loopback_url(address):
        console.print(
            f"{address} is not encrypted, so the token can be read from the traffic; use https or a tunnel: "
            "ssh -L 8265:localhost:8265 HEAD",
            style="yellow",
        )


def is_auth_error(error: BaseException) -> bool:
    """Whether an error of Ray's client means that the token is wrong or missing."""
    return type(error).__name__ == "AuthenticationError" or any(f"status code {c}" in str(error) for c in DENIED)


def _make_client(address: str, token: str) -> Any:
    """Return Ray's client with request timeouts; it sends the token whatever Ray's own auth mode is."""
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **request: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, ANSWER_S), **request})

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _without_env():
        return Client(address, headers=headers, verify=os.environ.get("REQUESTS_CA_BUNDLE") or True)


@contextmanager
def _without_env() -> Iterator[None]:
    """Hide the addresses of this environment, which Ray would prefer to the given one."""
    named = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", API_SERVER) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(named)


def _root_cause(error: BaseException) -> str:
    """Return the innermost error message on one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200].rstrip(".")
