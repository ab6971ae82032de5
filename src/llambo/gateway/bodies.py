"""What of a request's body is read here: what choosing a node needs, and what no engine could take.

Pure. The body is decoded one level deep: each member stays the bytes that the client sent. A member that is not named
here is the engine's business, and so is what a value means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Annotated, Any

import msgspec

from llambo.cluster import bounds
from llambo.cluster.prefix import conversation_text
from llambo.core.errors import BadRequest
from llambo.core.fusion import FusionRequest
from llambo.gateway.errors import InvalidField
from llambo.gateway.fusion import Wanted

Fields = Mapping[str, msgspec.Raw]

MAX_NESTING = bounds.MAX_DEPTH + 8
"""How deep a body may be nested: a JSON Schema as deep as one may be, in a tool, in a list, in a body. The engine reads
some members by recursion, and its process would die of one that is nested deep enough."""
MAX_COUNT = 2**31 - 1
MAX_SESSION = 256
"""Characters of a session's name."""
EXTENSIONS = "llambo"
FUSION = f"{EXTENSIONS}.fusion"


@dataclass(frozen=True, slots=True)
class Asked:
    """A body as far as it was read. `fields` are what goes to the node; the others are as in `RelayRequest`.

    With `fusion` several nodes are to answer.
    """

    fields: Fields
    model: str
    streams: bool
    text: str
    max_tokens: int
    session: str
    node_type: str
    fusion: FusionRequest | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How the body of an endpoint is read.

    One member of each group of `required` must be there. `text` gives what the model will read. `may_stream` says
    whether `stream` means anything, `may_fuse` whether several nodes may answer.
    """

    required: tuple[tuple[str, ...], ...] = ()
    text: Callable[[Fields], str] = lambda fields: ""
    may_stream: bool = False
    may_fuse: bool = False


def read(body: bytes, shape: Shape, *, session: str = "") -> Asked:
    """What the body asks for; `session` is what a header named, which the body's own comes before.

    Raises: `BadRequest`, as `InvalidField` where one member is at fault.
    """
    fields = decode(body)
    extensions = _extensions(fields.pop(EXTENSIONS, None))
    for group in shape.required:
        if not any(name in fields for name in group):
            raise InvalidField(f"the body has no {' or '.join(group)}", group[0])
    values = {name: check(name, fields[name]) for name, check in _CHECKS.items() if name in fields}
    return Asked(
        fields=fields,
        model=values.get("model") or "",
        streams=shape.may_stream and bool(values.get("stream")),
        text=shape.text(fields),
        max_tokens=max(0, *(values.get(name) or 0 for name in _LIMITS)),
        session=_session(extensions.session or session),
        node_type=extensions.node_type,
        fusion=None if extensions.fusion is None else _fusion(extensions.fusion, shape),
    )


def decode(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of the JSON object that `body` is. Raises: `BadRequest`."""
    try:
        body.decode()
        members = _decode_members(body)
        if _nesting_is_over(body, MAX_NESTING):
            raise BadRequest(f"the body is nested more than {MAX_NESTING} deep")
        return members
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BadRequest(f"the body is nested more than {MAX_NESTING} deep") from None
    except msgspec.ValidationError:
        raise BadRequest("the body is no JSON object; send one such as {...}") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def _nesting_is_over(body: bytes, limit: int) -> bool:
    """Whether brackets of `body`, which is JSON, are open within each other more than `limit` deep.

    Everything here takes time in proportion to the body's length; of what is no JSON `_STRING` would take its square.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", body).translate(_AS_STEPS, _ALL_BUT_BRACKETS)
    return max(accumulate(memoryview(brackets).cast("b")), default=0) > limit


class _Extensions(msgspec.Struct, forbid_unknown_fields=True):
    session: str = ""
    node_type: str = ""
    fusion: Wanted | None = None


def _extensions(raw: msgspec.Raw | None) -> _Extensions:
    if raw is None:
        return _Extensions()
    found: _Extensions | None = decoded(EXTENSIONS, raw, _Extensions | None)
    return _Extensions() if found is None else found


def _fusion(wanted: Wanted, shape: Shape) -> FusionRequest:
    if not shape.may_fuse:
        raise InvalidField("fusion answers /v1/chat/completions and /v1/completions alone", FUSION)
    try:
        return wanted.request()
    except BadRequest as error:
        raise InvalidField(error.message, FUSION) from None


def _session(name: str) -> str:
    if len(name) > MAX_SESSION:
        raise InvalidField(f"a session's name has {MAX_SESSION} characters at most, not {len(name)}", "session")
    return name


# --- members that are checked here ------------------------------------------------------------------------------------


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Made once for each type: making one takes longer than a member does."""
    return msgspec.json.Decoder(kind)


def decoded(name: str, raw: msgspec.Raw, kind: Any) -> Any:
    """The member `name` as a value of `kind`. Raises: `InvalidField`."""
    try:
        return _decoder(kind).decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidField(f"{name} is of the wrong type: {error}", name) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidField(f"{name} cannot be read: {error}", name) from None


def _of(kind: Any) -> Callable[[str, msgspec.Raw], Any]:
    return lambda name, raw: decoded(name, raw, kind)


