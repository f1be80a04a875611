"""The deployment that makes clips: requests that arrive together become batches, one network pass per step each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch
from ray import serve

from pipelines.inference.batch import AbandonedError, ClipRequest, generate_batch, group_requests
from pipelines.inference.generator import GeneratedClip, Generator
from pipelines.serve.access_log import open_log
from pipelines.serve.batcher import Batcher, Ticket
from pipelines.serve.clips import ClipJob, EditJob, MadeClip, OfferedModel
from pipelines.serve.edits import edit_sound, make_piece, open_piece
from pipelines.serve.loaded_models import LoadedModels
from pipelines.serve.part_stream import iter_from_thread
from pipelines.serve.refusal import Refusal, RefusedError
from pipelines.serve.requests import EditRequest, GenerateRequest
from pipelines.serve.settings import ServeSettings
from presto_core.errors import UserError

FEW_STEPS, MANY_STEPS = 4, 40


@serve.deployment(name="Model")
class ModelReplica:
    """One copy of the service's models.

    Batches form in the event loop; all computation is in one thread, so that health checks and cancellations are
    answered meanwhile.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._threads = settings.threads or max(1, round(settings.cpus_per_replica))
        torch.set_num_threads(self._threads)
        self._log = open_log(settings)
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._loaded_models = LoadedModels(settings, report=self._log.write)
        self._loaded_models.open()
        self._loaded_models.follow()
        self._batcher = Batcher(
            self._make_all, self._compute, max_batch=settings.max_batch, max_wait_s=settings.max_wait_ms / 1000
        )

    async def generate(self, job: ClipJob) -> MadeClip | Refusal:
        """Make a clip in a batch with others that arrive within `max_wait_ms`."""
        return await self._batcher.submit(Ticket(job))

    async def edit(self, job: EditJob) -> MadeClip | Refusal:
        """Edit a sound; one at a time."""
        return await self._compute_alone(self._edit, job)

    async def make_piece(self, job: ClipJob) -> MadeClip | Refusal:
        """Make a loop or a piece of several sections; one at a time."""
        return await self._compute_alone(self._make_piece, job)

    async def stream_piece(self, job: ClipJob) -> AsyncGenerator[MadeClip | Refusal | bytes]:
        """Make a piece; yield what it is, with the beginning of its WAV, then the rest in parts; or a refusal."""
        ticket = Ticket(job)
        parts = iter_from_thread(self._compute, lambda: self._iter_piece(ticket), leave=ticket.leave)
        async with aclosing(parts):
            async for part in parts:
                yield part

    async def list_models(self) -> list[OfferedModel]:
        return self._loaded_models.list_models()

    def _make_all(self, tickets: list[Ticket]) -> list[MadeClip | Refusal]:
        """Make the clips of a batch: one pass per group of equal model, length and steps."""
        answers: list[MadeClip | Refusal] = [_LEFT] * len(tickets)
        by_model: dict[str, list[int]] = {}
        for position, ticket in enumerate(tickets):
            if not ticket.is_left:
                by_model.setdefault(ticket.job.fields.get("model", ""), []).append(position)
        for model, positions in by_model.items():
            made = _answer(lambda m=model, p=positions: self._make_of_model(m, [tickets[at] for at in p]))
            for at, answer in zip(positions, made if isinstance(made, list) else [made] * len(positions)):
                answers[at] = answer
        return answers

    def _make_of_model(self, model: str, tickets: list[Ticket]) -> list[MadeClip | Refusal]:
        name, generator = self._loaded_models.find(model)
        answers: list[MadeClip | Refusal] = [_LEFT] * len(tickets)
        requests: dict[int, ClipRequest] = {}
        for position, ticket in enumerate(tickets):
            request = _answer(lambda t=ticket: _make_request(generator, t.job))
            if isinstance(request, ClipRequest):
                requests[position] = request
            else:
                answers[position] = request
        order = list(requests)
        for group in group_requests(generator.model, [requests[at] for at in order]):
            positions = [order[at] for at in group]
            made = _answer(
                lambda p=positions: self._make_group(
                    name, generator, [tickets[at] for at in p], [requests[at] for at in p]
                )
            )
            for at, answer in zip(positions, made if isinstance(made, list) else [made] * len(positions)):
                answers[at] = answer
        return answers

    def _make_group(
        self, name: str, generator: Generator, tickets: list[Ticket], requests: list[ClipRequest]
    ) -> list[MadeClip | Refusal]:
        started = time.perf_counter()
        clips = generate_batch(
            generator,
            requests,
            is_wanted=lambda: not all(ticket.is_left for ticket in tickets),
            decode_threads=self._threads,
        )
        took_ms = (time.perf_counter() - started) * 1e3
        return [
            pack_clip(clip, name, batch=len(clips), waited_ms=(started - ticket.requested_at) * 1e3, took_ms=took_ms)
            for ticket, clip in zip(tickets, clips)
        ]

    async def _compute_alone(self, make: Callable[[Ticket], MadeClip], job: ClipJob | EditJob) -> MadeClip | Refusal:
        """Run in the thread that computes; what nobody waits for any more is left out, or stops at the next step."""
        ticket = Ticket(job)
        try:
            made: MadeClip | Refusal = await asyncio.get_running_loop().run_in_executor(
                self._compute, lambda: _LEFT if ticket.is_left else _answer(lambda: make(ticket))
            )
        except asyncio.CancelledError:
            ticket.leave()
            raise
        return replace(made, waited_ms=ticket.age_ms - made.took_ms) if isinstance(made, MadeClip) else made

    def _edit(self, ticket: Ticket) -> MadeClip:
        job = ticket.job
        assert isinstance(job, EditJob)
        started, request = time.perf_counter(), EditRequest.model_validate(job.fields)
        name, generator = self._loaded_models.find(request.model)
        steps = choose_steps(generator, request.steps)
        clip, notes = edit_sound(generator, job, request, steps=steps, before_step=lambda: _check_wanted(ticket))
        return pack_clip(clip, name, took_ms=(time.perf_counter() - started) * 1e3, notes=notes)

    def _make_piece(self, ticket: Ticket) -> MadeClip:
        started, request = time.perf_counter(), GenerateRequest.model_validate(ticket.job.fields)
        name, generator = self._loaded_models.find(request.model)
        steps = choose_steps(generator, request.steps)
        clip = make_piece(generator, request, steps=steps, before_step=lambda: _check_wanted(ticket))
        return pack_clip(clip, name, took_ms=(time.perf_counter() - started) * 1e3)

    def _iter_piece(self, ticket: Ticket) -> Iterator[MadeClip | Refusal | bytes]:
        """Yield a piece as `stream_piece` does; what nobody reads stops at the next step or part."""
        opened = _LEFT if ticket.is_left else _answer(lambda: self._open_piece(ticket))
        if isinstance(opened, Refusal):
            yield opened
            return
        head, parts = opened
        yield head
        while part := _answer(lambda: next(parts, b"")):
            yield part

    def _open_piece(self, ticket: Ticket) -> tuple[MadeClip, Iterator[bytes]]:
        started, request = time.perf_counter(), GenerateRequest.model_validate(ticket.job.fields)
        name, generator = self._loaded_models.find(request.model)
        steps = choose_steps(generator, request.steps)
        piece = open_piece(generator, request, steps=steps, before_step=lambda: _check_wanted(ticket))
        parts, waited_ms = piece.iter_wav(), (started - ticket.requested_at) * 1e3
        head = pack_clip(piece.about, name, wav=next(parts), waited_ms=waited_ms)
        return replace(head, took_ms=(time.perf_counter() - started) * 1e3), parts


