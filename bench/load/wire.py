"""Reads one HTTP reply of an OpenAI-compatible server, and what it was worth: when tokens came, and why it failed.

Pure: bytes and moments in, an outcome out. It opens nothing and knows no clock. HTTP itself is httptools' business.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import httptools
import msgspec

NOT_HTTP = "not HTTP"
BROKEN_OFF = "broken off"
BAD_EVENT = "bad event"
ERROR_EVENT = "error event"
NO_STREAM = "no stream"
NO_END = "no [DONE]"
BAD_BODY = "bad body"
TOO_LONG = "too long"
UNREACHABLE = "unreachable"
TIMEOUT = "timeout"

_MAX_BODY_BYTES = 64 * 2**20
_MAX_EVENT_BYTES = 16 * 2**20
_DETAIL_CHARS = 200


@dataclass(slots=True)
class Outcome:
    """What became of one request; moments are seconds on the caller's clock, 0 for what never came.

    `planned_s` is when it should have been sent, and what latencies count from. `reason` is "" for success. `tokens`
    are events with content (of a reply in one piece, what the server counted), `first_s` the first one's moment,
    `gaps_s` the times between them (0 for two that came in one read), `counted_tokens` what the server itself said.
    """

    planned_s: float = 0.0
    sent_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    status: int = 0
    reason: str = ""
    detail: str = ""
    tokens: int = 0
    counted_tokens: int = 0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None

    def has_content(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls or self.refusal)


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None
    text: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None


class _Error(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class ReplyReader:
    """One reply. `feed` and `close` say whether it is over; then `outcome` is whole.

    `can_reuse` tells whether the connection may carry another request.
    """

    def __init__(self, *, streams: bool) -> None:
        self.outcome = Outcome()
        self.has_begun = False
        self.can_reuse = False
        self._wants_events = streams
        self._is_stream = False
        self._has_length = False
        self._is_over = False
        self._ends_with_connection = False
        self._saw_done = False
        self._rest = b""
        self._body = bytearray()
        self._now = 0.0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes, now: float) -> bool:
        """Takes what came at `now`."""
        self.has_begun = True
        self._now = now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(NOT_HTTP, "it changes to another protocol")
        except httptools.HttpParserError as error:
            self._fail(NOT_HTTP, str(error))
        return self._is_over

    def close(self, now: float) -> None:
        """Takes the end of the connection."""
        if self._is_over:
            return
        self._now = now
        if self._ends_with_connection:
            self._finish()
        else:
            self._fail(BROKEN_OFF, "the connection ended within the reply" if self.has_begun else "nothing came")

    def give_up(self, reason: str, detail: str, now: float) -> None:
        """Takes that the caller waits no longer."""
        self._now = now
        self._fail(reason, detail)

    def on_message_begin(self) -> None:
        """Called by httptools."""
        self._is_stream = False
        self._has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        match name.lower():
            case b"content-type":
                self._is_stream = value.lower().startswith(b"text/event-stream")
            case b"content-length" | b"transfer-encoding":
                self._has_length = True

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.outcome.status = status
            self._ends_with_connection = not self._has_length
        if status == 200 and self._wants_events and not self._is_stream:
            self._fail(NO_STREAM, "the reply is no text/event-stream")

    def on_body(self, data: bytes) -> None:
        """Called by httptools."""
        if self._is_over:
            return
        if self._is_stream and self.outcome.status == 200:
            self._read_events(data)
            return
        self._body += data
        if len(self._body) > _MAX_BODY_BYTES:
            self._fail(TOO_LONG, f"the reply has more than {_MAX_BODY_BYTES // 2**20} MiB")

    def on_message_complete(self) -> None:
        """Called by httptools."""
        if self._parser.get_status_code() >= 200 and not self._is_over:
            self.can_reuse = self._parser.should_keep_alive()
            self._finish()

    def _read_events(self, data: bytes) -> None:
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip())
            if self._is_over:
                return
        if len(self._rest) > _MAX_EVENT_BYTES:
            self._fail(TOO_LONG, f"an event has more than {_MAX_EVENT_BYTES // 2**20} MiB")

    def _read_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._saw_done = True
            return
        try:
            event = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail(BAD_EVENT, f"{error}: {data[:80]!r}")
            return
        if event.error is not None:
            self._fail(ERROR_EVENT, _message(data))
            return
        if event.usage is not None:
            self.outcome.counted_tokens = event.usage.completion_tokens
        for choice in event.choices or ():
            if choice.text or (choice.delta is not None and choice.delta.has_content()):
                self._count()
                break

    def _count(self) -> None:
        outcome = self.outcome
        if outcome.tokens:
            outcome.gaps_s.append(self._now - outcome.last_s)
        else:
            outcome.first_s = self._now
        outcome.tokens += 1
        outcome.last_s = self._now

    def _finish(self) -> None:
        outcome = self.outcome
        if outcome.status != 200:
            self._fail(f"status {outcome.status}", _message(bytes(self._body)))
        elif self._wants_events and not self._saw_done:
            self._fail(NO_END, "the stream ended without its last event")
        elif not self._wants_events:
            self._finish_whole()
        outcome.last_s = self._now
        self._is_over = True

    def _finish_whole(self) -> None:
        try:
            reply = _decode_event(bytes(self._body))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail(BAD_BODY, f"{error}: {bytes(self._body[:80])!r}")
            return
        if not reply.choices:
            self._fail(BAD_BODY, "the reply has no choices")
            return
        if reply.usage is not None:
            self.outcome.tokens = self.outcome.counted_tokens = reply.usage.completion_tokens

    def _fail(self, reason: str, detail: str) -> None:
        if not self._is_over and not self.outcome.reason:
            self.outcome.reason = reason
            self.outcome.detail = detail[:_DETAIL_CHARS]
            self.outcome.last_s = self._now
        if not reason.startswith("status "):  # a refusal is a whole reply: the connection goes on
            self.can_reuse = False
        self._is_over = True


def _message(body: bytes) -> str:
    """What an error says: OpenAI's envelope, or the beginning of whatever came."""
    try:
        return _decode_refusal(body).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:_DETAIL_CHARS].decode(errors="replace")
