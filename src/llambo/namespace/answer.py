"""One answer being generated, and everybody who reads it.

Owns the generation: it ends when the answer is whole, when it is cancelled, and when its last reader is flushed, closed
or hung up on. What was generated stays readable, from its start, as long as somebody holds the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from llambo.cluster.door import Door
from llambo.core.errors import BadRequest, LlamboError, Overloaded, TimedOut
from llambo.core.fusion import VoteCast
from llambo.core.types import Done, GenerateRequest, TokenEvent
from llambo.namespace import render
from llambo.ninep.streams import StreamHandle

State = Literal["waiting", "streaming", "done", "failed", "cancelled"]
Note = Callable[[LlamboError], None]

UNREAD_S = 5.0
"""So long a stop waits for the next read of an answer that is whole and was not read to its end."""

_log = logging.getLogger("llambo.namespace")


@dataclass(slots=True)
class LastFusion:
    """Of the fusions that one identity asked for: the one that began last, and the one that ended last."""

    asked: Answer | None = None
    ended: Answer | None = None


class Answers:
    """The answers of a namespace that are being generated or read; after `request_stop` there are no new ones."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._open: set[Answer] = set()
        self._has_read = asyncio.Event()
        self._is_stopping = False
        self._fusions: dict[str, LastFusion] = {}

    def start(
        self, request: GenerateRequest, ended: Callable[[Answer], None] | None = None, *, owner: str = ""
    ) -> Answer:
        """Generates. `ended` is told when it is over, however that came; `owner` is the identity that asks.

        Raises: `Overloaded` once the cluster is to stop.
        """
        if self._is_stopping:
            raise Overloaded("the cluster is shutting down")
        last = self.last_fusion(owner) if request.fusion is not None else None

        def note(answer: Answer) -> None:
            if last is not None:
                last.ended = answer
            if ended is not None:
                ended(answer)

        answer = Answer(self.door, request, note, self._changed)
        if last is not None:
            last.asked = answer
        self._open.add(answer)
        answer.task.add_done_callback(lambda _: self._changed(answer))
        return answer

    def last_fusion(self, owner: str) -> LastFusion:
        """The last fusion of that identity, kept up to date."""
        return self._fusions.setdefault(owner, LastFusion())

    def request_stop(self) -> None:
        """Refuses what is new."""
        self._is_stopping = True

    async def finish(self, timeout_s: float) -> None:
        """Lets what is being generated end, and be read to its end, for so long; returns when all is over.

        The rest is cancelled. Of an answer that is whole only the next read is waited for, for `UNREAD_S` at most.
        """
        self.request_stop()
        until = time.monotonic() + timeout_s
        if tasks := {answer.task for answer in self._open if not answer.task.done()}:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._until_read(until)
        self._open.clear()
        self._has_read.set()  # whoever waits in another call of this waits no longer

    async def _until_read(self, until: float) -> None:
        while any(answer.is_unread for answer in self._open):
            self._has_read.clear()
            try:
                async with asyncio.timeout(min(UNREAD_S, until - time.monotonic())):
                    await self._has_read.wait()
            except TimeoutError:
                return

    def _changed(self, answer: Answer) -> None:
        if answer.task.done() and not answer.is_unread:
            self._open.discard(answer)
        else:
            self._open.add(answer)
        self._has_read.set()


