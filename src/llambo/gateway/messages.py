"""The messages of `/v1/ws` as pure functions: one JSON object per text message; docs/gateway.md has their members.

Owns what a client may say and how answers look. Knows nothing of connections, of order, or of who answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeGuard

import msgspec

from llambo.cluster.control import ClusterEvent
from llambo.core.errors import BadRequest, LlamboError, TooLarge
from llambo.core.fusion import VoteCast
from llambo.core.fusion_document import cast_document, fusion_document
from llambo.core.types import Done, GenerateRequest, Message, Role, Sampling, TokenEvent, as_text, check_unicode
from llambo.gateway.fusion import Wanted

MAX_MESSAGE_BYTES = 2**20
PONG = '{"type":"pong"}'

Id = int | str
"""Chosen by the client, unique among its requests in flight."""

_MAX_ID_CHARACTERS = 128
_MAX_ID = 2**53  # beyond it JavaScript counts no more
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Infer:
    """An answer is wanted. `size_bytes` is what the message took."""

    id: Id
    request: GenerateRequest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The answer is not wanted any more."""

    id: Id


@dataclass(frozen=True, slots=True)
class Ping:
    """Is anybody there?"""


@dataclass(frozen=True, slots=True)
class Bad:
    """What could not be understood. `id` where it is an infer that ends with this error, else None."""

    id: Id | None
    error: LlamboError


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    content: str


class _Infer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The members of an infer, beside type and id."""

    prompt: str | None = None
    messages: list[_Turn] | None = None
    system: str = ""
    raw: bool = False
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] = []
    grammar: str = ""
    json_schema: str | dict[str, Any] = ""
    session: str = ""
    node_type: str = ""
    logprobs: bool = False
    fusion: Wanted | None = None


class _Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """A cancel has no members beside type and id."""


_MEMBERS = ", ".join(("type", "id", *_Infer.__struct_fields__))
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


def read(text: str) -> Infer | Cancel | Ping | Bad:
    """What a client said; never raises, since what is wrong is answered like what is right."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_MESSAGE_BYTES:
        return Bad(None, TooLarge(f"the message has {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are taken"))
    try:
        members = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Bad(None, BadRequest(_why_not_json(text, error)))
    match kind := members.pop("type", None):
        case "ping":
            return Ping()
        case "infer" | "cancel":
            key = members.pop("id", None)
            if not _is_id(key):
                return Bad(None, BadRequest("id must be a whole number or a text of 1 to 128 characters"))
            return _infer(key, members, len(data)) if kind == "infer" else _cancel(key, members)
        case _:
            return Bad(None, BadRequest("type must be infer, cancel or ping"))


def _why_not_json(text: str, error: Exception) -> str:
    match error:
        case msgspec.ValidationError() if "Expected `object`" in str(error):
            return "the message must be one JSON object"
        case RecursionError():
            return "the message is nested too deeply"
        case _ if _HALF_CHARACTER.search(text):
            return "the message is no valid JSON, or one of its \\u escapes is half a character"
        case _:
            return f"the message is no valid JSON: {error}"


def _is_id(value: object) -> TypeGuard[Id]:
    if isinstance(value, str):
        return 0 < len(value) <= _MAX_ID_CHARACTERS
    return isinstance(value, int) and not isinstance(value, bool) and -_MAX_ID <= value <= _MAX_ID


def _cancel(key: Id, members: dict[str, Any]) -> Cancel | Bad:
    if members:
        return Bad(None, BadRequest(f"a cancel has no member {next(iter(members))!r}: type and id are all"))
    return Cancel(key)


def _infer(key: Id, members: dict[str, Any], size_bytes: int) -> Infer | Bad:
    try:
        return Infer(key, _request(msgspec.convert(members, _Infer)), size_bytes)
    except msgspec.ValidationError as error:
        words = str(error)
        known = f"; known are {_MEMBERS}" if "unknown field" in words and "`$" not in words else ""
        return Bad(key, BadRequest(words + known))
    except LlamboError as error:
        return Bad(key, error)


