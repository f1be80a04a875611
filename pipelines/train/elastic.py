"""Worker groups that shrink where a node is lost and grow where one comes: Ray Train's elasticity, in even shares.

The global batch stays what it is, so only some numbers of workers can share it. Ray knows nothing of batches; the
policy here is its own, but for how many workers it takes. It builds on internals of the Ray version that
constraints.txt pins.
"""

from __future__ import annotations

from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from presto_core.config.schema import valid_worker_counts


class EvenSharesPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """As many workers as there is room for, of those numbers that share the global batch evenly."""

    def __init__(self, scaling_config: ScalingConfig, *, global_batch_size: int) -> None:
        super().__init__(scaling_config)
        self.global_batch_size = global_batch_size

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        """Args: reserved_resources: node -> what Ray keeps there for this run, worker by worker."""
        needed = {name: amount for name, amount in self.scaling_config._resources_per_worker_not_none.items() if amount}
        # the little more is for fractions: 2.4 // 0.8 is 2
        capacity = sum(
            min(int((node.get(name, 0.0) + 1e-6) // amount) for name, amount in needed.items())
            for node in reserved_resources.values()
        )
        counts = valid_worker_counts(self.global_batch_size, max_workers=min(capacity, self.scaling_config.max_workers))
        return max(counts, default=0)


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer whose `ScalingConfig(num_workers=(least, most))` is followed by an `EvenSharesPolicy`."""

    def with_even_shares(self, global_batch_size: int) -> ElasticTrainer:
        self._policy = EvenSharesPolicy(self.scaling_config, global_batch_size=global_batch_size)
        return self

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        return super()._initialize_and_run_controller(**controller | {"scaling_policy": self._policy})
