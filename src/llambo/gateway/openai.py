"""OpenAI's requests and answers where no node's own server speaks them: what fusion is asked, and what it answers.

Pure. A body that is relayed is the engine's business, member by member. This one is read here to its end, so that a
member which fusion cannot honour is refused, and none is passed over.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llambo.core.fusion import Fusion, VoteCast
from llambo.core.fusion_document import cast_document, fusion_document
from llambo.core.types import Done, GenerateRequest, Message, Role, Sampling
from llambo.gateway import sse
from llambo.gateway.bodies import EXTENSIONS, Asked, Fields, decoded
from llambo.gateway.errors import InvalidField

Kind = Literal["chat", "text"]
"""Whose objects: those of /v1/chat/completions or of /v1/completions."""

END = sse.event(b"[DONE]")

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_READ = frozenset(
    {"messages", "prompt", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"}
    | {"top_p", "seed", "stop", "grammar", "json_schema", "response_format"}
)
_OF_NO_EFFECT = frozenset(("user", "metadata", "safety_identifier", "prompt_cache_key"))
"""Members that say who asks; no engine answers otherwise for them."""

_HARMLESS: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
"""Members that fusion cannot honour, with the values that ask for nothing; null is one for each."""


# --- what is asked ----------------------------------------------------------------------------------------------------


def request_of(asked: Asked, kind: Kind) -> GenerateRequest:
    """What the door is to be asked. Raises: `BadRequest`, as `InvalidField` where one member is at fault."""
    fields = asked.fields
    for name, raw in fields.items():
        _check_is_honoured(name, raw)
    limit = _value(fields, "max_completion_tokens", int)
    return GenerateRequest(
        messages=_messages(fields) if kind == "chat" else (),
        raw_prompt=_prompt(fields) if kind == "text" else None,
        model=asked.model,
        sampling=Sampling(
            max_tokens=_value(fields, "max_tokens", int) if limit is None else limit,
            temperature=_value(fields, "temperature", float),
            top_p=_value(fields, "top_p", float),
            seed=_value(fields, "seed", int),
        ),
        stop=_stop(fields),
        grammar=_value(fields, "grammar", str) or "",
        json_schema=_schema(fields),
        session=asked.session,
        node_type=asked.node_type,
        fusion=asked.fusion,
        interface="http",
    )


def wants_usage(asked: Asked) -> bool:
    """Whether a stream is to end with its counts."""
    return bool((_value(asked.fields, "stream_options", dict) or {}).get("include_usage"))


def _check_is_honoured(name: str, raw: msgspec.Raw) -> None:
    if name in _READ or name in _OF_NO_EFFECT:
        return
    value: object = decoded(name, raw, Any)
    if value is None or any(type(value) is type(nothing) and value == nothing for nothing in _HARMLESS.get(name, ())):
        return
    raise InvalidField(f"fusion cannot honour {name[:80]}; leave it out, or leave out {EXTENSIONS}.fusion", name[:80])


def _value(fields: Fields, name: str, kind: Any) -> Any:
    return decoded(name, fields[name], kind | None) if name in fields else None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    """A message; those that an SDK gives back carry members that are null."""

    role: str
    content: str | list[_Part] | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = None


def _messages(fields: Fields) -> tuple[Message, ...]:
    turns: list[_Turn] = decoded("messages", fields["messages"], list[_Turn])
    return tuple(_message(turn) for turn in turns)


def _message(turn: _Turn) -> Message:
    role = _ROLES.get(turn.role)
    if role is None or turn.tool_calls:
        what = "calls of tools" if turn.tool_calls else f"messages of the role {turn.role[:40]!r}"
        raise InvalidField(f"fusion takes no {what}; roles are {', '.join(_ROLES)}", "messages")
    parts = turn.content if isinstance(turn.content, list) else [_Part("text", turn.content or "")]
    if any(part.type != "text" or part.text is None for part in parts):
        raise InvalidField("fusion takes messages of text alone", "messages")
    return Message(role, _text("messages", "".join(part.text or "" for part in parts)))


def _prompt(fields: Fields) -> str:
    prompt: object = decoded("prompt", fields["prompt"], Any)
    match prompt:
        case str(text) | [str(text)] if text:
            return _text("prompt", text)
        case "" | [""]:
            raise InvalidField("the prompt is empty: give some text", "prompt")
        case _:
            raise InvalidField("fusion takes one prompt, a text; token ids and several prompts it does not", "prompt")


def _text(name: str, text: str) -> str:
    if "\0" in text:
        raise InvalidField(f"{name} must hold no NUL character", name)
    return text


def _stop(fields: Fields) -> tuple[str, ...]:
    stop: str | list[str] | None = _value(fields, "stop", str | list[str])
    texts = [stop] if isinstance(stop, str) else stop or []
    return tuple(text for text in texts if text)  # an empty one stops nothing, as in llama-server


_NONE = msgspec.Raw(b"")


class _Named(msgspec.Struct):
    schema: msgspec.Raw


class _Format(msgspec.Struct):
    """`response_format`; of a schema's name and strictness nothing depends here: it always bounds the answer."""

    type: str
    json_schema: _Named | None = None
    schema: msgspec.Raw = _NONE


