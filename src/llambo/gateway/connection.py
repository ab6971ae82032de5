"""A client's HTTP connection: uvicorn's, with the limits that keep a slow or greedy client from costing others.

Owns how long a header and a body may take, how large they may be, and how many connections there are. Who asks for what
is `guard`'s business. What is refused here never reaches the application, or ends what the application has begun.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from llambo.gateway.cork import Cork
from llambo.gateway.errors import Failure, dialect_of
from llambo.gateway.output import EXTENSION, Output
from llambo.gateway.unread import Unread
from llambo.gateway.websocket_connection import WebSocketConnection

MAX_HEADER_BYTES = 64 * 1024
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 20
_BODY_BYTES_PER_S = 100  # a body that comes slower than this is no client's of ours

# uvicorn logs every bad request and every refused WebSocket: anybody could fill the disk with them. A fault of the
# application is logged by `guard`.
_log = logging.getLogger("llambo.gateway.http")
_log.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take: bytes of a body, seconds for a header, seconds in which its client reads nothing,
    connections at once.
    """

    max_body: int
    header_timeout_s: float
    write_timeout_s: float
    max_connections: int


class _NotTaken(Exception):
    """Ends the parsing of a request that is refused; `Connection._failure` says why."""


class Connection(HttpToolsProtocol):
    """A connection within `limits`."""

    def __init__(self, config: Config, state: ServerState, limits: Limits) -> None:
        super().__init__(config, state, {})
        self.logger = _log
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._unread: Unread  # once there is a transport
        self._cork: Cork
        self._failure: Failure | None = None
        self._is_refused = False
        self._is_handed_over = False  # a WebSocket has it
        self._is_in_body = False
        self._has_begun = self._has_url = self._is_upgrade_declined = False
        self._answering: RequestResponseCycle | None = None  # `cycle` is the request that came last
        self._head_bytes = self._body_bytes = 0
        self._checked_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._answering is not None and not self._answering.response_complete

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection in, and begins to wait for its first header."""
        super().connection_made(transport)
        self._unread = Unread(transport, self._limits.write_timeout_s)
        self._cork = Cork(transport, self.loop)
        if len(self.connections) > self._limits.max_connections:
            text = f"the gateway has {self._limits.max_connections} connections, and takes no more; try again later"
            self._refuse(Failure(503, "overloaded", text, retry_after_s=1))
        else:
            self._timer = self.loop.call_later(self._limits.header_timeout_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Parses what came, unless the connection is only kept for its end."""
        if self._is_refused:
            self._body_bytes += len(data)
            if self._body_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        if not self._is_in_body:
            self._head_bytes += len(data)
        self._parse(data)
        if self._is_handed_over or self._is_refused or self.transport.is_closing():  # type: ignore[redundant-expr]  # it changes in the call
            return
        if self._is_in_body:
            if self._timer is None:
                self._checked_bytes = self._body_bytes
                self._timer = self.loop.call_later(self._limits.header_timeout_s, self._look_at_body)
        elif self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(_too_long_a_head())
        elif self._timer is None and (self._has_begun or not self.is_busy):
            self._timer = self.loop.call_later(self._limits.header_timeout_s, self._head_is_late)

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._is_upgrade_declined:
                self._is_upgrade_declined = False
                self._parse_as_it_is(data[upgrade.args[0] :])
            else:
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self._refuse(self._failure or Failure(400, "bad_request", "this is not HTTP/1.1 as it should be"))

    def _parse_as_it_is(self, rest: bytes) -> None:
        """Parses the request again as one that offers no other protocol: the parser has left its body alone.

        Some clients offer HTTP/2 with their first request, whatever it is (RFC 9110, 7.8: it may be ignored).
        """
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                lines += [b"connection: close"] if b"close" in value.lower() else []
            elif name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def shutdown(self) -> None:
        """The server stops."""
        self._cork.flush()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._stop_timer()
        self._unread.stop()
        self._tell_all_gone()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection over; its header is complete."""
        if self.is_busy:  # behind an answer, which is still being written here
            self._take_no_more()
            self.transport.close()
            return
        self._stop_timer()
        self._unread.stop()
        self._is_handed_over = True
        super().handle_websocket_upgrade()
        taken_over = self.transport.get_protocol()
        assert isinstance(taken_over, WebSocketConnection)
        taken_over.begin(self._limits.write_timeout_s, refusal=_reply(_no_handshake(), self.url))

    # --- a client that does not read ---

    def pause_writing(self) -> None:
        """The client is behind: nothing more is written until it has taken some."""
        super().pause_writing()
        self._unread.watch()

    def resume_writing(self) -> None:
        """The client has taken some."""
        super().resume_writing()
        self._unread.stop()
        if self.transport.is_closing():
            self._unread.watch()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """A reply has ended; of a connection that ends with it the last bytes may never be read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._unread.watch()

    def timeout_keep_alive_handler(self) -> None:
        """No other request came; the last reply may not have been read."""
        super().timeout_keep_alive_handler()
        self._unread.watch()

    # --- the parser's calls ---

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._has_begun = self._has_url = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header is there: what it announces can be refused before any of it was read."""
        if self.parser.get_method() == b"CONNECT":
            self._give_up(Failure(405, "method_not_allowed", "this is no proxy: CONNECT is not for it"))
        if self.parser.should_upgrade() and not self._should_upgrade():
            self._is_upgrade_declined = True
            return
        self._stop_timer()
        self._has_begun = False
        self._body_bytes = 0
        if self._head_bytes > MAX_HEADER_BYTES:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEADER_BYTES:
                self._give_up(_too_long_a_head())
        if not self.url.isascii():
            self._give_up(Failure(400, "bad_request", "the request's path has bytes that must be written as %XX"))
        for name, value in self.headers:
            # The parser has refused what is no number.
            if name == b"content-length" and int(value) > self._limits.max_body:
                self._give_up(self._too_large(int(value)))
        self._is_in_body = True
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            # The task that answers has been made, and has not begun.
            self.cycle.transport = self._cork  # type: ignore[assignment]  # as much of it as an answer uses
            output = Output(self.cycle, self._cork, self.loop.time, is_chunked=self.scope["http_version"] != "1.0")
            self.scope["extensions"] = {EXTENSION: output}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        """A piece of the body; its length need not have been announced."""
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body:
            self._give_up(self._too_large(None))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if self._is_upgrade_declined:
            return
        self._stop_timer()
        self._is_in_body = False
        self._head_bytes = 0
        super().on_message_complete()

    # --- ends ---

    def _head_is_late(self) -> None:
        self._timer = None
        if self._head_bytes == 0 or self.is_busy:
            self.transport.close()
        else:
            limit = f"{self._limits.header_timeout_s:g} s"
            self._refuse(Failure(408, "timeout", f"the request's header was not complete within {limit}"))

    def _look_at_body(self) -> None:
        came = self._body_bytes - self._checked_bytes
        enough = came >= _BODY_BYTES_PER_S * self._limits.header_timeout_s
        self._checked_bytes = self._body_bytes
        self._timer = None
        # A body that nobody takes from us is not the client's fault, and one behind an answer has time until that ends.
        if enough or self.flow.read_paused or (self.is_busy and self._answering is not self.cycle):
            self._timer = self.loop.call_later(self._limits.header_timeout_s, self._look_at_body)
        elif self.cycle.response_complete:  # it was refused, so its client need not send it
            self.transport.close()
        else:
            self._refuse(Failure(408, "timeout", "the request's body stopped in the middle"))

    def _too_large(self, size: int | None) -> Failure:
        given = "the request's body is" if size is None else f"the request's body of {size} bytes is"
        limit = f"{self._limits.max_body} bytes (gateway.max_body)"
        return Failure(413, "too_large", f"{given} larger than the limit of {limit}")

    def _give_up(self, failure: Failure) -> None:
        self._failure = failure
        raise _NotTaken

    def _refuse(self, failure: Failure) -> None:
        """Answers with `failure`, unless an answer has begun, or is another request's; and ends the connection."""
        answering = self._answering
        has_place = answering is None or answering.response_complete
        if answering is not None and not has_place:
            has_place = answering is self.cycle and self._is_in_body and not answering.response_started
        self._take_no_more()
        if not has_place:
            self.transport.close()
            return
        self.transport.write(_reply(failure, self.url if self._has_url else b""))
        if self.transport.can_write_eof():
            # Closing with unread bytes would reset the connection, and the client might never see the answer.
            self.transport.write_eof()
            self.flow.resume_reading()
            self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)
        else:
            self.transport.close()

    def _take_no_more(self) -> None:
        """From here on nothing is parsed, and nobody is answered."""
        self._stop_timer()
        self._cork.flush()
        self._is_refused = True
        self._body_bytes = 0
        self._tell_all_gone()

    def _tell_all_gone(self) -> None:
        """The application reads that its client is gone, also for requests that came before the last one."""
        for cycle in (self._answering, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _too_long_a_head() -> Failure:
    return Failure(431, "bad_request", f"the request's header is larger than the limit of {MAX_HEADER_BYTES} bytes")


def _no_handshake() -> Failure:
    text = "this is no WebSocket's handshake as it should be: GET without a body, and no endless headers"
    return Failure(400, "bad_request", text)


def _reply(failure: Failure, url: bytes) -> bytes:
    body = failure.body(dialect_of(url.partition(b"?")[0].decode("latin-1")))
    headers = [
        *failure.headers,
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", f"req-{secrets.token_hex(16)}".encode()),
    ]
    head = f"HTTP/1.1 {failure.status} {HTTPStatus(failure.status).phrase}\r\n".encode()
    return head + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body
