"""The calls of the bridge's Python clients, without I/O: what they send, and what they make of the answers.

One definition for the synchronous client, the asynchronous one and the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from llambo.bridge.binary import AnswerFrame
from llambo.core.errors import LlamboError, from_code
from llambo.core.fusion import Fusion, VoteCast
from llambo.core.fusion_document import cast_of
from llambo.core.types import Done, Message

DEFAULT_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a streamed answer; the last one has `final` set, no text, and the counts.

    Times in milliseconds. A count is None where the answer was cut off before the engine told it. `fusion` is the
    outcome where several nodes were asked.
    """

    text: str
    final: bool = False
    ids: tuple[int, ...] = ()
    logprob: float | None = None
    finish_reason: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_ms: float | None = None
    time_ms: float | None = None
    model: str = ""
    node: str = ""
    failovers: int = 0
    fusion: Fusion | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer with its counts; `str()` of it is the text. Times in milliseconds.

    `fusion` is the outcome, with all votes, where several nodes were asked.
    """

    text: str
    finish_reason: str
    tokens: int | None
    prompt_tokens: int | None
    cached_tokens: int | None
    ttft_ms: float | None
    time_ms: float | None
    model: str
    node: str
    failovers: int = 0
    fusion: Fusion | None = None

    def __str__(self) -> str:
        """The text."""
        return self.text


class InferOptions(TypedDict, total=False):
    """The options of every call that generates; one that is not given is the engine's choice.

    `messages` replaces the prompt, `raw` skips the chat template, `timeout_s` bounds the call (of a stream: the wait
    for each token). The answer ends before any text of `stop`; `grammar` (GBNF) or `json_schema` (as text) bounds it.
    Requests of one `session` are queued and routed together; `node_type` wants a node of that type.
    """

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    raw: bool
    model: str
    system: str
    logprobs: bool
    stop: Sequence[str]
    grammar: str
    json_schema: str
    session: str
    node_type: str
    timeout_s: float


class ChatOptions(InferOptions, total=False):
    """The options of the calls that take a conversation instead of a prompt, and of those that ask several nodes.

    `fusion` names the strategy by which the answers of `nodes` nodes become one; `min_consensus` of them must agree for
    a quorum, and `extract` is a regular expression for what they are compared by.
    """

    messages: Sequence[Message]
    fusion: str
    nodes: int
    min_consensus: int
    extract: str


class LoadModelOptions(TypedDict, total=False):
    """The options of `load_model`; `ctx` is tokens per slot. One that is not given is the bridge's choice."""

    ctx: int
    slots: int
    threads: int
    gpu_layers: int
    timeout_s: float


_ASK_NAMES = ChatOptions.__optional_keys__
_LOAD_NAMES = LoadModelOptions.__optional_keys__


def split_timeout(options: Any, default_s: float) -> tuple[dict[str, Any], float]:
    """The options without `timeout_s`, and its value."""
    fields = dict(options)
    return fields, fields.pop("timeout_s", default_s)


def ask_fields(prompt: str, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of an infer or infer_stream request.

    Raises: `TypeError` for an option that does not exist, as any call would.
    """
    _check_names(options, _ASK_NAMES)
    messages = options.pop("messages", None)
    if messages is None:
        return {"prompt": prompt, **options}
    if prompt:
        raise TypeError("give either prompt or messages, and not both")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"messages": turns, **options}


def multi_fields(prompts: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of an infer_multi request.

    Raises: `TypeError`.
    """
    _check_names(options, InferOptions.__optional_keys__)
    return {"prompts": list(prompts), **options}


def load_fields(path: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a load request.

    Raises: `TypeError`.
    """
    _check_names(options, _LOAD_NAMES)
    return {"path": path, "name": name, **options}


def _check_names(options: dict[str, Any], known: frozenset[str]) -> None:
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; known are {', '.join(sorted(known))}")


def event_of(frame: AnswerFrame) -> Token | VoteCast:
    """What a `token`, `vote` or `done` frame tells.

    Raises: `LlamboError` for a vote that is none.
    """
    if frame.type == "token":
        return Token(frame.token, ids=frame.ids, logprob=frame.logprob)
    if frame.type == "vote":
        return cast_of(frame.data)
    return last_token(frame)


def last_token(end: AnswerFrame | Done) -> Token:
    """The token without text that ends an answer and has its counts."""
    return Token(
        "",
        True,
        finish_reason=end.finish_reason,
        tokens=end.tokens,
        prompt_tokens=end.prompt_tokens,
        cached_tokens=end.cached_tokens,
        ttft_ms=end.ttft_ms,
        time_ms=end.time_ms,
        model=end.model,
        node=end.node,
        failovers=end.failovers,
        fusion=end.fusion,
    )


def completion_of(frame: AnswerFrame | Token, text: str) -> Completion:
    """The whole answer with the counts of its last frame or token."""
    return Completion(
        text,
        frame.finish_reason,
        frame.tokens,
        frame.prompt_tokens,
        frame.cached_tokens,
        frame.ttft_ms,
        frame.time_ms,
        frame.model,
        frame.node,
        frame.failovers,
        frame.fusion,
    )


def checked(frame: AnswerFrame) -> AnswerFrame:
    """The answer itself, unless it is an error.

    Raises: the `LlamboError` that the bridge reported.
    """
    if frame.type == "error":
        raise from_code(frame.code, frame.message)
    return frame


def data_of(frame: AnswerFrame, kind: type[Any]) -> Any:
    """The `data` of an answer, which must be of the kind that the call promises.

    Raises: `LlamboError` when the bridge sent something else.
    """
    if not isinstance(frame.data, kind):
        raise LlamboError(f"the bridge answered with {type(frame.data).__name__} where {kind.__name__} belongs")
    return frame.data
