"""Two drivers of one run on two machines, with the store cut off from the one at work: exactly one of them writes.

The machines are processes that name themselves differently; the cut is in a proxy before the object store.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from pipelines.tracking.client import open_tracker
from presto_core.config.sections import TrackingConfig
from tests.servers.fault_proxy import FaultProxy
from tests.support.fault_runs import Parents, Training, last_step, resume_step, wait_until
from tests.support.processes import PATIENCE_S, Attempt, wait_for
from tests.support.synthetic_dataset import make_dataset

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(1800)]
STEPS = 1200
# a lease that expires after five seconds, on a machine that is called so, and a line per row
MACHINE = """
from pipelines import console
from pipelines.storage import lease, lease_file
lease_file._machine = lambda: "{name}"
lease.RENEW_S, lease.EXPIRY_S = 0.5, 5.0
console.LINE_EVERY_S, console.FIRST_LINE_S = 0.0, 3600.0
from infra.cli import main as cli
cli.main()
"""


@dataclass
class Machine:
    """A machine of its own, from which the store is reached at an endpoint."""

    name: str
    endpoint: str

    def start(self, training: Training, begin) -> Attempt:
        args = [f"{key}={value}" for key, value in ({"storage.root": training.root} | training.keys).items()]
        command = [sys.executable, "-c", MACHINE.format(name=self.name), training.command, *args, "--wait"]
        attempt: Attempt = begin(command, training.cwd, {"AWS_ENDPOINT_URL": self.endpoint})
        training.attempts.append(attempt)
        return attempt


def has_gone_on(attempt: Attempt) -> bool:
    return 0 < resume_step(attempt) + 4 < last_step(attempt)


def test_a_driver_that_is_cut_off_from_the_store_is_succeeded_and_ends_when_it_is_back(
    begin, tmp_path: Path, object_store: Server
):
    data = Parents(make_dataset(str(tmp_path / "data"), shard_rows=(8,)).uri)
    root = f"s3://latents/partition/{tmp_path.name}"
    calm = Training("teacher", tmp_path / "calm", data, STEPS)
    calm.finish_in_process()
    run = replace(calm, cwd=tmp_path / "run", settings={"storage.root": root}, attempts=[])
    run.cwd.mkdir()
    with FaultProxy(object_store.endpoint) as proxy, ExitStack() as partition:
        cut_off = Machine("near", proxy.endpoint).start(run, begin)
        assert wait_until(cut_off, 20), cut_off.stderr
        partition.enter_context(proxy.down())
        successor = Machine("far", object_store.endpoint).start(run, begin)
        assert wait_for(lambda: has_gone_on(successor) or not successor.is_running, PATIENCE_S)
        assert has_gone_on(successor), successor.stderr
        assert cut_off.is_running, cut_off.stderr  # it trains on, and keeps what it cannot write
        steps = last_step(successor)
        partition.close()
        assert cut_off.exit_code() == 1
        assert "taken over by process" in cut_off.stderr
        assert successor.exit_code() == 0, successor.stderr
        assert last_step(successor) > steps
    assert run.outcome() == calm.outcome()
    client = open_tracker(TrackingConfig()).client
    assert len(client.search_model_versions("name = 'presto-teacher'")) == 1
    left = open_folder(root).child("runs").list_files(recursive=True, missing_ok=True)
    assert [info.path for info in left] == []
