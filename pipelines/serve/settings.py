"""Settings of the service, as `presto serve` and a Serve config file give them; imports neither Ray nor torch."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from presto_core.config.loader import ConfigError
from presto_core.config.sections import StorageConfig, TrackingConfig

MIN_TOKEN_LETTERS = 16
Seconds = Annotated[float, Field(gt=0, le=3600)]
Whole = Annotated[int, Field(ge=1, le=100_000)]


class Limits(BaseModel):
    """What a request can ask for; a request beyond it is refused before anything is computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_steps: Whole = 64
    max_seconds: Seconds = 60.0
    max_clips: Whole = 8
    """Most clips per request."""
    max_prompt_letters: Whole = 2000
    max_json_bytes: Whole = 65_536
    max_upload_mib: Whole = 32
    max_upload_seconds: Seconds = 120.0
    """Most seconds of sound in an upload, once decoded."""
    body_timeout_s: Seconds = 20.0
    """Seconds that a client has to send its request."""
    request_timeout_s: Seconds = 120.0
    """Seconds for the answer, including the time in the queue."""


class ServeSettings(BaseModel):
    """Everything that the application is built from; it travels to every replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = ""
    """Default model; empty takes the registry's champion if there is one, else the package's."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    replicas: Whole = 1
    max_replicas: int = Field(0, ge=0, le=10_000)
    """If above `replicas`, Serve adds replicas up to this number as requests queue up; 0 adds none."""
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs reserved for each replica; a fraction shares a GPU, 0 reserves none."""
    device: str = "auto"
    threads: int = Field(0, ge=0, le=1024)
    """Threads of a replica; 0 takes its CPUs, at least one."""
    autocast: Literal["none", "bf16"] = "none"
    """Precision inside networks."""
    compile: bool = False
    """Compile models before they serve, for clips of their own length in batches up to `max_batch`."""
    max_batch: Whole = 8
    max_wait_ms: float = Field(30.0, ge=0, le=10_000)
    """Longest time that the first request of a batch waits for others."""
    max_queued: int = Field(0, ge=0, le=1_000_000)
    """Clips accepted beyond those that the replicas work on; 0 means four batches per replica."""
    max_models: Whole = 4
    """Models held in memory by a replica at the same time."""
    follow_s: float = Field(5.0, gt=0, le=3600)
    """Seconds between two looks at the registry."""
    token_file: str = ""
    log_file: str = ""
    """File that receives one line of JSON per request; empty means standard output, which Ray keeps in its session
    folder."""
    log_prompts: bool = False
    limits: Limits = Limits()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas={self.max_replicas} must be at least replicas={self.replicas}")
        return self

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.replicas

    @property
    def ongoing_per_replica(self) -> int:
        """Requests that a replica holds: the batch at work and the one that forms meanwhile."""
        return 2 * self.max_batch

    @property
    def queue_length(self) -> int:
        return self.max_queued or 4 * self.max_batch * self.most_replicas

    @property
    def max_accepted(self) -> int:
        """Clips that are at work or wait, over all replicas; one more is refused with 429."""
        return self.ongoing_per_replica * self.most_replicas + self.queue_length

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def check_access(settings: ServeSettings) -> None:
    """Check that only this machine reaches a service without a token.

    Raises:
        ConfigError: the host is no loopback address and there is no token file, or the file has no good token.
    """
    if settings.token_file:
        read_token(settings.token_file)
    elif not settings.is_loopback:
        raise ConfigError(
            f"--host {settings.host} lets other machines in, and there is no token; write one to a file that only you "
            "can read, and name it with --token-file, or keep --host 127.0.0.1"
        )


def read_token(path: str) -> str:
    """Return the token in a file.

    Raises:
        ConfigError: it cannot be read, others can read it, or the token is short or not plain ASCII.
    """
    file = Path(path)
    try:
        token = file.read_text(encoding="ascii").strip()
        is_shared = bool(file.stat().st_mode & 0o007)
    except OSError as error:
        raise ConfigError(f"--token-file {path}: {error.strerror or error}; write a token to it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--token-file {path} holds more than ASCII; write letters and digits to it") from None
    if is_shared:
        raise ConfigError(f"--token-file {path} can be read by everyone; run chmod o-rwx on it")
    if len(token) < MIN_TOKEN_LETTERS or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file {path} holds a token of {len(token)} characters; it takes {MIN_TOKEN_LETTERS} or more "
            "without spaces, such as those of: openssl rand -hex 32"
        )
    return token
