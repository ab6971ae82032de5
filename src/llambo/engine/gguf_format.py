"""The GGUF container: bytes in, keys and tensor table out.

Owns the layout of versions 2 and 3 (GGUF specification, ggml `docs/gguf.md`) and every bound that keeps a
hostile file cheap: nothing is allocated for a count or a length before it has been checked against what the
file still holds. Knows nothing of models: which keys matter is `gguf`'s business. What llama.cpp refuses
(nested arrays, names that occur twice, a tensor that does not follow the one before) is refused here too,
with a sentence.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import BinaryIO

from llambo.core.errors import BadModel
from llambo.engine.gguf_tables import REMOVED_TENSOR_TYPES, TENSOR_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_HEADER_BYTES = 256 * 2**20  # the largest vocabularies take about 30 MiB
MAX_KEYS = 2_048  # real files have fewer than a hundred
MAX_TENSORS = 100_000  # the largest models have a few thousand
MAX_STRINGS = 4_000_000  # in all arrays together; a vocabulary of 260,000 tokens has half a million merges
MAX_KEY_BYTES = 1_024
KEPT_STRING_BYTES = 1_024  # longer texts are known by their length only
KEPT_ARRAY_ITEMS = 512  # llama.cpp's own limit on layers, and arrays of numbers are kept for layers only
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less its NUL
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**63  # ggml counts them in an int64
WINDOW_BYTES = 64 * 1_024

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS: dict[int, struct.Struct] = {
    code: struct.Struct("<" + letter)
    for code, letter in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class LongText:
    """A string that was not kept; `size_bytes` in UTF-8."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array that was not kept; `count` items."""

    count: int


Number = int | float | bool
Value = Number | str | tuple[Number, ...] | LongText | LongArray


@dataclass(frozen=True, slots=True)
class Container:
    """One GGUF file's header. `data_end` is the first byte after the last tensor, by the table."""

    version: int
    keys: dict[str, Value]
    tensors: int
    tensor_bytes: int
    bytes_by_type: dict[str, int] = field(repr=False)
    data_start: int
    data_end: int


