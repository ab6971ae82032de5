"""One request on a connection of its own, and its reply as it comes: the way of every relayed token.

Speaks HTTP/1.1 with httptools, straight on the transport. What comes is given on in the callback in which it came: no
task is woken for it, which would cost more than everything else. Knows neither what is asked nor what is answered. The
peer has to wait when nobody takes what it sends.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from llambo.cluster.relay import Take
from llambo.core.errors import LlamboError, NodeLost

HIGH_WATER = 256 * 2**10
"""Bytes that wait for the reader before the node has to wait too."""
_MAX_HEAD_BYTES = 64 * 2**10


class ReplyStream(asyncio.Protocol):
    """A reply in progress. One reader; `end` may be called from elsewhere.

    `stall_s` None waits for as long as the connection stands.
    """

    def __init__(self, who: str, request: bytes, *, stall_s: float | None) -> None:
        self._who = who
        self._request = request
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._take: Take | None = None  # while `pour` waits
        self._timer: asyncio.TimerHandle | None = None
        self._waits_since: float | None = None
        self._waited_since: float | None = None  # the same before what was given last
        self._ready: list[bytes] = []
        self.on_body = self._ready.append  # the parser's call
        self._parser = httptools.HttpResponseParser(self)
        self._ready_bytes = 0
        self._head_bytes = 0
        self._error: LlamboError | None = None
        self._is_whole = False  # the reply came to its end
        self._is_closed = False
        self._is_paused = False
        self._is_bounded = False  # the reply says itself where it ends
        self._is_between_chunks = False
        self.status = 0
        self.content_type = ""

    # --- the reader -----------------------------------------------------------------------------------------------

    async def head(self) -> None:
        """Returns once `status` and `content_type` are known. Raises: `NodeLost`."""
        while not self.status:
            if self._error is not None:
                raise self._error
            if self._is_whole:
                raise self._lost("answers with what no HTTP server says")
            await self._wait()

    async def pour(self, take: Take) -> bool:
        """Gives the body to `take` as it comes; True at its end, False once `take` returned False.

        What is given counts as progress unless `take` calls `no_progress`. Raises: `NodeLost`, what `end` was given,
        what `take` raises.
        """
        while True:
            if self._ready:
                self._waited_since = self._waits_since
                self._waits_since = None
                if not take(self._taken()):
                    return False
            elif self._error is not None:
                raise self._error
            elif self._is_whole:
                return True
            else:
                self._take = take
                try:
                    if not await self._wait():
                        return False
                finally:
                    self._take = None

    async def whole(self, limit: int) -> bytes:
        """The rest of the body. Raises: `NodeLost`, also where it is over `limit` bytes."""
        body = bytearray()

        def take(data: bytes) -> bool:
            nonlocal body
            body += data
            return len(body) <= limit

        await self.pour(take)
        if len(body) > limit:
            raise self._lost(f"sends a reply of more than {limit} bytes")
        return bytes(body)

    def no_progress(self) -> None:
        """What was given last did not bring the answer on: the time that counts as a stall goes on."""
        self._waits_since = self._waited_since

    def watch(self, stall_s: float | None) -> None:
        """From now on so many seconds without progress are a stall."""
        self._stall_s = stall_s
        if self._waiter is not None:
            self._arm()

    def end(self, error: LlamboError) -> None:
        """Whoever reads gets `error`, now or with the next read; the connection is gone at once."""
        if self._error is None and not self._is_whole:
            self._error = error
        self.close()
        self._wake()

    def close(self) -> None:
        """Ends the connection without a goodbye: the peer stops at once."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> bool:
        """Returns once something is there or over; False where all that came was taken, and no more is wanted."""
        self._arm()
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _arm(self) -> None:
        if self._stall_s is not None:
            if self._waits_since is None:
                self._waits_since = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(self._stall_s, self._look)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _give(self, take: Take, data: bytes) -> None:
        """Gives what has come. Where that was enough, or was too much for `take`, the task in `pour` goes on."""
        fault: Exception | None = None
        self._waited_since = self._waits_since
        self._waits_since = self._loop.time()
        try:
            if take(data):
                return
        except Exception as error:
            fault = error
        self._take = self._waits_since = None
        if self._waiter is None or self._waiter.done():  # it is over already
            return
        if fault is None:
            self._waiter.set_result(False)
        else:
            self._waiter.set_exception(fault)

    def _taken(self) -> bytes:
        """What has been kept; the node may send more."""
        data = b"".join(self._ready)
        self._ready.clear()
        self._ready_bytes = 0
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        return data

    def _look(self) -> None:
        self._timer = None
        if self._stall_s is None:
            return
        waited = 0.0
        if self._waits_since is not None and self._waiter is not None:  # a reader that is elsewhere waits for nothing
            waited = self._loop.time() - self._waits_since
        if waited >= self._stall_s:
            self.end(self._lost(f"gave nothing for {self._stall_s:g} s"))
            return
        self._timer = self._loop.call_later(self._stall_s - waited, self._look)

    # --- asyncio's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self._is_closed:
            self._transport.abort()
            return
        self._transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        """Takes what the node sent."""
        if self._is_between_chunks and (body := _only_chunk(data)):
            if self._take is not None:
                self._give(self._take, body)
                return
            self._ready.append(body)
        else:
            self._parse(data)
        if self._ready:  # all that came at once in one piece
            if self._take is not None:
                pieces = b"".join(self._ready)
                self._ready.clear()
                self._give(self._take, pieces)
            else:
                self._keep(len(data))
        if self._is_whole:
            self._wake()

    def _parse(self, data: bytes) -> None:
        self._is_between_chunks = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._is_whole:
                self.end(self._lost(f"answers with what no HTTP server says: {error}"))
            return
        if not data.endswith(b"\r\n"):  # then a part of the next chunk's size may have come already
            self._is_between_chunks = False
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.end(self._lost("answers with what no HTTP server says: endless headers"))

    def _keep(self, size: int) -> None:
        self._ready_bytes += size
        if self._ready_bytes > HIGH_WATER and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the reply, as it should or not."""
        self._transport = None
        if self.status and not self._is_bounded and error is None:
            self._is_whole = True
        if not self._is_whole and self._error is None:
            self._error = self._lost(f"does not answer: {error}" if error else "closed the connection")
        self.close()
        self._wake()
        del self._parser  # it knows us: we would be garbage that only a search for cycles finds

    # --- the parser's side ----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        match name.lower():
            case b"content-type":
                self.content_type = value.decode("latin-1")
            case b"content-length" | b"transfer-encoding":
                self._is_bounded = True

    def on_headers_complete(self) -> None:
        """The last header has come."""
        status = self._parser.get_status_code()
        if status >= 200:  # else it only says that it goes on
            self.status = status
            self._wake()

    def on_chunk_header(self) -> None:
        """The size of a chunk has come."""
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        """The last byte of a chunk has come."""
        self._is_between_chunks = True

    def on_message_complete(self) -> None:
        """The reply is whole."""
        self._is_whole = bool(self.status)  # else it was about the one that follows
        self._is_between_chunks = False

    def _lost(self, what: str) -> NodeLost:
        return NodeLost(f"{self._who} {what}")


def _only_chunk(data: bytes) -> bytes:
    """What is in `data` where it is one whole chunk, as a token is; else b"", and it is the parser's.

    The parser knows nothing of what is taken past it: it waits for the size of a chunk before and after.
    """
    size, _, rest = data.partition(b"\r\n")
    if not rest.endswith(b"\r\n") or len(rest) < 3 or size != b"%x" % (len(rest) - 2):
        return b""
    return rest[:-2]