class Answer:
    """One generation. `pieces` are its texts so far, `casts` the votes of nodes that are to agree on it.

    `ended` is told once, when it is over; `read` of every read from then on, and of readers that come and leave.
    """

    def __init__(
        self,
        door: Door,
        request: GenerateRequest,
        ended: Callable[[Answer], None],
        read: Callable[[Answer], None],
    ) -> None:
        self.request = request
        self.pieces: list[str] = []
        self.casts: list[VoteCast] = []
        self.state: State = "waiting"
        self.error: LlamboError | None = None
        self.done: Done | None = None
        self._has_agreed = False
        self._readers: set[_Reader] = set()
        # In their order: who asked for the votes before the text gets them before it.
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._ended = ended
        self._read = read
        self.task = asyncio.get_running_loop().create_task(self._generate(door))
        self.task.add_done_callback(lambda _: self._settle("cancelled"))  # one cancelled at once never runs

    @property
    def is_running(self) -> bool:
        """Whether more may come."""
        return self.state in {"waiting", "streaming"}

    @property
    def text(self) -> str:
        """What was generated so far."""
        return "".join(self.pieces)

    @property
    def is_unread(self) -> bool:
        """Whether an open file has not read it to its end."""
        return any(not reader.is_at_end for reader in self._readers)

    def cancel(self) -> None:
        """Ends the generation; the slot is free a moment later, when `task` is done."""
        self.task.cancel()

    def stream(self, note: Note, timeout_s: Callable[[], float]) -> StreamHandle:
        """The tokens from the first one, as they come. `timeout_s` bounds each wait, 0 does not."""
        reader = _Reader(self, note, timeout_s)
        return StreamHandle(reader.next_piece, reader.close)

    def whole(self, note: Note, timeout_s: Callable[[], float]) -> StreamHandle:
        """The text, once all of it is there."""
        reader = _Reader(self, note, timeout_s, waits_for_all=True)
        return StreamHandle(reader.next_piece, reader.close)

    def tally(self, note: Note, timeout_s: Callable[[], float]) -> StreamHandle:
        """The votes from the first one, each as a line, as they come. Who reads them alone keeps nothing going.

        Raises: `BadRequest` where one node answers.
        """
        if self.request.fusion is None:
            raise BadRequest("one node answers this: there is no tally; write fusion to the ctl before the prompt")
        return StreamHandle(_Tally(self, note, timeout_s).next_piece)

    @property
    def has_voted(self) -> bool:
        """Whether no more votes come: what was agreed on is being told, or there is an end."""
        return not self.is_running or self._has_agreed

    def join(self, reader: _Reader) -> None:
        """One more reads it."""
        self._readers.add(reader)
        self.was_read()

    def leave(self, reader: _Reader) -> None:
        """A reader has had enough; with the last one the generation ends."""
        self._readers.discard(reader)
        if not self._readers and self.is_running:
            self.cancel()
        self.was_read()

    def was_read(self) -> None:
        """A reader has read on, has come or has left."""
        if not self.is_running:
            self._read(self)

    async def changed(self, timeout_s: float) -> None:
        """Returns when there is more, or the end. Raises: `TimedOut`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            if not timeout_s:
                await waiter
                return
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            raise TimedOut(f"nothing came within {timeout_s:g} s; the answer goes on, read again") from None
        finally:
            del self._waiters[waiter]

    async def _generate(self, door: Door) -> None:
        try:
            async with aclosing(door.generate(self.request)) as events:
                async for event in events:
                    match event:
                        case Done():
                            self.done = event
                        case VoteCast():
                            self.casts.append(event)
                            self._wake()
                        case TokenEvent(text) if text:
                            self.state = "streaming"
                            self._has_agreed = bool(self.casts)  # votes that come after a text come at its end
                            self.pieces.append(text)
                            self._wake()
            self._settle("cancelled" if self.done is None or self.done.finish_reason == "cancelled" else "done")
        except LlamboError as error:
            self.error = error
            self._settle("failed")
        except Exception:
            _log.exception("an answer failed in an unforeseen way")
            self.error = LlamboError("the cluster failed in an unforeseen way; its log has the details")
            self._settle("failed")

    def _settle(self, state: State) -> None:
        if self.is_running:
            self.state = state
            self._ended(self)
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Reader:
    """One open file that reads the answer."""

    def __init__(
        self, answer: Answer, note: Note, timeout_s: Callable[[], float], *, waits_for_all: bool = False
    ) -> None:
        self._answer = answer
        self._note = note
        self._timeout_s = timeout_s
        self._waits_for_all = waits_for_all
        self._next = 0
        self.is_at_end = False
        answer.join(self)

    async def next_piece(self) -> bytes:
        piece = b""
        try:
            piece = await self._piece()
        finally:
            self.is_at_end = not piece and not self._answer.is_running
            self._answer.was_read()
        return piece

    async def _piece(self) -> bytes:
        answer = self._answer
        try:
            while answer.is_running and (self._waits_for_all or self._next == len(answer.pieces)):
                await answer.changed(self._timeout_s())
        except asyncio.CancelledError:
            self._leave_if_last()
            raise
        except LlamboError as error:
            self._note(error)
            raise
        if self._next < len(answer.pieces):
            text = "".join(answer.pieces[self._next :])
            self._next = len(answer.pieces)
            return text.encode("utf-8", "replace")
        if answer.error is not None:
            self._note(answer.error)
            raise answer.error
        return b""

    def _leave_if_last(self) -> None:
        """A flushed read ends the generation it waited for, where nobody else reads it."""
        answer = self._answer
        answer.leave(self)
        answer.join(self)  # the file is still open, and reads the end

    def close(self) -> None:
        self._answer.leave(self)


class _Tally:
    """One open file that reads the votes."""

    def __init__(self, answer: Answer, note: Note, timeout_s: Callable[[], float]) -> None:
        self._answer = answer
        self._note = note
        self._timeout_s = timeout_s
        self._next = 0

    async def next_piece(self) -> bytes:
        answer = self._answer
        try:
            while self._next == len(answer.casts) and not answer.has_voted:
                await answer.changed(self._timeout_s())
        except LlamboError as error:
            self._note(error)
            raise
        casts = answer.casts[self._next :]
        self._next += len(casts)
        return "".join(map(render.vote, casts)).encode("utf-8", "replace")
