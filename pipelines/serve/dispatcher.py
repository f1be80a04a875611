"""The dispatcher: admits requests as long as there is room, sends clips to replicas, and sends a lost one again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError

from pipelines.serve.clips import ClipJob, EditJob, MadeClip, OfferedModel
from pipelines.serve.metrics import ServiceMetrics
from pipelines.serve.refusal import Refusal, RefusedError, refuse
from pipelines.serve.sent_piece import SentPiece
from pipelines.serve.settings import ServeSettings

ATTEMPTS = 4
LOST = (ActorDiedError, ActorUnavailableError, RayActorError, DeploymentUnavailableError)
MODELS_FRESH_S = 1.0
LONGEST_RETRY_AFTER_S = 60


class Dispatcher:
    """Between HTTP and the replicas; lives in one event loop.

    Args:
        replicas: handle of the deployment that makes clips.
    """

    def __init__(self, replicas: Any, settings: ServeSettings, metrics: ServiceMetrics) -> None:
        self._replicas, self._settings, self._metrics = replicas, settings, metrics
        self._accepted = 0
        self._clip_s = 1.0  # running mean of a clip's share of its batch's time
        self._models: tuple[float, list[OfferedModel]] = (-math.inf, [])

    async def make(self, jobs: list[ClipJob] | list[EditJob]) -> list[MadeClip]:
        """Return the clips of one request.

        Raises:
            RefusedError: 429 if there is no room, 504 if it takes too long, or what a replica refuses.
        """
        deadline = asyncio.get_running_loop().time() + self._settings.limits.request_timeout_s
        with self._admit(len(jobs)):
            async with self._limit_time(deadline):
                answers = await self._make_all(jobs)
        for answer in answers:
            self._note(answer)
        return answers

    async def stream(self, job: ClipJob) -> AsyncGenerator[MadeClip | bytes]:
        """Yield what a piece is, with the beginning of its WAV, then the rest of it in parts.

        A replica that dies is replaced by one that makes the same piece again; what was sent of it is left out.

        Raises:
            RefusedError: as `make`; after the first part, too, if all of it takes too long or no replica is left.
        """
        started = time.monotonic()
        deadline = asyncio.get_running_loop().time() + self._settings.limits.request_timeout_s
        with self._admit(1):
            sent = SentPiece()
            for attempt in range(1, ATTEMPTS + 1):
                response = self._replicas.options(stream=True).stream_piece.remote(job)
                sent.start_again()
                try:
                    async with aclosing(self._iter_parts(response, deadline)) as parts:
                        async for part in parts:
                            if missing := sent.take(part):
                                yield missing
                except LOST:
                    await self._wait_after_loss(attempt)
                    continue
                if sent.head is not None:
                    self._note(replace(sent.head, took_ms=(time.monotonic() - started) * 1e3))
                return
            raise refuse(503, "replicas died while they made this", "try again later", headers={"Retry-After": "5"})

    async def _iter_parts(self, response: Any, deadline: float) -> AsyncGenerator[MadeClip | bytes]:
        """Yield what a replica yields, up to the deadline; ends its work if nobody reads on."""
        is_over = False
        try:
            while True:
                with self._explain_errors(response):
                    async with self._limit_time(deadline):
                        part = await anext(response, None)
                if part is None:
                    is_over = True
                    return
                if isinstance(part, Refusal):
                    raise RefusedError(part)
                yield part
        finally:
            if not is_over:
                response.cancel()

    async def list_models(self) -> list[OfferedModel]:
        """Return what can be asked for, as a replica knew it a moment ago."""
        fetched_at, models = self._models
        if time.monotonic() - fetched_at > MODELS_FRESH_S:
            models = await self._send("list_models")
            self._models = (time.monotonic(), models)
        return models

    @contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        if self._accepted + count > self._settings.max_accepted:
            raise self._busy()
        self._accepted += count
        self._metrics.accepted.set(self._accepted)
        try:
            yield
        finally:
            self._accepted -= count
            self._metrics.accepted.set(self._accepted)

    def _busy(self) -> RefusedError:
        self._metrics.refused.inc()
        wait_s = math.ceil(self._accepted * self._clip_s / self._settings.replicas)
        seconds = min(max(wait_s, 1), LONGEST_RETRY_AFTER_S)
        return refuse(
            429, f"{self._accepted} clips are at work or waiting", f"try again in {seconds} s",
            value=self._accepted, headers={"Retry-After": str(seconds)},
        )  # fmt: skip

    async def _make_all(self, jobs: list[ClipJob] | list[EditJob]) -> list[MadeClip]:
        tasks = [asyncio.ensure_future(self._make_one(job)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one was refused, or the client left: nobody needs the others
                task.cancel()

    async def _make_one(self, job: ClipJob | EditJob) -> MadeClip:
        answer = await self._send(job.method, job)
        if isinstance(answer, Refusal):
            raise RefusedError(answer)
        made: MadeClip = answer
        return made

    async def _send(self, method: str, *args: Any) -> Any:
        """Call a replica; again, if it died meanwhile: equal seeds make equal clips."""
        for attempt in range(1, ATTEMPTS + 1):
            response = getattr(self._replicas, method).remote(*args)
            try:
                with self._explain_errors(response):
                    return await response
            except LOST:
                await self._wait_after_loss(attempt)
        raise refuse(503, "replicas died while they made this", "try again later", headers={"Retry-After": "5"})

    @contextmanager
    def _explain_errors(self, response: Any) -> Iterator[None]:
        """Turn what Ray raises into refusals, but for lost replicas; end the replica's work if the caller was ended."""
        try:
            yield
        except LOST:
            raise
        except BackPressureError:
            raise self._busy() from None
        except (asyncio.CancelledError, RequestCancelledError, TaskCancelledError):
            response.cancel()
            raise asyncio.CancelledError from None
        except RayServeException as error:
            raise refuse(503, f"no replica answers: {error}", "try again later", headers={"Retry-After": "5"}) from None

    @asynccontextmanager
    async def _limit_time(self, deadline: float) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            limit = self._settings.limits.request_timeout_s
            raise refuse(504, f"no answer within {limit:g} s", "ask for less, or try again later") from None

    async def _wait_after_loss(self, attempt: int) -> None:
        self._metrics.retried.inc()
        await asyncio.sleep(0.2 * attempt)

    def _note(self, made: MadeClip) -> None:
        self._metrics.clips.inc()
        self._metrics.audio_seconds.inc(made.seconds)
        self._metrics.batch.observe(made.batch)
        self._metrics.waited.observe(made.waited_ms / 1e3)
        self._clip_s += 0.1 * (made.took_ms / 1e3 / made.batch - self._clip_s)
