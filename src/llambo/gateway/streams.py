"""Streams that run, and for a while those whose client was lost or that have ended: what could be resumed, and by whom.

Owns the window and the memory. How a stream is delivered is `relay`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llambo.cluster.relay import RelayRequest
from llambo.cluster.transcript import Transcript
from llambo.core.errors import Cancelled
from llambo.gateway.errors import Conflict, Dialect, Missing, Stopping

ENDED_SHARE = 128
"""Streams that ended well may take this part of the memory: hardly ever does a client lack their last bytes."""
OVERHEAD_BYTES = 3072
"""What a kept stream takes beside its texts."""


Cancel = Callable[[Exception], None]


@dataclass(slots=True, eq=False)
class Stream:
    """One stream. `owner` is the token that began it, "" without one; `body_bytes` the size of the request's body.

    `transcript` is what was delivered, None before the first headers. `cancel` ends a run with the error that it is
    given; None while nothing runs.
    """

    id: str
    owner: str
    request: RelayRequest
    dialect: Dialect
    body_bytes: int
    transcript: Transcript | None = None
    cancel: Cancel | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the stream's own last event was delivered."""
        return self.transcript is not None and self.transcript.is_whole


class Streams:
    """The streams by their id. One that is lost is kept for `window_s` seconds, all such within `memory_bytes`."""

    def __init__(self, window_s: float, memory_bytes: int) -> None:
        self._window_s = window_s
        self._running: dict[str, Stream] = {}
        self._answering: set[Cancel] = set()
        self._ended = _Shelf(memory_bytes // ENDED_SHARE)
        self._lost = _Shelf(memory_bytes - memory_bytes // ENDED_SHARE)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        """How many are being delivered."""
        return len(self._running)

    @property
    def kept(self) -> int:
        """How many could be resumed."""
        return len(self._ended.streams) + len(self._lost.streams)

    @property
    def kept_bytes(self) -> int:
        """What these take."""
        return self._ended.size_bytes + self._lost.size_bytes

    @contextmanager
    def answering(self, cancel: Cancel) -> Iterator[None]:
        """Inside, a reply that is no stream is on its way; `cancel` ends it with an error."""
        self._answering.add(cancel)
        try:
            yield
        finally:
            self._answering.discard(cancel)

    def run(self, stream: Stream, cancel: Cancel) -> None:
        """The stream is being delivered from now on; `cancel` ends that."""
        self._drop(stream.id)
        self._running[stream.id] = stream
        stream.cancel = cancel

    def stopped(self, stream: Stream, *, keep: bool) -> None:
        """It is not delivered any more; with `keep` it can be resumed, if there is room for it."""
        stream.cancel = None
        if self._running.pop(stream.id, None) is None or not keep or stream.transcript is None or not self._window_s:
            return  # it was cancelled and forgotten, or nothing of it was delivered
        loop = asyncio.get_running_loop()
        shelf = self._ended if stream.is_whole else self._lost
        shelf.put(
            stream, OVERHEAD_BYTES + stream.body_bytes + stream.transcript.size_bytes, loop.time() + self._window_s
        )
        if self._timer is None:
            self._timer = loop.call_later(self._window_s, self._expire, loop)

    def take(self, stream_id: str, owner: str) -> Stream:
        """The stream of that id, to be resumed by who began it.

        Raises: `Missing`; `Conflict` while its client is there.
        """
        stream = self._find(stream_id, owner)
        if stream.cancel is not None:
            raise Conflict(f"stream {stream_id} is being delivered; it can be resumed once its client is gone")
        return stream

    def forget(self, stream_id: str, owner: str) -> None:
        """Ends the stream and keeps nothing of it. Raises: `Missing`."""
        stream = self._find(stream_id, owner)
        self._drop(stream_id)
        self._running.pop(stream_id, None)
        if stream.cancel is not None:
            stream.cancel(Cancelled(f"stream {stream_id} was cancelled"))

    def end(self) -> int:
        """Ends every run and reply, whose client is told that the cluster stops; returns how many there were."""
        running = [stream.cancel for stream in self._running.values() if stream.cancel is not None]
        running += self._answering
        for cancel in running:
            cancel(Stopping("the cluster was stopped before the answer was whole"))
        return len(running)

    def clear(self) -> None:
        """Keeps nothing any more."""
        for shelf in (self._ended, self._lost):
            shelf.expire(float("inf"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self, stream_id: str) -> None:
        self._ended.drop(stream_id)
        self._lost.drop(stream_id)

    def _find(self, stream_id: str, owner: str) -> Stream:
        stream = self._running.get(stream_id) or self._lost.get(stream_id) or self._ended.get(stream_id)
        if stream is None or stream.owner != owner:  # that another one's exists is nobody's business
            raise Missing(f"no stream is called {stream_id[:80]!r}; it never was, or it is no longer kept")
        return stream

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        ends = [shelf.expire(loop.time()) for shelf in (self._ended, self._lost)]
        if nearest := min(filter(None, ends), default=0.0):
            self._timer = loop.call_at(nearest, self._expire, loop)


@dataclass(frozen=True, slots=True)
class _Kept:
    stream: Stream
    size_bytes: int
    until: float


class _Shelf:
    """Streams in the order in which they came, the oldest dropped where the sizes would be over `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.streams: dict[str, _Kept] = {}
        self.size_bytes = 0

    def get(self, stream_id: str) -> Stream | None:
        kept = self.streams.get(stream_id)
        return kept.stream if kept else None

    def put(self, stream: Stream, size_bytes: int, until: float) -> None:
        if size_bytes > self._limit_bytes:
            return
        self.streams[stream.id] = _Kept(stream, size_bytes, until)
        self.size_bytes += size_bytes
        while self.size_bytes > self._limit_bytes:
            self.drop(next(iter(self.streams)))

    def drop(self, stream_id: str) -> None:
        kept = self.streams.pop(stream_id, None)
        if kept is not None:
            self.size_bytes -= kept.size_bytes

    def expire(self, now: float) -> float:
        """Drops what is due, and says when the next one is; 0 for never."""
        while self.streams:
            kept = next(iter(self.streams.values()))
            if kept.until > now:
                return kept.until
            self.drop(kept.stream.id)
        return 0.0
