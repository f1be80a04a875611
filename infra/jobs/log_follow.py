"""Follow a job until it ends: stream its log across reconnects, return its exit status, handle Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from infra.jobs.ray_jobs import HeadError, RayJobsClient, is_auth_error
from pipelines.cluster.shutdown import TerminatedError
from pipelines.console import console
from pipelines.terminal import print_log

HEAD_TIMEOUT_S = 180  # how long an unresponsive head is retried
PAUSE_S = 1.0
QUIET_S = 30.0  # without a line before reconnecting: a lost connection may raise no error
STOPPED = 143  # 128 + SIGTERM, as in a shell
INTERRUPT_PROMPT = "stop the job too? s = stop it, v = detach and let it run, Enter = keep following: "


@dataclass
class LogFollower:
    """Follows one job.

    Attributes:
        quiet: do not print the job's log.
        limit_s: stop following after so many seconds; 0 is no limit.
        shown: characters of the log printed so far.
    """

    head: RayJobsClient
    job_id: str
    quiet: bool = False
    limit_s: float = 0.0
    shown: int = 0
    began: float = field(default_factory=time.monotonic)
    lost_at: float = 0.0
    announced: bool = False

    def follow(self) -> int:
        """Follow the job until it ends and return its exit status.

        Raises:
            HeadError: the head has not responded for `HEAD_TIMEOUT_S`; the job may still run.
            UserError: the head rejects the token or no longer knows the job.
            SystemExit: the user detached, or `limit_s` has passed.
        """
        while True:
            try:
                return asyncio.run(self._watch())
            except TerminatedError:
                raise  # nobody is there to ask
            except KeyboardInterrupt:
                self._handle_interrupt()

    async def _watch(self) -> int:
        if not self.announced:  # printed here, where Ctrl-C is already handled
            self.announced = True
            console.print(f"waiting for job {self.job_id} (Ctrl-C asks whether to stop it)", markup=False)
        while True:
            if not self.quiet:
                await self._tail()
            info = await self._fetch_info()
            if info and info.status.is_terminal():
                if not self.quiet:
                    self._show((await asyncio.to_thread(self.head.get_logs, self.job_id))[self.shown :])
                return self._report_end(info)
            if self.limit_s and time.monotonic() - self.began > self.limit_s:
                console.print(f"job {self.job_id} is still running after {self.limit_s:g} s", markup=False)
                raise SystemExit(124)
            await asyncio.sleep(PAUSE_S)

    async def _tail(self) -> None:
        """Print new output until the log ends, the connection fails, or nothing arrives for `QUIET_S`."""
        passed = 0
        try:
            async with aclosing(self.head.client.tail_job_logs(self.job_id)) as lines:
                while True:
                    async with asyncio.timeout(QUIET_S):
                        text = await anext(lines)
                    passed, new = passed + len(text), text[max(self.shown - passed, 0) :]
                    self._show(new)
        except StopAsyncIteration:
            return
        except Exception as error:  # of aiohttp, Ray or the OS: the next status request shows whether it matters
            if is_auth_error(error):
                raise

    def _show(self, text: str) -> None:
        print_log(text)
        self.shown += len(text)

    async def _fetch_info(self) -> Any:
        """Return the job's info, or None while the head does not respond."""
        try:
            info = await asyncio.to_thread(self.head.get_info, self.job_id)
        except HeadError as error:
            now = time.monotonic()
            if not self.lost_at:
                self.lost_at = now
                console.print(f"{error}; retrying", style="yellow", markup=False)
            if now - self.lost_at > HEAD_TIMEOUT_S:
                raise HeadError(f"{error}; the job may still run: presto jobs logs -f {self.job_id}") from None
            return None
        self.lost_at = 0.0
        return info

    def _report_end(self, info: Any) -> int:
        status = str(info.status.value)
        code = info.driver_exit_code
        if code is None:
            code = {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status, 1)
            if status == "FAILED":
                console.print(" ".join(str(info.message or "").split())[-500:], style="red", markup=False)
        console.print(f"job {self.job_id}: {status}, exit status {code}", markup=False)
        return int(code) if 0 <= code < 256 else 128 + abs(int(code)) % 128

    def _handle_interrupt(self) -> None:
        """Ask whether Ctrl-C stops the job or only detaches; without an answer, detach."""
        try:
            console.print(f"\njob {self.job_id} is still running; {INTERRUPT_PROMPT}", end="", markup=False)
            answer = sys.stdin.readline()
        except (KeyboardInterrupt, OSError, ValueError):
            answer = ""
        if answer.strip().lower().startswith("s"):
            self.head.stop(self.job_id)
            console.print(f"job {self.job_id} is stopping; it saves its state first", markup=False)
        elif answer.strip() or not answer:  # Enter is an empty line, end of input no line at all
            console.print(f"job {self.job_id} still runs; follow it: presto jobs logs -f {self.job_id}", markup=False)
            raise SystemExit(130)
