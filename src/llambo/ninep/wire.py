"""The form of 9P2000 messages on the wire: `size[4] type[1] tag[2]`, then the fields, little-endian.

Pure. Nothing is read beyond a message; whatever is wrong with the bytes is one exception, `Malformed`. The layouts are
written as the manual writes them: 1, 2, 4 and 8 are integers of so many bytes, s a text with its length in two bytes, d
data with its length in four, n names and w qids with their number in two, q a qid, S a stat with its length in two.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from llambo.ninep import messages as m
from llambo.ninep.errors import Malformed
from llambo.ninep.messages import Message, Qid, Stat

HEADER_BYTES: Final = 7
_APART_BYTES: Final = 64 << 10  # data that is not copied behind its header

Buffer = bytes | memoryview

_LAYOUTS: Final[tuple[tuple[int, type[Message], str], ...]] = (
    (100, m.Tversion, "4s"),
    (101, m.Rversion, "4s"),
    (102, m.Tauth, "4ss"),
    (103, m.Rauth, "q"),
    (104, m.Tattach, "44ss"),
    (105, m.Rattach, "q"),
    (107, m.Rerror, "s"),
    (108, m.Tflush, "2"),
    (109, m.Rflush, ""),
    (110, m.Twalk, "44n"),
    (111, m.Rwalk, "w"),
    (112, m.Topen, "41"),
    (113, m.Ropen, "q4"),
    (114, m.Tcreate, "4s41"),
    (115, m.Rcreate, "q4"),
    (116, m.Tread, "484"),
    (117, m.Rread, "d"),
    (118, m.Twrite, "48d"),
    (119, m.Rwrite, "4"),
    (120, m.Tclunk, "4"),
    (121, m.Rclunk, ""),
    (122, m.Tremove, "4"),
    (123, m.Rremove, ""),
    (124, m.Tstat, "4"),
    (125, m.Rstat, "S"),
    (126, m.Twstat, "4S"),
    (127, m.Rwstat, ""),
)
_INTEGERS: Final = {"1": "B", "2": "H", "4": "I", "8": "Q"}
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<IBH")
_RREAD: Final = struct.Struct("<IBHI")
_QID: Final = struct.Struct("<BIQ")
_STAT: Final = struct.Struct("<HHIBIQIIIQ")  # size type dev qid mode atime mtime length; then four texts

# What decodes one field: the value in `frame` at an offset, and where the next one begins.
_Decoder = Callable[[Buffer, int], tuple[Any, int]]


def _put_text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return _U16.pack(len(raw)) + raw


def _get_text(frame: Buffer, at: int) -> tuple[str, int]:
    raw, end = _get_bytes(frame, at + 2, _U16.unpack_from(frame, at)[0])
    return raw.decode("utf-8", "surrogateescape"), end


def _get_bytes(frame: Buffer, at: int, size: int) -> tuple[bytes, int]:
    end = at + size
    if end > len(frame):
        raise Malformed(f"a field of {size} bytes goes {end - len(frame)} beyond its message")
    return bytes(frame[at:end]), end


def _put_data(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def _get_data(frame: Buffer, at: int) -> tuple[bytes, int]:
    return _get_bytes(frame, at + 4, _U32.unpack_from(frame, at)[0])


def _put_qid(qid: Qid) -> bytes:
    return _QID.pack(qid.type, qid.version, qid.path)


def _get_qid(frame: Buffer, at: int) -> tuple[Qid, int]:
    return Qid(*_QID.unpack_from(frame, at)), at + _QID.size


def _put_names(names: tuple[str, ...]) -> bytes:
    return _U16.pack(len(names)) + b"".join(map(_put_text, names))


def _get_names(frame: Buffer, at: int) -> tuple[tuple[str, ...], int]:
    return _get_many(frame, at, _get_text)


def _put_qids(qids: tuple[Qid, ...]) -> bytes:
    return _U16.pack(len(qids)) + b"".join(map(_put_qid, qids))


def _get_qids(frame: Buffer, at: int) -> tuple[tuple[Qid, ...], int]:
    return _get_many(frame, at, _get_qid)


def _get_many(frame: Buffer, at: int, decode_one: _Decoder) -> tuple[tuple[Any, ...], int]:
    number = _U16.unpack_from(frame, at)[0]
    at += 2
    found = []
    for _ in range(number):
        value, at = decode_one(frame, at)
        found.append(value)
    return tuple(found), at


def encode_stat(stat: Stat) -> bytes:
    """A directory entry as it stands in a directory: with its own length in front.

    Raises: `Malformed` for a number or text that does not fit its field.
    """
    texts = b"".join(map(_put_text_checked, (stat.name, stat.uid, stat.gid, stat.muid)))
    qid = stat.qid
    try:
        return (
            _STAT.pack(
                _STAT.size - 2 + len(texts), stat.type, stat.dev, qid.type, qid.version, qid.path,
                stat.mode, stat.atime, stat.mtime, stat.length,
            )
            + texts
        )  # fmt: skip
    except struct.error as error:
        raise Malformed(f"a stat with a number out of range: {error}") from None


def _put_text_checked(text: str) -> bytes:
    try:
        return _put_text(text)
    except (struct.error, UnicodeEncodeError) as error:
        raise Malformed(f"a text that no message can hold: {error}") from None


def decode_stat(entry: Buffer, at: int = 0) -> tuple[Stat, int]:
    """The directory entry at `at`, and where the next one begins.

    Raises: `Malformed`.
    """
    try:
        size, kind, dev, *qid, mode, atime, mtime, length = _STAT.unpack_from(entry, at)
        end = at + 2 + size
        inside, _ = _get_bytes(entry, at, 2 + size)
        next_text = _STAT.size
        texts = []
        for _ in range(4):
            text, next_text = _get_text(inside, next_text)
            texts.append(text)
    except struct.error:
        raise Malformed("a stat that ends too early") from None
    if next_text != len(inside):
        raise Malformed(f"a stat with {len(inside) - next_text} bytes too many")
    name, uid, gid, muid = texts
    return Stat(name, Qid(*qid), mode, length, atime, mtime, uid, gid, muid, kind, dev), end


def decode_directory(data: bytes) -> list[Stat]:
    """The entries in what was read of a directory.

    Raises: `Malformed`.
    """
    found = []
    at = 0
    while at < len(data):
        entry, at = decode_stat(data, at)
        found.append(entry)
    return found


def _put_stat_field(stat: Stat) -> bytes:
    raw = encode_stat(stat)
    return _U16.pack(len(raw)) + raw


def _get_stat_field(frame: Buffer, at: int) -> tuple[Stat, int]:
    raw, end = _get_bytes(frame, at + 2, _U16.unpack_from(frame, at)[0])
    stat, used = decode_stat(raw)
    if used != len(raw):
        raise Malformed("a stat field that is longer than its stat")
    return stat, end


def _put_integer(letter: str) -> Callable[[Any], bytes]:
    return struct.Struct("<" + _INTEGERS[letter]).pack


def _get_integer(letter: str) -> _Decoder:
    layout = struct.Struct("<" + _INTEGERS[letter])
    return lambda frame, at: (layout.unpack_from(frame, at)[0], at + layout.size)


_PUT: Final[dict[str, Callable[[Any], bytes]]] = {
    "s": _put_text, "d": _put_data, "n": _put_names, "w": _put_qids, "q": _put_qid, "S": _put_stat_field,
    **{letter: _put_integer(letter) for letter in _INTEGERS},
}  # fmt: skip
_GET: Final[dict[str, _Decoder]] = {
    "s": _get_text, "d": _get_data, "n": _get_names, "w": _get_qids, "q": _get_qid, "S": _get_stat_field,
    **{letter: _get_integer(letter) for letter in _INTEGERS},
}  # fmt: skip


class _Codec:
    """One message's way to bytes and back; messages of integers alone go through one struct."""

    __slots__ = ("_build", "_fields", "_getters", "_integers", "_number", "_putters")

    def __init__(self, number: int, build: type[Message], layout: str) -> None:
        self._number = number
        self._build: Any = build
        names = build.__match_args__
        self._fields: Any = attrgetter(*names) if len(names) > 1 else lambda message: (message.tag,)
        self._integers: struct.Struct | None = None
        if all(letter in _INTEGERS for letter in layout):
            self._integers = struct.Struct("<IBH" + "".join(_INTEGERS[letter] for letter in layout))
        self._putters = [_PUT[letter] for letter in layout]
        self._getters = [_GET[letter] for letter in layout]

    def encode(self, message: Message) -> bytes:
        integers = self._integers
        if integers is not None:
            return integers.pack(integers.size, self._number, *self._fields(message))
        tag, *values = self._fields(message)
        parts = [put(value) for put, value in zip(self._putters, values, strict=True)]
        size = HEADER_BYTES + sum(map(len, parts))
        return b"".join((_HEADER.pack(size, self._number, tag), *parts))

    def decode(self, frame: Buffer) -> Message:
        integers = self._integers
        if integers is not None:
            if len(frame) != integers.size:
                raise Malformed(f"{self._build.__name__} has {integers.size} bytes, not {len(frame)}")
            return self._build(*integers.unpack(frame)[2:])  # type: ignore[no-any-return]
        values = [_U16.unpack_from(frame, 5)[0]]
        at = HEADER_BYTES
        for get in self._getters:
            value, at = get(frame, at)
            values.append(value)
        if at != len(frame):
            raise Malformed(f"{self._build.__name__} with {len(frame) - at} bytes too many")
        return self._build(*values)  # type: ignore[no-any-return]


