"""One connection to a bridge as seen by a client, without I/O: calls go in as bytes, answers come out by request.

    opening ──answers to AUTH and HELLO──▶ open

Knows nothing of sockets, waiting or what the answers mean. `client` and `async_client` are thin drivers around it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llambo.bridge.binary import HEADER_BYTES, AnswerFrame, decode_answer, encode_request
from llambo.bridge.commands import PROTOCOL_VERSION
from llambo.core.errors import BadRequest, LlamboError, TooLarge, from_code

MAX_FRAME_BYTES = 16 << 20

_MAX_LINE_BYTES = 1 << 20


class _Line(msgspec.Struct):
    status: str
    message: str = ""
    code: str = ""


_LINE = msgspec.json.Decoder(_Line)


class ClientConnection:
    """The protocol state of one connection. `token` authenticates first, on TCP."""

    def __init__(self, token: str = "") -> None:
        self._token = token
        self._buffer = bytearray()
        self._expected_lines = 2 if token else 1
        self._last_key = 0

    @property
    def is_open(self) -> bool:
        """Whether the bridge has agreed to the binary protocol."""
        return self._expected_lines == 0

    def opening(self) -> bytes:
        """What is sent first.

        Raises: `BadRequest` for a token that cannot stand in a line.
        """
        _check_unicode("the token", self._token)
        if any(character.isspace() or character == "\0" for character in self._token):
            raise BadRequest("a token holds no white space")
        auth = f"AUTH {self._token}\n" if self._token else ""
        return f"{auth}HELLO {PROTOCOL_VERSION}\n".encode()

    def request(self, op: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        """The key of a new request and the bytes that ask for it.

        Raises: `TooLarge`, `BadRequest` for text that is none.
        """
        self._last_key += 1
        try:
            data = encode_request(self._last_key, op, fields)
        except UnicodeEncodeError:
            for name, value in fields.items():
                _check_unicode(name, value)
            raise
        if len(data) - HEADER_BYTES > MAX_FRAME_BYTES:
            raise TooLarge(f"the request has {len(data)} bytes: at most {MAX_FRAME_BYTES} are taken")
        return self._last_key, data

    def cancel(self, key: int) -> bytes:
        """The bytes that end a request; the answer to them carries a key that nobody waits for."""
        return self.request("cancel", {"target": key})[1]

    def receive_data(self, data: bytes) -> list[AnswerFrame]:
        """The answers that are complete with `data`.

        Raises: `LlamboError` as the bridge refused the opening with, or when it does not speak this protocol.
        """
        self._buffer += data
        while not self.is_open:
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > _MAX_LINE_BYTES:
                    raise _no_bridge()
                return []
            self._take_line(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
        return self._take_frames()

    def _take_line(self, line: bytes) -> None:
        try:
            answer = _LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _no_bridge() from None
        if answer.status != "ok":
            raise from_code(answer.code, answer.message)
        self._expected_lines -= 1

    def _take_frames(self) -> list[AnswerFrame]:
        answers: list[AnswerFrame] = []
        start, available = 0, len(self._buffer)
        while available - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + int.from_bytes(self._buffer[start : start + HEADER_BYTES], "big")
            if end - start > HEADER_BYTES + MAX_FRAME_BYTES:
                raise _no_bridge()
            if end > available:
                break
            answers.append(decode_answer(bytes(self._buffer[start + HEADER_BYTES : end])))
            start = end
        del self._buffer[:start]
        return answers


def _check_unicode(what: str, value: object) -> None:
    """Finds text that UTF-8 cannot hold, in all that a field may be made of.

    Raises: `BadRequest`.
    """
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"U+{ord(value[error.start]):04X}, half a character, at position {error.start}"
                raise BadRequest(f"{what} is not valid Unicode text: it has {half}") from None
        case list():
            for number, item in enumerate(value, 1):
                _check_unicode(f"{what} {number}", item)
        case dict():
            for key, item in value.items():
                _check_unicode(f"{what} {key}", item)


def _no_bridge() -> LlamboError:
    return LlamboError("what answers there does not speak the bridge protocol")
