"""A stream of bytes cut into messages, however it arrives.

Pure. Keeps what is not yet a whole message, never more than the size in force; what messages hold is `wire`'s business.
"""

from __future__ import annotations

import struct
from typing import Final

from llambo.ninep.errors import Malformed
from llambo.ninep.messages import Message
from llambo.ninep.wire import HEADER_BYTES, decode

_ROOM_BYTES: Final = 64 << 10
_U32: Final = struct.Struct("<I")


class Frames:
    """Cuts a stream of bytes into messages, however it arrives. `limit_bytes` is the msize in force.

    Bytes come by `receive_data`, or are put into what `room` gives and told by `received`. With `keeps_buffer` the
    space of large messages is kept for the next ones; without, an idle connection takes next to none.
    """

    def __init__(self, limit_bytes: int, *, keeps_buffer: bool = False) -> None:
        self.limit_bytes = limit_bytes
        self._keeps_buffer = keeps_buffer
        self._buffer = bytearray()
        self._start = 0
        self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    def receive_data(self, data: bytes) -> None:
        """Takes what arrived."""
        self._make_room(len(data))
        self._buffer[self._end : self._end + len(data)] = data
        self._end += len(data)

    def room(self) -> memoryview:
        """Where the next bytes may be put; to be let go before anything else is asked."""
        self._make_room(_ROOM_BYTES)
        return memoryview(self._buffer)[self._end :]

    def received(self, count: int) -> None:
        """So many bytes were put into the room."""
        self._end += count

    def next_message(self) -> Message | None:
        """The next whole message, or None until more arrives.

        Raises: `Malformed`; for a length that no message has, as soon as the length is there.
        """
        start = self._start
        there = self._end - start
        if there < 4:
            return None
        size = _U32.unpack_from(self._buffer, start)[0]
        if not HEADER_BYTES <= size <= self.limit_bytes:
            raise Malformed(f"a message of {size} bytes: it has {HEADER_BYTES} to {self.limit_bytes}")
        if there < size:
            return None
        self._start = start + size
        if size < _ROOM_BYTES:
            message = decode(bytes(self._buffer[start : start + size]))
        else:
            with memoryview(self._buffer) as whole, whole[start : start + size] as frame:
                message = decode(frame)
        if there == size:
            self._start = self._end = 0
            if not self._keeps_buffer and len(self._buffer) > _ROOM_BYTES:
                self._buffer = bytearray()
        return message

    def _make_room(self, count: int) -> None:
        """Sees to `count` free bytes at the end, at once to all that a message under way still needs."""
        if len(self._buffer) - self._end >= count:
            return
        there = self._end - self._start
        wanted = there + count
        if there >= 4:
            wanted = max(wanted, min(_U32.unpack_from(self._buffer, self._start)[0], self.limit_bytes))
        if wanted > len(self._buffer) or self._start < there:
            fresh = bytearray(max(wanted, min(2 * there, self.limit_bytes)))
            fresh[:there] = self._buffer[self._start : self._end]
            self._buffer = fresh
        else:
            self._buffer[:there] = self._buffer[self._start : self._end]
        self._start, self._end = 0, there
