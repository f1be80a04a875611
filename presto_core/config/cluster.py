"""Configuration of Ray: which cluster, how many workers, what each takes, and how they hold the networks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from presto_core.config.device_name import AUTO, DeviceName
from presto_core.config.section import Count, Positive, Section

ShardingMode = Literal["replicate", "shard"]


def _check_workers(value: object) -> object:
    """Refuse in one message what is of neither type; pydantic's would name both."""
    is_number = isinstance(value, int) or (isinstance(value, str) and value.isdigit())
    if value != AUTO and not (is_number and not isinstance(value, bool) and int(value) >= 0):  # type: ignore[call-overload]
        raise ValueError(f"must be auto or a whole number, at least 0, not {value!r}")
    return value


Workers = Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], BeforeValidator(_check_workers)]


class ParallelConfig(Section):
    """How workers hold each network. `replicate`: each worker holds a full copy (DDP). `shard`: each holds a part of
    its weights, gradients, moments and EMA (FSDP2), and every block is gathered as it runs. Results differ only by
    rounding."""

    teacher: ShardingMode = "replicate"
    """The network that `train-teacher` trains."""
    layers: ShardingMode = "replicate"
    """The network that `distill-layers` trains."""
    generator: ShardingMode = "replicate"
    """The few-step generator that `distill-steps` trains."""
    fake_score: ShardingMode = "replicate"
    """The fake score in `distill-steps`."""
    real_score: ShardingMode = "replicate"
    """The frozen teacher in `distill-steps`."""
    offload_real_score: bool = False
    """Keep a sharded real score in CPU memory, and only the running block on the GPU."""

    @model_validator(mode="after")
    def _check_offload_sharded(self) -> Self:
        if self.offload_real_score and self.real_score == "replicate":
            raise ValueError("offload_real_score=true needs real_score=shard")
        return self


class ClusterConfig(Section):
    """Ray: which cluster, how many workers, and what each takes."""

    address: str = ""
    """Ray address to join; empty uses RAY_ADDRESS if it is set, else starts Ray on this machine."""
    num_workers: Workers = "auto"
    """Number of training workers. 0 runs the same loop inside this process, without Ray Train, and gives the same bits
    as one worker. `auto` is 1 on a cluster that is joined or if gpus_per_worker reserves a GPU, else 0, which uses
    this machine's first GPU if it has one. The trials of a sweep always train in their own processes."""
    min_workers: int = Field(0, ge=0)
    """Fewest workers with which training continues after losing nodes; as nodes return, it grows again up to
    num_workers. It uses every number in between that divides the global batch. 0 requires all num_workers."""
    parallel: ParallelConfig = ParallelConfig()
    cpus_per_worker: Positive = 0.8
    """CPU cores that Ray reserves for each worker; can be a fraction."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs that Ray reserves for each worker; a fraction shares a GPU. With 0, Ray's workers compute on CPUs."""
    device: DeviceName = "auto"
    """Device on which models, codec, text encoder and embedders run: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is a GPU if
    there is one, else the CPU. Ray's workers see only GPUs that gpus_per_worker reserves. The same seed gives the
    same bits on one kind of device, and the device is not part of a run's id."""
    torch_threads: Count = 1
    """PyTorch threads per worker, so that workers do not compete for cores."""
    reader: Literal["auto", "ray", "threads"] = "auto"
    """What reads shards for training workers: `ray`, Ray Data tasks on any node with spare CPUs; or `threads`, threads
    of the worker itself, at half the cost. `auto` is `ray` on a cluster that is joined and `threads` on one machine."""
    shard_cache_gb: float = Field(10, ge=0)
    """Size in GB of each node's shard cache, in $PRESTO_CACHE or ~/.cache/presto, which saves later epochs from
    fetching; a tenth of the disk stays free. 0 turns the cache off."""
    data_workers: Count = 2
    """Parallel encoders in `ingest` and parallel samplers in `evaluate`. With 1 and num_workers=0, both work in the
    command's own process, without Ray."""
    cpus: int = Field(0, ge=0)
    """CPU cores that a locally started Ray can use; 0 means all."""
    object_store_mb: int = Field(512, ge=80)
    """Shared memory in MB of a locally started Ray."""
    wait_seconds: int = Field(0, ge=0)
    """Seconds to wait for nodes if the cluster is too small; they are requested from its autoscaler. 0 fails at once.
    """
    wait_for_run: bool = False
    """Wait for another process that works on the same run to end, instead of being refused, and for the head of a
    cluster that is joined while it does not answer; `--wait` sets it."""
    max_failures: int = Field(2, ge=0)
    """How often a training worker group can be restarted from its last checkpoint within 24 hours; 0 means never."""

    @model_validator(mode="after")
    def _check_reserved_gpus_used(self) -> Self:
        if self.gpus_per_worker and self.device in ("cpu", "mps"):
            raise ValueError(
                f"device={self.device} leaves the GPUs of gpus_per_worker={self.gpus_per_worker:g} idle; use "
                "device=auto or gpus_per_worker=0"
            )
        if self.gpus_per_worker and ":" in self.device:
            raise ValueError(f"device={self.device} with gpus_per_worker: Ray chooses a worker's GPU; use device=cuda")
        return self

    @model_validator(mode="after")
    def _check_worker_range(self) -> Self:
        if self.num_workers == "auto":
            if self.min_workers:
                raise ValueError(f"min_workers={self.min_workers} needs a number as num_workers, not auto")
        elif self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} must not be above num_workers={self.num_workers}")
        return self