def _count(least: int) -> Callable[[str, msgspec.Raw], int | None]:
    def check(name: str, raw: msgspec.Raw) -> int | None:
        value: int | None = decoded(name, raw, int | None)
        if value is not None and not least <= value <= MAX_COUNT:
            raise InvalidField(f"{name} must be between {least} and {MAX_COUNT}, not {value}", name)
        return value

    return check


def _grammar(name: str, raw: msgspec.Raw) -> str | None:
    text: str | None = decoded(name, raw, str | None)
    if text:
        bounds.check_grammar(text)
    return text


_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")

_CHECKS: dict[str, Callable[[str, msgspec.Raw], Any]] = {
    "model": _of(str | None),
    "stream": _of(bool | None),
    **{name: _count(0) for name in _LIMITS[:3]},
    "n_predict": _count(-1),  # llama-server's word for "until it ends"
    "n": _count(1),
    "n_probs": _count(0),
    "top_logprobs": _count(0),
    "seed": _of(int | None),
    **{name: _of(float | None) for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")},
    "tools": _of(list[dict[str, msgspec.Raw]] | None),
    "response_format": _of(dict[str, msgspec.Raw] | None),
    "stream_options": _of(dict[str, msgspec.Raw] | None),
    "grammar": _grammar,
}
"""null counts as absent, as it does for the engine."""


# --- what the model will read -----------------------------------------------------------------------------------------


class _Turn(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b"")


class _Message(_Turn, kw_only=True):
    role: str


class _Part(msgspec.Struct):
    text: str | None = None


def _plain(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


def _content(name: str, raw: msgspec.Raw) -> str:
    """The text of a message: a string, or parts; parts that are no text stand for themselves."""
    match bytes(memoryview(raw)[:1]):
        case b'"':
            return str(decoded(name, raw, str))
        case b"[":
            parts: list[_Part] = decoded(name, raw, list[_Part])
            texts = [part.text for part in parts if part.text is not None]
            return "".join(texts) if len(texts) == len(parts) else _plain(raw)
        case b"" | b"n":
            return ""
        case _:
            raise InvalidField(f"the content in {name} must be a string or a list of parts", name)


def _conversation(name: str, fields: Fields, system: str = "", *, kind: type[_Turn] = _Message) -> str:
    """The text of a list of messages, after the tools and the system prompt, which templates put in front."""
    items: list[msgspec.Raw] = decoded(name, fields[name], list[msgspec.Raw])
    if not items:
        raise InvalidField(f"{name} is empty; give at least one message", name)
    turns: list[tuple[str, str]] = []
    if "tools" in fields:
        turns.append(("tools", _plain(fields["tools"])))
    if system in fields:
        turns.append(("system", _content(system, fields[system])))
    for item in items:
        turn: _Turn = decoded(name, item, kind)
        turns.append((turn.role, _content(name, turn.content) or _plain(item)))
    return conversation_text(turns)


def _messages(fields: Fields) -> str:
    return _conversation("messages", fields)


def _anthropic(fields: Fields) -> str:
    return _conversation("messages", fields, "system")


def _responses(fields: Fields) -> str:
    if bytes(memoryview(fields["input"])[:1]) != b'"':
        return _conversation("input", fields, "instructions", kind=_Turn)  # among them are results of tools
    turns = [("user", _content("input", fields["input"]))]
    if "instructions" in fields:
        turns.insert(0, ("system", _content("instructions", fields["instructions"])))
    return conversation_text(turns)


def _prompt(fields: Fields) -> str:
    """A prompt may be a text, token ids, several of these, or an object with a text and images."""
    value: object = decoded("prompt", fields["prompt"], str | list[msgspec.Raw] | dict[str, msgspec.Raw])
    return value if isinstance(value, str) else _plain(fields["prompt"])


def _infill(fields: Fields) -> str:
    extra = _plain(fields["input_extra"]) if "input_extra" in fields else ""
    names = ("input_prefix", "input_suffix", "prompt")
    return extra + "".join(decoded(name, fields[name], str | None) or "" for name in names if name in fields)


def _inputs(fields: Fields) -> str:
    name = "input" if "input" in fields else "content"
    decoded(name, fields[name], str | list[msgspec.Raw])
    return ""


def _tokens(fields: Fields) -> str:
    decoded("tokens", fields["tokens"], list[Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]])
    return ""


def _rerank(fields: Fields) -> str:
    decoded("query", fields["query"], str)
    name = "documents" if "documents" in fields else "texts"
    decoded(name, fields[name], list[msgspec.Raw])
    return ""


CHAT = Shape((("messages",),), _messages, may_stream=True, may_fuse=True)
COMPLETION = Shape((("prompt",),), _prompt, may_stream=True, may_fuse=True)
LLAMA_COMPLETION = Shape((("prompt",),), _prompt, may_stream=True)
RESPONSES = Shape((("input",),), _responses, may_stream=True)
ANTHROPIC = Shape((("messages",),), _anthropic, may_stream=True)
INFILL = Shape((("input_prefix",), ("input_suffix",)), _infill, may_stream=True)
COUNT_TOKENS = Shape((("messages",),), _anthropic)
TEMPLATE = Shape((("messages",),), _messages)
EMBEDDINGS = Shape((("input", "content"),), _inputs)
RERANK = Shape((("query",), ("documents", "texts")), _rerank)
TOKENIZE = Shape((("content",),), _inputs)
DETOKENIZE = Shape((("tokens",),), _tokens)
