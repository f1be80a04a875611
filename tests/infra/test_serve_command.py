"""`presto serve` before anything starts: what would run, and mistakes that end in one message."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.serve.run import check_port, serving
from pipelines.serve.settings import ServeSettings
from presto_core.config.loader import ConfigError
from presto_core.config.sections import ClusterConfig
from presto_core.errors import UserError


def run(*args: str) -> str:
    done = CliRunner().invoke(app, ["serve", *args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_dry_run_shows_the_settings_of_the_service(empty: Path):
    options = ("--model", "presto-tiny-s", "--gpus", "0.5", "--max-replicas", "3", "--dry-run")
    shown = json.loads(run(*options, "limits.max_seconds=30", "storage.root=here", "cluster.device=cpu"))
    assert (shown["model"], shown["gpus_per_replica"], shown["max_replicas"]) == ("presto-tiny-s", 0.5, 3)
    assert (shown["limits"]["max_seconds"], shown["storage"]["root"], shown["device"]) == (30.0, "here", "cpu")
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0"),
        (("--token-file", "none"), "none"),
        (("limits.max_seconds=-1",), "limits.max_seconds"),
        (("limits.max_hours=1",), "limits.max_hours"),
        (("limits.max_second=1",), "limits.max_seconds"),
        (("--replicas", "3", "--max-replicas", "2"), "max_replicas=2"),
        (("storage.rooot=x",), "storage.rooot"),
        (("a prompt",), "a prompt"),
        (("generate.steps=8",), "generate.steps=8"),
        (("inputs.generator=presto-tiny-s",), "--model"),
    ],
)
def test_a_mistake_is_named(empty: Path, args: tuple[str, ...], named: str):
    with pytest.raises(ConfigError) as caught:
        run(*args, "--dry-run")
    assert named in str(caught.value)
    assert len(str(caught.value)) < 500  # not all settings


@pytest.mark.parametrize("model", ["no-such", "presto-tiny-x", "presto-generator@7", "/tmp"])
def test_a_model_that_is_not_there_is_named_before_anything_starts(empty: Path, model: str):
    had_ray = has_ray_started()  # by another test of this process
    with pytest.raises(UserError) as caught, serving(ServeSettings(model=model), ClusterConfig()):
        pass
    assert model in str(caught.value)
    assert has_ray_started() == had_ray


def has_ray_started() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError) as caught:
            check_port(ServeSettings(port=port))
    assert str(port) in str(caught.value)


def test_what_may_wait_grows_with_replicas_and_batches():
    small, large = ServeSettings(max_batch=2), ServeSettings(max_batch=8, replicas=2, max_replicas=4)
    assert (small.max_accepted, large.max_accepted) == (2 * 2 + 4 * 2, 4 * 2 * 8 + 4 * 8 * 4)
    assert ServeSettings(max_batch=2, max_queued=1).max_accepted == 5