_BY_NUMBER: Final = {number: _Codec(number, build, layout) for number, build, layout in _LAYOUTS}
_BY_CLASS: Final = {build: _BY_NUMBER[number] for number, build, _ in _LAYOUTS}


def encode_read(tag: int, data: Buffer) -> tuple[Buffer, ...]:
    """An Rread in pieces to be sent one after the other: large data is not copied behind its header."""
    header = _RREAD.pack(_RREAD.size + len(data), 117, tag, len(data))
    return (header, data) if len(data) >= _APART_BYTES else (header + data,)


def encode(message: Message) -> bytes:
    """The message with its length in front.

    Raises: `Malformed` for a number or text that does not fit its field.
    """
    try:
        return _BY_CLASS[type(message)].encode(message)
    except (struct.error, UnicodeEncodeError) as error:
        raise Malformed(f"{type(message).__name__} with a value that does not fit its field: {error}") from None


def decode(frame: Buffer) -> Message:
    """The message in `frame`, which is one whole message with its length in front.

    Raises: `Malformed`.
    """
    if len(frame) < HEADER_BYTES or _U32.unpack_from(frame)[0] != len(frame):
        raise Malformed("a message whose length is not what it says")
    codec = _BY_NUMBER.get(frame[4])
    if codec is None:
        raise Malformed(f"message type {frame[4]} is none of 9P2000")
    try:
        return codec.decode(frame)
    except struct.error:
        raise Malformed(f"a message of type {frame[4]} that ends too early") from None
