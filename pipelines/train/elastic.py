"""Worker groups that shrink when a node is lost and grow when one joins: Ray Train's elasticity, in even shares.

The global batch stays the same, so only some numbers of workers can share it. Ray does not know about batches; the
policy here is Ray's own except for the number of workers. It builds on internals of the Ray version that
constraints.txt pins.
"""

from __future__ import annotations

from typing import Any

from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from pipelines.train.failures import DailyTrainer
from presto_core.config.workers import valid_worker_counts


class EvenSharesPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Uses as many workers as fit, of those numbers that share the global batch evenly."""

    def __init__(self, scaling_config: ScalingConfig, *, global_batch_size: int) -> None:
        super().__init__(scaling_config)
        self.global_batch_size = global_batch_size

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """Return the number of workers that fit in `reserved_resources`: node -> what Ray keeps there for this run."""
        needed = {name: amount for name, amount in self.scaling_config._resources_per_worker_not_none.items() if amount}
        # 1e-6 makes up for rounding: 2.4 // 0.8 is 2
        capacity = sum(
            min(int((node.get(name, 0.0) + 1e-6) // amount) for name, amount in needed.items())
            for node in reserved_resources.values()
        )
        counts = valid_worker_counts(self.global_batch_size, max_workers=min(capacity, self.scaling_config.max_workers))
        return max(counts, default=0)


class ElasticTrainer(DailyTrainer):
    """A trainer that scales within `ScalingConfig(num_workers=(min, max))` by an `EvenSharesPolicy`."""

    def with_even_shares(self, global_batch_size: int) -> ElasticTrainer:
        self._policy = EvenSharesPolicy(self.scaling_config, global_batch_size=global_batch_size)
        return self

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        return super()._initialize_and_run_controller(**controller | {"scaling_policy": self._policy})