def _request(asked: _Infer) -> GenerateRequest:
    """Raises: `BadRequest`."""
    for name in ("model", "session", "node_type", "system"):
        check_unicode(name, getattr(asked, name))
    return GenerateRequest(
        messages=_messages(asked),
        raw_prompt=asked.prompt if asked.raw else None,
        model=asked.model,
        sampling=Sampling(asked.max_tokens, asked.temperature, asked.top_p, asked.seed),
        logprobs=asked.logprobs,
        stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop),
        grammar=asked.grammar,
        json_schema=_schema(asked.json_schema),
        session=asked.session,
        node_type=asked.node_type,
        fusion=None if asked.fusion is None else asked.fusion.request(),
        interface="websocket",
    )


def _messages(asked: _Infer) -> tuple[Message, ...]:
    """The conversation, empty for a raw prompt; what a model could make nothing of is refused."""
    if (asked.prompt is None) == (asked.messages is None):
        raise BadRequest("give either prompt or messages, and not both")
    if asked.raw and (asked.prompt is None or asked.system):
        raise BadRequest("raw is for a prompt alone: without messages and without system")
    if asked.prompt == "" or asked.messages == []:
        raise BadRequest("the prompt is empty: give some text" if asked.prompt == "" else "messages is empty")
    turns = asked.messages or [_Turn("user", asked.prompt or "")]
    if any("\0" in text for text in (asked.system, *(turn.content for turn in turns))):
        raise BadRequest("a prompt or message holds a NUL character")
    if asked.raw:
        return ()
    system = (Message("system", asked.system),) if asked.system else ()
    return (*system, *(Message(turn.role, turn.content) for turn in turns))


def _schema(given: str | dict[str, Any]) -> str:
    if isinstance(given, str):
        return given
    return _encode(given).decode()


def token(key: Id, event: TokenEvent, *, logprobs: bool) -> str:
    """A piece of the answer."""
    said: dict[str, Any] = {"type": "token", "id": key, "text": event.text}
    if logprobs:
        said["logprob"] = event.logprob
    return _encode(said).decode()


def vote(key: Id, cast: VoteCast) -> str:
    """One of the nodes that were asked has answered or failed."""
    return _encode({"type": "vote", "id": key, **cast_document(cast)}).decode()


def done(key: Id, end: Done) -> str:
    """The answer is whole. Times in milliseconds."""
    members = {name: getattr(end, name) for name in _DONE}
    members |= {"ttft_ms": round(end.ttft_ms, 3), "time_ms": round(end.time_ms, 3)}
    if end.fusion is not None:
        members["fusion"] = fusion_document(end.fusion)
    return _done(key, failovers=end.failovers, **members)


def cancelled(key: Id, *, tokens: int, ttft_ms: float | None, time_ms: float) -> str:
    """The answer was cancelled here: what only the engine could tell is null."""
    first = None if ttft_ms is None else round(ttft_ms, 3)
    return _done(key, finish_reason="cancelled", tokens=tokens, ttft_ms=first, time_ms=round(time_ms, 3))


_DONE: dict[str, None] = dict.fromkeys(
    ("finish_reason", "model", "node", "tokens", "prompt_tokens", "cached_tokens", "ttft_ms", "time_ms", "fusion")
)
"""The members of the end of an answer; what is not known is null, never missing."""


def _done(key: Id, *, failovers: int = 0, **members: object) -> str:
    return _encode({"type": "done", "id": key, **_DONE, **members, "failovers": failovers}).decode()


def error(key: Id | None, what: LlamboError) -> str:
    """An infer ended in an error; None: something else that the client said was wrong."""
    return _encode({"type": "error", "id": key, "code": what.code, "message": as_text(what.message)}).decode()


def happened(event: ClusterEvent) -> str:
    """A cluster event. `time` in seconds since 1970."""
    fields = {
        name: value if value is None or isinstance(value, int | float) else as_text(str(value))
        for name, value in event.fields.items()
    }
    return _encode({"time": round(event.time, 3), "kind": event.kind, "fields": fields}).decode()
