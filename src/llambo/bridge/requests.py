"""The requests in flight of a bridge: what each runs, how it may end early, and what is left to say then.

Every request ends in exactly one last answer, unless its client is gone. Knows nothing of bytes and connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from llambo.bridge.answers import Answer, Failed, Finished
from llambo.bridge.binary import RequestKey
from llambo.bridge.commands import Command, Infer, InferMulti, InferStream
from llambo.core.errors import Cancelled, LlamboError, NoQuorum, Overloaded
from llambo.core.fusion import VoteCast
from llambo.core.fusion_document import vote_document
from llambo.core.types import TokenEvent

SHUTTING_DOWN = "the bridge is shutting down"


class Cause(Enum):
    """Who ended a request early."""

    CLIENT = auto()
    HANG_UP = auto()
    SHUTDOWN = auto()


class Outlet(Protocol):
    """Where the answers to a request go."""

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up; answers sent nevertheless are buffered."""
        ...

    async def writable(self) -> None:
        """Returns once the client has caught up."""
        ...

    def send(self, answer: Answer, key: RequestKey | None) -> None:
        """Sends an answer, or drops it when the client is gone."""
        ...

    def request_ended(self, request: Request) -> None:
        """Nothing more is sent for this request."""
        ...


@dataclass(slots=True)
class Progress:
    """How far one answer has come."""

    text: list[str] = field(default_factory=list)
    votes: list[VoteCast] = field(default_factory=list)
    tokens: int = 0
    began_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None

    def add(self, event: TokenEvent) -> None:
        """Counts a piece; the caller keeps its text where that is wanted."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens += len(event.ids) or 1

    def cancelled_counts(self) -> dict[str, object]:
        """The counts of an answer that was cancelled here: what only the engine knows stays unknown."""
        first = self.first_token_at
        return {
            "finish_reason": "cancelled",
            "tokens": self.tokens,
            "prompt_tokens": None,
            "cached_tokens": None,
            "ttft_ms": None if first is None else round((first - self.began_at) * 1000, 3),
            "time_ms": round((time.monotonic() - self.began_at) * 1000, 3),
        }


@dataclass(slots=True, eq=False)
class Request:
    """One command in flight. `id` is a capability: who knows it may cancel."""

    id: str
    key: RequestKey | None
    command: Command
    outlet: Outlet
    progress: list[Progress] = field(default_factory=list)
    cause: Cause | None = None
    task: asyncio.Task[None] | None = None
    has_begun: bool = False

    @property
    def is_generation(self) -> bool:
        """Whether it runs a model, so that CANCEL without an id may mean it."""
        return isinstance(self.command, Infer | InferStream | InferMulti)

    def cancel(self, cause: Cause) -> None:
        """Ends it early; the first cause counts."""
        if self.cause is not None or self.task is None:
            return
        self.cause = cause
        # A task that is cancelled before its first step runs nothing at all, so it could not say that it ended.
        if self.has_begun:
            self.task.cancel()

    def last_answer(self) -> Answer | None:
        """What remains to be said after `cancel`; None for a client that is gone."""
        texts = ["".join(progress.text) for progress in self.progress]
        data: object = None
        if isinstance(self.command, Infer):
            data = "".join(texts)
        elif isinstance(self.command, InferMulti):
            data = texts
        in_stream = isinstance(self.command, InferStream)
        match self.cause:
            case Cause.CLIENT if in_stream:
                return Finished((self.progress or [Progress()])[0].cancelled_counts())
            case Cause.CLIENT:
                return Failed(Cancelled("the request was cancelled"), data)
            case Cause.SHUTDOWN:
                return Failed(Overloaded(SHUTTING_DOWN), data, in_stream)
            case _:
                return None


class Requests:
    """All requests in flight of one bridge."""

    def __init__(self) -> None:
        self._by_id: dict[str, Request] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._by_id.values()))

    def add(self, request: Request) -> None:
        """Takes in a request that starts."""
        self._by_id[request.id] = request
        self._idle.clear()

    def remove(self, request: Request) -> None:
        """Forgets a request that has ended."""
        del self._by_id[request.id]
        if not self._by_id:
            self._idle.set()

    def find(self, request_id: str) -> Request | None:
        """The request with that id, if it is still in flight."""
        return self._by_id.get(request_id)

    def cancel_all(self, cause: Cause) -> None:
        """Ends every request early."""
        for request in self:
            request.cancel(cause)

    async def until_idle(self) -> None:
        """Returns once nothing is in flight."""
        await self._idle.wait()


def failure(error: LlamboError, request: Request) -> Failed:
    """The error as the last answer to a request that had begun; without a quorum INFER is told the votes with it."""
    if isinstance(request.command, InferStream):
        return Failed(error, in_stream=True)
    votes = [vote_document(cast.vote) for progress in request.progress for cast in progress.votes]
    return Failed(error, {"votes": votes} if isinstance(error, NoQuorum) else None)