class _Reader:
    """A bounded cursor over the header: a window of the file, refilled as the cursor leaves it."""

    __slots__ = ("_at", "_file", "_limit", "_start", "_strings_left", "_window", "size")

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._limit = min(size, MAX_HEADER_BYTES)
        self._start = 0  # of the window, in the file
        self._window = b""
        self._at = 0  # of the cursor, in the window; may lie beyond its end after a skip
        self._strings_left = MAX_STRINGS

    @property
    def position(self) -> int:
        return self._start + self._at

    def _need(self, count: int) -> None:
        """Makes sure that `count` bytes at the cursor are in the window."""
        if self._at + count <= len(self._window):
            return
        start = self.position
        if start + count > self._limit:
            self._fail_at_end(start + count)
        self._file.seek(start)
        self._window = self._file.read(max(count, WINDOW_BYTES))
        self._start, self._at = start, 0
        if len(self._window) < count:
            raise BadModel("the file became shorter while it was read")

    def _fail_at_end(self, wanted: int) -> None:
        if wanted > self.size:
            raise BadModel(f"the file is truncated or damaged: its header runs beyond its end ({self.size:,} bytes)")
        raise BadModel(f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB: the file is damaged")

    def take(self, count: int) -> bytes:
        """The next `count` bytes; the caller has bounded `count`."""
        self._need(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def unpack(self, layout: struct.Struct) -> Number:
        self._need(layout.size)
        value: Number = layout.unpack_from(self._window, self._at)[0]
        self._at += layout.size
        return value

    def u32(self) -> int:
        return int(self.unpack(_U32))

    def u64(self) -> int:
        return int(self.unpack(_U64))

    def skip(self, count: int) -> None:
        self._at += count
        if self.position > self._limit:
            self._fail_at_end(self.position)

    def check_room(self, count: int, item_bytes: int) -> None:
        """Refuses a count of items that the rest of the file cannot hold."""
        if count * item_bytes > self._limit - self.position:
            self._fail_at_end(self.position + count * item_bytes)

    def skip_strings(self, count: int) -> None:
        """Passes `count` strings without decoding them: a vocabulary of 150,000 tokens takes milliseconds."""
        self.check_room(count, _U64.size)
        self._strings_left -= count
        if self._strings_left < 0:
            raise BadModel(f"the header lists more than {MAX_STRINGS:,} strings: the file is damaged")
        length_at = _U64.unpack_from
        window, at, last = self._window, self._at, len(self._window) - _U64.size
        for _ in range(count):
            if at > last:
                self._at = at
                self._need(_U64.size)
                window, at, last = self._window, self._at, len(self._window) - _U64.size
            at += _U64.size + length_at(window, at)[0]
        self._at = at
        self.skip(0)

    def string(self, max_bytes: int, what: str) -> str:
        length = self.u64()
        self.check_room(length, 1)
        if length > max_bytes:
            raise BadModel(f"{what} of {length:,} bytes is longer than {max_bytes:,}: the file is damaged")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise BadModel(f"{what} is no UTF-8 text: the file is damaged") from None


def read_container(file: BinaryIO, size_bytes: int) -> Container:
    """Reads the header of an open GGUF file whose magic has been checked. Costs at most a few MiB.

    Raises: `BadModel` for everything that llama.cpp would refuse in the container.
    """
    reader = _Reader(file, size_bytes)
    reader.skip(len(MAGIC))
    version = _read_version(reader)
    n_tensors, n_keys = reader.u64(), reader.u64()
    if n_keys > MAX_KEYS or n_tensors > MAX_TENSORS:
        raise BadModel(f"the header claims {n_tensors:,} tensors and {n_keys:,} keys: the file is damaged")
    keys: dict[str, Value] = {}
    for _ in range(n_keys):
        key = reader.string(MAX_KEY_BYTES, "a key")
        if key in keys:
            raise BadModel(f"the key {key!r} occurs twice: the file is damaged")
        keys[key] = _read_value(reader, key)
    return _read_tensor_table(reader, version, keys, n_tensors)


def _read_version(reader: _Reader) -> int:
    version = reader.u32()
    if version in VERSIONS:
        return version
    if version and not version & 0xFFFF:
        raise BadModel("the file is big-endian GGUF; convert it to little-endian with gguf-convert-endian")
    raise BadModel(f"GGUF version {version} is not supported; versions 2 and 3 are")


def _read_value(reader: _Reader, key: str) -> Value:
    code = reader.u32()
    if scalar := _SCALARS.get(code):
        return reader.unpack(scalar)
    if code == _STRING:
        return _read_text(reader, key)
    if code == _ARRAY:
        return _read_array(reader, key)
    raise BadModel(f"the value of {key!r} has the unknown type {code}: the file is damaged")


def _read_text(reader: _Reader, key: str) -> Value:
    length = reader.u64()
    reader.check_room(length, 1)
    if length > KEPT_STRING_BYTES:
        reader.skip(length)
        return LongText(length)
    # Texts are for people and may come in any encoding; only names that decide something are compared.
    return reader.take(length).decode(errors="replace")


def _read_array(reader: _Reader, key: str) -> Value:
    code, count = reader.u32(), reader.u64()
    if code == _STRING:
        reader.skip_strings(count)
        return LongArray(count)
    if code not in _SCALARS:
        kind = "arrays" if code == _ARRAY else f"the unknown type {code}"
        raise BadModel(f"{key!r} is an array of {kind}, which llama.cpp does not read: the file is damaged")
    scalar = _SCALARS[code]
    reader.check_room(count, scalar.size)
    if count > KEPT_ARRAY_ITEMS:
        reader.skip(count * scalar.size)
        return LongArray(count)
    return tuple(item[0] for item in scalar.iter_unpack(reader.take(count * scalar.size)))


def _alignment(keys: dict[str, Value]) -> int:
    value = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise BadModel(f"general.alignment is {value!r}, which is no power of two: the file is damaged")
    return value


def _read_tensor_table(reader: _Reader, version: int, keys: dict[str, Value], n_tensors: int) -> Container:
    alignment = _alignment(keys)
    names: set[str] = set()
    bytes_by_type: dict[str, int] = {}
    end = 0
    for _ in range(n_tensors):
        name = reader.string(MAX_NAME_BYTES, "a tensor's name")
        if name in names:
            raise BadModel(f"the tensor {name!r} occurs twice: the file is damaged")
        names.add(name)
        kind, size = _read_shape(reader, name)
        offset = reader.u64()
        expected = _padded(end, alignment)
        if offset != expected:
            raise BadModel(f"tensor {name!r} lies at {offset:,}, not at {expected:,}: the file is damaged")
        end = offset + size
        bytes_by_type[kind] = bytes_by_type.get(kind, 0) + size
    data_start = _padded(reader.position, alignment)
    return Container(version, keys, n_tensors, sum(bytes_by_type.values()), bytes_by_type, data_start, data_start + end)


def _read_shape(reader: _Reader, name: str) -> tuple[str, int]:
    """The type's name and the tensor's size in bytes."""
    n_dimensions = reader.u32()
    if n_dimensions > MAX_DIMENSIONS:
        raise BadModel(f"tensor {name!r} has {n_dimensions} dimensions: the file is damaged")
    shape = [reader.u64() for _ in range(n_dimensions)]
    code = reader.u32()
    if code not in TENSOR_TYPES:
        reason = "llama.cpp has removed" if code in REMOVED_TENSOR_TYPES else "the engine's llama.cpp does not know"
        raise BadModel(f"tensor {name!r} has type {code}, which {reason}: get another quantisation of the model")
    kind, block, block_bytes = TENSOR_TYPES[code]
    row = shape[0] if shape else 1
    if row % block:
        raise BadModel(f"tensor {name!r} has rows of {row}, no multiple of {kind}'s {block}: the file is damaged")
    elements = 1
    for extent in shape:
        elements *= extent
    if elements >= MAX_ELEMENTS:
        raise BadModel(f"tensor {name!r} claims {elements:,} elements: the file is damaged")
    return kind, elements // block * block_bytes


def _padded(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) & ~(alignment - 1)
