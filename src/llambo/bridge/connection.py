"""One client's connection as a bridge sees it, without I/O: bytes become events, answers become bytes.

Two rules hold everywhere. Events come out only when they are asked for, one by one, so that what follows AUTH or HELLO
is never read before these were decided. And any way of cutting the input into pieces gives the same events.

    text ──HELLO──▶ switching ──switch_to_binary()──▶ binary          any ──fatal error, end of input──▶ closed

Knows nothing of models, requests in flight or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from llambo.bridge.answers import Answer
from llambo.bridge.binary import HEADER_BYTES, RequestKey, decode_request, encode_answer
from llambo.bridge.commands import AUTHENTICATE_FIRST, Auth, Command, Hello, check_scope
from llambo.bridge.settings import BridgeSettings
from llambo.bridge.text import encode_line, parse_line
from llambo.core.errors import BadRequest, LlamboError, Refused, TooLarge
from llambo.core.tokens import Scope


@dataclass(frozen=True, slots=True)
class Received:
    """A valid command that this client may use. `key` is None in the text protocol."""

    command: Command
    key: RequestKey | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that is to be answered with an error; after a `fatal` one nothing can follow."""

    error: LlamboError
    key: RequestKey | None
    fatal: bool = False


ConnectionEvent = Received | Rejected


class ServerConnection:
    """The protocol state of one client. `scope` None means that AUTH must come first."""

    def __init__(self, settings: BridgeSettings, scope: Scope | None) -> None:
        self._settings = settings
        self._scope = scope
        self._buffer = bytearray()
        self._searched = 0  # how much of the buffer is known to hold no line end
        self._skipping_line = False
        self._binary = False
        self._undecided = False
        self._ended = False
        self._closed = False

    @property
    def is_binary(self) -> bool:
        """Whether frames are spoken."""
        return self._binary

    @property
    def is_authenticated(self) -> bool:
        """Whether the client may use commands."""
        return self._scope is not None

    @property
    def awaits_decision(self) -> bool:
        """Whether nothing can come out before `grant`, `deny` or `switch_to_binary` is called."""
        return self._undecided

    def receive_data(self, data: bytes) -> None:
        """Takes what arrived."""
        if not self._closed:
            self._buffer += data

    def receive_eof(self) -> None:
        """Takes the end of the input; what is complete still comes out, half a line is rejected."""
        self._ended = True

    def grant(self, scope: Scope) -> None:
        """The AUTH that came out was right."""
        self._scope = scope
        self._undecided = False

    def deny(self) -> None:
        """The AUTH that came out was wrong; rights stay as they were."""
        self._undecided = False

    def switch_to_binary(self) -> None:
        """The HELLO that came out was answered: all that follows are frames."""
        self._binary = True
        self._undecided = False

    def next_event(self) -> ConnectionEvent | None:
        """The next event in what was received, or None until more arrives or a decision is made."""
        if self._undecided or self._closed:
            return None
        return self._next_frame() if self._binary else self._next_line()

    def encode(self, answer: Answer, key: RequestKey | None) -> bytes:
        """The bytes of an answer to request `key`."""
        return encode_answer(key, answer) if self._binary else encode_line(answer)

    def _next_line(self) -> ConnectionEvent | None:
        limit = self._settings.max_line_bytes
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            if self._skipping_line:
                self._skipping_line = False
            elif end > limit:
                return self._line_too_long()
            else:
                return self._accept_line(line.removesuffix(b"\r"), end + 1)
        self._searched = len(self._buffer)
        if self._skipping_line or self._searched > limit:
            already_told = self._skipping_line
            self._skipping_line = True
            self._buffer.clear()
            self._searched = 0
            if not already_told:
                return self._line_too_long()
        if self._ended:
            return self._end_text()
        return None

    def _line_too_long(self) -> Rejected:
        return Rejected(TooLarge(f"a line may have {self._settings.max_line_bytes} bytes at most"), None)

    def _end_text(self) -> Rejected | None:
        self._closed = True
        if not self._buffer:
            return None
        self._buffer.clear()
        return Rejected(BadRequest("the input ended in the middle of a line, which was not run"), None)

    def _accept_line(self, line: bytes, size_bytes: int) -> ConnectionEvent:
        try:
            return self._accept(parse_line(line), None, size_bytes)
        except LlamboError as error:
            # Who has not authenticated learns nothing about the command but that.
            return Rejected(error if self.is_authenticated else Refused(AUTHENTICATE_FIRST), None)

    def _next_frame(self) -> ConnectionEvent | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length > self._settings.max_frame_bytes:
            # Most likely no frame at all: there is no telling where the next one would begin.
            self._closed = True
            self._buffer.clear()
            limit = self._settings.max_frame_bytes
            error = TooLarge(f"a frame of {length} bytes: at most {limit} are taken")
            return Rejected(error, None, fatal=True)
        if len(self._buffer) < HEADER_BYTES + length:
            return None
        payload = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + length])
        del self._buffer[: HEADER_BYTES + length]
        request = decode_request(payload)
        if isinstance(request.command, LlamboError):
            return Rejected(request.command, request.key)
        try:
            return self._accept(request.command, request.key, length)
        except LlamboError as error:
            return Rejected(error, request.key)

    def _accept(self, command: Command, key: RequestKey | None, size_bytes: int) -> Received:
        check_scope(command, self._scope)
        if isinstance(command, Auth):
            self._undecided = True
        elif isinstance(command, Hello):
            if self._binary:
                raise BadRequest("this connection speaks the binary protocol already")
            self._undecided = True
        return Received(command, key, size_bytes)
