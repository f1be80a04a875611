"""Work on a cluster that may lose its head: with `--wait`, it starts again whenever the head is back."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.cluster.session import HeadAwayError, answers
from pipelines.console import print_warning
from presto_core.config.sections import ClusterConfig

POLL_S = 2.0
NODES_BACK_S = 900  # for the other nodes, which join a head that is back one by one
SHORT_S, MAX_SHORT = 120.0, 5  # so many losses, each so soon after a start, are no accident


def run_while_head_returns(work: Callable[[ClusterConfig], object], config: ClusterConfig) -> None:
    """Call `work`, and with `wait_for_run` again whenever its cluster's head is back.

    A run is taken anew each time, so its lease has a new epoch: workers of the lost cluster that still live for a
    while write nothing more.

    Args:
        work: resumes where it was when called again; gets the settings to use.

    Raises:
        HeadAwayError: `wait_for_run` is not set, or the head was lost again and again soon after a start.
    """
    short = 0
    while True:
        began = time.monotonic()
        try:
            work(config)
        except HeadAwayError as error:
            if error.was_joined:
                short = short + 1 if time.monotonic() - began < SHORT_S else 1
            if not config.wait_for_run or short > MAX_SHORT:
                raise
            problem, _, _ = str(error).partition(";")  # without what to do if it did not wait
            print_warning(f"{problem}; waiting for the head of the Ray cluster (--wait)")
            _wait_for_head(error.address)
            config = config.model_copy(update={"wait_seconds": max(config.wait_seconds, NODES_BACK_S)})
        else:
            return


def _wait_for_head(address: str) -> None:
    """Wait until an address accepts connections."""
    time.sleep(POLL_S)  # a head that restarts may still accept some
    while not answers(address):
        time.sleep(POLL_S)
