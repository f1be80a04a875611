"""Items are mapped in the command's own process if it trains there too and has one worker; then no Ray starts."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from pipelines.cluster.actor_pool import map_items, open_pool, runs_in_process
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError

LOCAL = ClusterConfig(num_workers=0, data_workers=1)


class Scaler:
    """Multiplies values; refuses negative ones."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["value"] < 0:
            raise UserError(f"value={item['value']} is negative")
        return {"value": self.factor * item["value"]}


def test_items_are_mapped_in_their_order_without_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    had_ray = ray.is_initialized()  # by another test of this process
    with open_pool(LOCAL, 3):
        found = [row["value"] for row in map_items([{"value": n} for n in (3, 1, 2)], Scaler, LOCAL, 10)]
        assert ray.is_initialized() == had_ray
    assert found == [30, 10, 20]


def test_an_actors_refusal_reaches_the_caller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="value=-1"):
        list(map_items([{"value": 1}, {"value": -1}], Scaler, LOCAL, 10))


def test_several_workers_and_clusters_use_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert runs_in_process(LOCAL)
    assert not runs_in_process(ClusterConfig(num_workers=0, data_workers=2))
    assert not runs_in_process(ClusterConfig(num_workers=1, data_workers=1))
    assert not runs_in_process(ClusterConfig(num_workers=0, data_workers=1, address="ray://head:10001"))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert not runs_in_process(LOCAL)
