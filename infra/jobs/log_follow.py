"""Following a job to its end: its log, whatever happens to the connection, its exit status, and what Ctrl-C means."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import typer

from infra.jobs.ray_jobs import (
    HeadError,
    RayJobsClient,
    is_auth_error,
)
from pipelines.console import console

HEAD_TIMEOUT_S = 180  # for a head that does not answer any more
PAUSE_S = 1.0
QUIET_S = 30.0  # without a line; a connection that was cut may say nothing
STOPPED = 143  # 128 + SIGTERM, as a shell has it
INTERRUPT_PROMPT = "stop the job too? s = stop it, v = leave the view and let it go on, Enter = go on watching: "


@dataclass
class LogFollower:
    """A job that is watched.

    Attributes:
        quiet: show nothing of its log.
        shown: characters of the log that are on the screen.
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
        """Watch until the job ends; its exit status.

        Raises:
            HeadError: the head is gone for minutes; the job may go on.
            UserError: the token is refused, or the job is not known any more.
            typer.Exit: only the view was to end.
        """
        while True:
            try:
                return asyncio.run(self._watch())
            except KeyboardInterrupt:
                self._handle_interrupt()

    async def _watch(self) -> int:
        if not self.announced:  # said in here, where Ctrl-C already asks
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
                console.print(f"job {self.job_id} is still at work after {self.limit_s:g} s", markup=False)
                raise typer.Exit(124)
            await asyncio.sleep(PAUSE_S)

    async def _tail(self) -> None:
        """Show what comes, until the log ends or the connection does, or nothing comes for a while."""
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
        except Exception as error:  # aiohttp's, Ray's, the system's: whether it matters, the next question tells
            if is_auth_error(error):
                raise

    def _show(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self.shown += len(text)

    async def _fetch_info(self) -> Any:
        """What is known of the job; None while the head does not answer."""
        try:
            info = await asyncio.to_thread(self.head.get_info, self.job_id)
        except HeadError as error:
            now = time.monotonic()
            if not self.lost_at:
                self.lost_at = now
                console.print(f"{error}; trying again", style="yellow", markup=False)
            if now - self.lost_at > HEAD_TIMEOUT_S:
                raise HeadError(f"{error}; the job may go on: presto jobs logs -f {self.job_id}") from None
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
        """Ask what Ctrl-C meant; where nobody can be asked, it means the view."""
        try:
            console.print(f"\njob {self.job_id} goes on; {INTERRUPT_PROMPT}", end="", markup=False)
            answer = sys.stdin.readline()
        except (KeyboardInterrupt, OSError, ValueError):
            answer = ""
        if answer.strip().lower().startswith("s"):
            self.head.stop(self.job_id)
            console.print(f"job {self.job_id} is told to end; it saves its state first", markup=False)
        elif answer.strip() or not answer:  # Enter is an empty line, the end of input is no line
            console.print(f"job {self.job_id} goes on; follow it: presto jobs logs -f {self.job_id}", markup=False)
            raise typer.Exit(130)
