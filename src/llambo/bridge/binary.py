"""The binary protocol as pure functions: a frame is a 4-byte big-endian length, then a MessagePack map of that length.

A request is `{id, op, …fields}`, an answer `{id, type: ok|token|vote|done|error, …}`. Both sides use the types here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, TypeVar, assert_never

import msgspec

from llambo.bridge import commands as c
from llambo.bridge.answers import STARTING, Answer, Failed, Finished, Reply, Started
from llambo.core.errors import BadRequest
from llambo.core.fusion import Fusion, VoteCast
from llambo.core.fusion_document import cast_document
from llambo.core.types import LoadOptions, TokenEvent

HEADER_BYTES = 4
RequestKey = int | str  # chosen by the client, unique among its requests in flight

_MAX_KEY_CHARACTERS = 128
_T = TypeVar("_T")

_encode = msgspec.msgpack.Encoder().encode
_REQUEST = msgspec.msgpack.Decoder(dict[str, Any])


class AnswerFrame(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """An answer as it travels; a field that is not there has its default. `id` None: no request could be made out."""

    id: RequestKey | None
    type: Literal["ok", "token", "vote", "done", "error"]
    message: str = ""
    code: str = ""
    data: Any = None
    token: str = ""
    ids: tuple[int, ...] = ()
    logprob: float | None = None
    finish_reason: str = ""
    finish_reasons: tuple[str, ...] = ()
    model: str = ""
    node: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_ms: float | None = None
    time_ms: float | None = None
    failovers: int = 0
    fusion: Fusion | None = None


_ANSWER = msgspec.msgpack.Decoder(AnswerFrame)


def frame(payload: bytes) -> bytes:
    """The payload with its length before it."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def encode_request(key: RequestKey, op: str, values: dict[str, Any]) -> bytes:
    """A request as a frame."""
    return frame(_encode({"id": key, "op": op, **values}))


def decode_answer(payload: bytes) -> AnswerFrame:
    """The answer in a frame's payload.

    Raises: `BadRequest` when it is none.
    """
    try:
        return _ANSWER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the bridge sent a frame that is no answer: {error}") from None


def encode_answer(key: RequestKey | None, answer: Answer) -> bytes:
    """The answer to request `key` as a frame."""
    values: dict[str, object]
    match answer:
        case TokenEvent():
            shape = AnswerFrame(id=key, type="token", token=answer.text, ids=answer.ids, logprob=answer.logprob)
            return frame(_encode(shape))
        case VoteCast():
            values = {"type": "vote", "data": cast_document(answer)}
        case Reply():
            values = {"type": "ok", "message": answer.message, "data": answer.data, **answer.counts}
        case Started():
            values = {"type": "ok", "message": STARTING, "data": {"id": answer.request_id}}
        case Finished():
            values = {"type": "done", **answer.counts}
        case Failed():
            error = answer.error
            values = {"type": "error", "code": error.code, "message": error.message, "data": answer.data}
        case _:
            assert_never(answer)
    present = {name: value for name, value in values.items() if value is not None}
    return frame(_encode({"id": key, **present}))


@dataclass(frozen=True, slots=True)
class Request:
    """A request made out of a frame: its key where one could be read, and the command or why there is none."""

    key: RequestKey | None
    command: c.Command | BadRequest


def decode_request(payload: bytes) -> Request:
    """The request in a frame's payload; never raises, since a bad one is answered like a good one."""
    try:
        values = _REQUEST.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Request(None, BadRequest(f"the frame is no MessagePack map with text keys: {error}"))
    key = values.pop("id", None)
    if not _is_key(key):
        return Request(None, BadRequest("id must be a whole number or a text of 1 to 128 characters"))
    try:
        return Request(key, _build(values))
    except BadRequest as error:
        return Request(key, error)


def _is_key(key: object) -> bool:
    if isinstance(key, str):
        return 0 < len(key) <= _MAX_KEY_CHARACTERS
    return isinstance(key, int) and not isinstance(key, bool)


def _build(values: dict[str, Any]) -> c.Command:
    op = values.pop("op", None)
    if not isinstance(op, str):
        raise BadRequest("op must name a command, such as ping")
    kind = c.command_type(op.upper())
    build = _BUILDERS.get(kind)
    if build is not None:
        return build(values)
    return _convert(kind, values)


@cache
def _field_names(shape: type[Any]) -> frozenset[str]:
    return frozenset(field.name for field in fields(shape))


def _convert(shape: type[_T], values: dict[str, Any]) -> _T:
    known = _field_names(shape)  # type: ignore[arg-type] # a class is hashable
    if not values.keys() <= known:
        unknown = sorted(values.keys() - known)
        raise BadRequest(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known)) or 'none'}")
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None


@dataclass(frozen=True, slots=True)
class _LoadFields:
    path: str
    name: str = ""
    ctx: int = 0
    slots: int = 0
    threads: int = 0
    gpu_layers: int = -1


def _build_load(values: dict[str, Any]) -> c.Load:
    given = _convert(_LoadFields, values)
    options = LoadOptions(given.ctx, given.slots, given.threads, given.gpu_layers)
    return c.build_load(given.path, given.name, options)


def _build_tokenize(values: dict[str, Any]) -> c.Tokenize:
    command = _convert(c.Tokenize, values)
    c.check_text("text", command.text)
    return command


def _build_embed(values: dict[str, Any]) -> c.Embed:
    command = _convert(c.Embed, values)
    c.check_text("text", command.text)
    return command


_BUILDERS: dict[type[c.Command], Callable[[dict[str, Any]], c.Command]] = {
    c.Load: _build_load,
    c.Infer: lambda values: c.Infer(_convert(c.Ask, values).one()),
    c.InferStream: lambda values: c.InferStream(_convert(c.Ask, values).one()),
    c.InferMulti: lambda values: c.InferMulti(_convert(c.Ask, values).many()),
    c.Tokenize: _build_tokenize,
    c.Embed: _build_embed,
    c.Hello: lambda values: c.build_hello(_convert(c.Hello, values).version),
}