_LEFT = Refusal(499, "the client left", "ask again")


def _check_wanted(ticket: Ticket) -> None:
    if ticket.is_left:
        raise AbandonedError


def _answer(make: Any) -> Any:
    """Return what a function makes, or the refusal that its error is: one bad request must not fail its batch."""
    try:
        return make()
    except RefusedError as error:
        return error.refusal
    except AbandonedError:
        return _LEFT
    except UserError as error:
        return Refusal(422, str(error).replace("generate.", ""), "change the request as the message says")


def choose_steps(generator: Generator, steps: int | None) -> int:
    """Return the steps fields for, or those that suit the kind of model."""
    return steps or (FEW_STEPS if generator.artifact.kind == "generator" else MANY_STEPS)


def _make_request(generator: Generator, job: ClipJob | EditJob) -> ClipRequest:
    fields = GenerateRequest.model_validate(job.fields)
    request = ClipRequest(
        fields.prompt,
        steps=choose_steps(generator, fields.steps),
        seed=fields.seed,
        seconds=fields.seconds,
        tempo_bpm=fields.tempo_bpm,
        key=fields.key or None,
        schedule=fields.schedule,
        guidance_scale=fields.guidance_scale,
        guidance_interval=fields.guidance_interval,
        guidance_rescale=fields.guidance_rescale,
        negative_prompt=fields.negative_prompt,
    )
    request.check(generator.model)
    return request


def pack_clip(
    clip: GeneratedClip,
    model: str,
    *,
    wav: bytes = b"",
    batch: int = 1,
    waited_ms: float = 0.0,
    took_ms: float = 0.0,
    notes: dict[str, Any] | None = None,
) -> MadeClip:
    """Return a clip as plain data, with what its caller should know; `wav` in place of the whole file, if given."""
    own: dict[str, Any] = {"cut_text": clip.cut_text} if clip.cut_text else {}
    own |= {"gain_db": round(clip.gain_db, 2)} if clip.gain_db else {}
    return MadeClip(
        wav or clip.to_wav(),
        clip.settings,
        clip.seconds,
        model,
        clip.model_id,
        batch=batch,
        waited_ms=waited_ms,
        took_ms=took_ms,
        notes=own | (notes or {}),
    )
