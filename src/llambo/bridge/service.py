"""What a bridge does for its clients: runs commands against the cluster's door and sends the answers.

Owns the meaning of every command but AUTH, HELLO and QUIT, which belong to a connection. Knows nothing of bytes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import aclosing
from typing import assert_never

import psutil

from llambo.bridge import commands as c
from llambo.bridge.answers import Finished, Reply, Started, counts_of
from llambo.bridge.binary import RequestKey
from llambo.bridge.requests import SHUTTING_DOWN, Cause, Outlet, Progress, Request, Requests, failure
from llambo.cluster.door import Door
from llambo.core.errors import Cancelled, LlamboError, NotFound, Overloaded
from llambo.core.fusion import VoteCast
from llambo.core.types import Done, GenerateRequest, TokenEvent
from llambo.core.version import __version__

_PONG = Reply("pong", "pong")
_REQUEST_ID_BYTES = 16

_log = logging.getLogger("llambo.bridge")


class Service:
    """The commands of one bridge, until `request_stop`: from then on all that is new is refused.

    `http` gives the address where the same cluster speaks HTTP, None where it does not.
    """

    def __init__(self, door: Door, http: Callable[[], str | None] = lambda: None) -> None:
        self._door = door
        self._http = http
        self._process = psutil.Process()
        self.requests = Requests()
        self._stop_requested = asyncio.Event()

    def request_stop(self) -> None:
        """Refuses all that is new and lets whoever owns the bridge know."""
        self._stop_requested.set()

    async def until_stop_requested(self) -> None:
        """Returns once `request_stop` was called."""
        await self._stop_requested.wait()

    def answer_now(self, command: c.Command) -> Reply | None:
        """The answer to a command that needs no waiting, else None.

        Raises: `Overloaded` once the bridge is to stop.
        """
        if self._stop_requested.is_set():
            raise Overloaded(SHUTTING_DOWN)
        match command:
            case c.Ping():
                return _PONG
            case c.Status():
                return self._status()
            case c.Models():
                models = self._door.status().models
                return Reply(f"{len(models)} loaded", models)
            case _:
                return None

    def start(self, command: c.Command, key: RequestKey | None, outlet: Outlet) -> Request:
        """Runs a command as a task of its own; all that there is to say goes to `outlet`."""
        request = Request(secrets.token_hex(_REQUEST_ID_BYTES), key, command, outlet)
        self.requests.add(request)
        request.task = asyncio.get_running_loop().create_task(self._run(request))
        request.task.add_done_callback(lambda _: self._ended(request))
        return request

    def cancel(self, request_id: str) -> Reply:
        """Ends the request with that id.

        Raises: `NotFound`.
        """
        request = self.requests.find(request_id)
        if request is None:
            raise NotFound("no request with that id is in flight")
        return self.cancel_request(request)

    @staticmethod
    def cancel_request(request: Request) -> Reply:
        """Ends a request because a client wants it."""
        request.cancel(Cause.CLIENT)
        return Reply("Cancelled")

    def _ended(self, request: Request) -> None:
        self.requests.remove(request)
        request.outlet.request_ended(request)

    async def _run(self, request: Request) -> None:
        request.has_begun = True
        outlet, key = request.outlet, request.key
        try:
            if isinstance(request.command, c.InferStream):
                outlet.send(Started(request.id), key)
            if request.cause is not None:
                raise asyncio.CancelledError
            await self._execute(request)
        except asyncio.CancelledError:
            if request.cause is None:
                raise  # not ours: the loop itself is being taken down
            last = request.last_answer()
            if last is not None:
                outlet.send(last, key)
        except LlamboError as error:
            outlet.send(failure(error, request), key)
        except Exception:
            outlet.send(failure(unforeseen(request.command), request), key)

    async def _execute(self, request: Request) -> None:
        match request.command:
            case c.InferStream():
                await self._stream(request, request.command.request)
                return
            case c.Infer():
                reply = await self._infer(request, request.command.request)
            case c.InferMulti():
                reply = await self._infer_multi(request, request.command.requests)
            case c.Load():
                reply = await self._load(request.command)
            case c.Free():
                await self._door.free(request.command.name)
                reply = Reply("Model freed")
            case c.Tokenize():
                ids = await self._door.tokenize(request.command.text, model=request.command.model)
                reply = Reply("Tokenized", ids, {"tokens": len(ids)})
            case c.Embed():
                reply = Reply("Embedded", await self._door.embed(request.command.text, model=request.command.model))
            case c.Ping() | c.Status() | c.Models() | c.Cancel() | c.Auth() | c.Hello() | c.Quit():
                raise AssertionError("answered without a task")
            case _:
                assert_never(request.command)
        request.outlet.send(reply, request.key)

    async def _stream(self, request: Request, wanted: GenerateRequest) -> None:
        outlet, key = request.outlet, request.key
        progress = Progress()
        request.progress.append(progress)
        done: Done | None = None
        async with aclosing(self._door.generate(wanted)) as events:
            async for event in events:
                if isinstance(event, Done):
                    done = event
                    continue
                if isinstance(event, TokenEvent):
                    progress.add(event)
                outlet.send(event, key)
                if not outlet.is_writable:
                    await outlet.writable()
        outlet.send(Finished(counts_of(_checked(done))), key)

    async def _infer(self, request: Request, wanted: GenerateRequest) -> Reply:
        progress = Progress()
        request.progress.append(progress)
        done = await self._collect(wanted, progress)
        return Reply("Inference completed", "".join(progress.text), counts_of(done))

    async def _infer_multi(self, request: Request, wanted: tuple[GenerateRequest, ...]) -> Reply:
        request.progress.extend(Progress() for _ in wanted)
        failures: list[LlamboError] = []
        # As many as can run: the rest wait here, where no queue overflows and no time in a queue runs out.
        turns = asyncio.Semaphore(max(1, self._slots_of(wanted[0].model)))

        async def answer(index: int) -> Done:
            try:
                async with turns:
                    return await self._collect(wanted[index], request.progress[index])
            except LlamboError as error:
                failures.append(type(error)(f"prompt {index + 1} of {len(wanted)}: {error.message}"))
                raise

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer(index)) for index in range(len(wanted))]
        except* LlamboError:
            pass  # told below, with the prompt that it belongs to; the group has cancelled the others
        if failures:
            raise failures[0]
        done = [task.result() for task in tasks]
        counts: dict[str, object] = {
            "finish_reasons": [one.finish_reason for one in done],
            "tokens": sum(one.tokens for one in done),
            "prompt_tokens": sum(one.prompt_tokens for one in done),
            "cached_tokens": sum(one.cached_tokens for one in done),
            "time_ms": round(max(one.time_ms for one in done), 3),
        }
        texts = ["".join(progress.text) for progress in request.progress]
        return Reply("Inference completed", texts, counts)

    def _slots_of(self, name: str) -> int:
        models = self._door.status().models
        return next((model.slots for model in models if name in ("", model.name)), 0)

    async def _collect(self, wanted: GenerateRequest, progress: Progress) -> Done:
        done: Done | None = None
        async with aclosing(self._door.generate(wanted)) as events:
            async for event in events:
                match event:
                    case TokenEvent():
                        progress.add(event)
                        progress.text.append(event.text)
                    case VoteCast():
                        progress.votes.append(event)
                    case Done():
                        done = event
        return _checked(done)

    async def _load(self, command: c.Load) -> Reply:
        model = await self._door.load(command.path, name=command.name, options=command.options)
        data = {"name": model.name, "path": model.path, "ctx": model.ctx, "slots": model.slots}
        return Reply("Model loaded successfully", data)

    def _status(self) -> Reply:
        status = self._door.status()
        loaded = next((model for model in status.models if model.state in ("ready", "restarting")), None)
        data = {
            "models": status.models,
            "slots": status.slots,
            "busy": status.busy,
            "requests": status.counters.requests,
            "tokens": status.counters.tokens,
            "errors": status.counters.errors,
            "uptime_s": round(status.uptime_s, 3),
            "rss_bytes": self._process.memory_info().rss,
            "version": __version__,
            "http": self._http(),
        }
        return Reply(f"Model loaded: {loaded.path}" if loaded else "No model loaded", data)


def unforeseen(command: c.Command) -> LlamboError:
    """What the client is told of the exception being handled, which nobody expected; the log gets all of it."""
    _log.exception("%s failed in an unforeseen way", c.NAMES[type(command)])
    return LlamboError("the bridge failed in an unforeseen way; its log has the details")


def _checked(done: Done | None) -> Done:
    if done is None:
        raise RuntimeError("the door ended an answer without saying so")
    if done.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled by the cluster")
    return done