def _schema(fields: Fields) -> str:
    """The JSON Schema that bounds the answer, as text; "" without one."""
    format_: _Format | None = _value(fields, "response_format", _Format)
    match format_:
        case None | _Format(type="text"):
            schema = fields.get("json_schema", _NONE)
        case _Format(type="json_object", schema=given):
            schema = given if bytes(given) else msgspec.Raw(b'{"type":"object"}')
        case _Format(type="json_schema", json_schema=_Named(schema=given)):
            schema = given
        case _:
            raise InvalidField(
                "response_format must be text, json_object, or json_schema with a schema", "response_format"
            )
    if format_ is not None and format_.type != "text" and _value(fields, "json_schema", Any) is not None:
        raise InvalidField("response_format and json_schema both bound the answer; give one of them", "json_schema")
    text = bytes(schema).decode()
    return "" if text == "null" else text


# --- what is answered -------------------------------------------------------------------------------------------------


class Objects:
    """The objects of one answer. `key` makes their id, `created` is in seconds since 1970, `model` whom was asked."""

    def __init__(self, kind: Kind, key: str, created: int, model: str) -> None:
        self._kind = kind
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{key}"
        self._created = created
        self._model = model
        self._has_begun = False

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """A reply that is no stream."""
        said = {"message": {"role": "assistant", "content": text}} if self._kind == "chat" else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": done.finish_reason}
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        told = {} if done.fusion is None else {EXTENSIONS: outcome(done.fusion)}
        return {**self._object(name, [choice], done.model), "usage": usage(done), **told}

    def vote(self, cast: VoteCast) -> bytes:
        """A vote as an event of a stream."""
        return self._event([], **{EXTENSIONS: {"vote": cast_document(cast)}})

    def piece(self, text: str) -> bytes:
        """A piece of the answer, as an event; the first one of a chat names the role."""
        if self._kind == "text":
            return self._event([{"index": 0, "text": text, "logprobs": None, "finish_reason": None}])
        role = {} if self._has_begun else {"role": "assistant"}
        self._has_begun = True
        return self._event([{"index": 0, "delta": {**role, "content": text}, "logprobs": None, "finish_reason": None}])

    def ends(self, done: Done, *, with_usage: bool) -> list[bytes]:
        """What ends a stream: why it ended, its counts, what became of the votes."""
        said: dict[str, Any] = {"delta": {}} if self._kind == "chat" else {"text": ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": done.finish_reason}
        events = [self._event([choice])]
        if with_usage:
            events.append(self._event([], usage=usage(done)))
        if done.fusion is not None:
            events.append(self._event([], **{EXTENSIONS: outcome(done.fusion)}))
        return [*events, END]

    def _event(self, choices: list[dict[str, Any]], **members: Any) -> bytes:
        name = "chat.completion.chunk" if self._kind == "chat" else "text_completion"
        return sse.event(msgspec.json.encode({**self._object(name, choices, self._model), **members}))

    def _object(self, name: str, choices: list[dict[str, Any]], model: str) -> dict[str, Any]:
        return {"id": self._id, "object": name, "created": self._created, "model": model, "choices": choices}


def outcome(fusion: Fusion) -> dict[str, Any]:
    """What stands under `llambo` beside an answer, or beside the error where there is none."""
    return {"fusion": fusion_document(fusion)}


def usage(done: Done) -> dict[str, Any]:
    """The counts: of the answer that was chosen, not of all that were asked for."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.tokens,
        "total_tokens": done.prompt_tokens + done.tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }
