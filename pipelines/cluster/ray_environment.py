"""Environment variables that Ray reads when it is imported or started; set before the first `import ray`."""

from __future__ import annotations

import os

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray listens on more than 127.0.0.1
    "RAY_num_workers_soft_limit": "10",  # idle workers are kept, so that short tasks start at once
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # next to the codec, encoding spends most time on new memory: PyTorch requests huge pages, and all threads share
    # one heap, because per-thread heaps are returned to the system as soon as they are empty
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_ARENA_MAX": "1",
}


def set_ray_environment() -> None:
    """Set the variables that are not set; called before anything imports Ray."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
