"""The control protocol's codec: calls, and their answers, as JSON lines.

A request is {"id", "call", "args"}; its answers are any number of {"id", "progress"}, then {"id", "ok"} or
{"id", "error": {"code", "message"}}. Owns the calls and what their arguments may be; pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from llambo.core.errors import BadRequest, LlamboError, from_code

MAX_LINE_BYTES = 1 << 20
"""Longest request."""


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `Control` is asked for; the fields are its arguments."""


class Status(Call, frozen=True):
    """`Control.cluster_status`."""


class Nodes(Call, frozen=True):
    """`Control.nodes`."""


class Spawn(Call, frozen=True):
    """`Control.spawn`; progress {"ready", "wanted"}."""

    count: int
    node_type: str = ""
    model: str = ""
    slots: int = 0


class Scale(Call, frozen=True):
    """`Control.scale`; progress {"ready", "wanted"}."""

    count: int
    model: str = ""


class Attach(Call, frozen=True):
    """`Control.attach`. The key is not part of what this prints as."""

    url: str
    node_type: str = ""
    api_key: str = ""
    api_key_env: str = ""

    def __repr__(self) -> str:
        return f"Attach({self.url!r}, {self.node_type!r})"


class Detach(Call, frozen=True):
    """`Control.detach`."""

    node: str


class Drain(Call, frozen=True):
    """`Control.drain`."""

    node: str


class Kill(Call, frozen=True):
    """`Control.kill`."""

    node: str


class Restart(Call, frozen=True):
    """`Control.restart`."""

    node: str


class Pin(Call, frozen=True):
    """`Control.pin`."""

    model: str
    pinned: bool


class Balancer(Call, frozen=True):
    """`Control.balancer_stats`, after `Control.set_strategy` where a strategy is given."""

    strategy: str = ""


class Events(Call, frozen=True):
    """`Control.events`, each as progress, until the caller hangs up."""


class Metrics(Call, frozen=True):
    """`Control.metrics`."""


class Checkpoint(Call, frozen=True):
    """`Control.checkpoint`."""


class Save(Call, frozen=True):
    """`Control.save_checkpoint`; "" is where the configuration says."""

    path: str = ""


class Restore(Call, frozen=True):
    """`Control.restore_checkpoint`; "" is where the configuration says."""

    path: str = ""


class Shutdown(Call, frozen=True):
    """Asks the daemon to end; answered at once with its process id."""


NAMES: dict[type[Call], str] = {kind: kind.__name__.lower() for kind in Call.__subclasses__()}
"""What each call is called on the line."""

_KINDS = {name: kind for kind, name in NAMES.items()}


class _Request(msgspec.Struct):
    id: int
    call: str
    args: msgspec.Raw = msgspec.Raw(b"{}")


class _Fault(msgspec.Struct):
    code: str
    message: str


class _Answer(msgspec.Struct):
    id: int
    progress: Any = msgspec.UNSET
    ok: Any = msgspec.UNSET
    error: _Fault | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Progress:
    """What a call that goes on has to tell."""

    value: Any


@dataclass(frozen=True, slots=True)
class Result:
    """What a call gave."""

    value: Any


class BadLine(Exception):
    """A line that is no request, and the error for it; `request_id` is its id where that could be read, else 0."""

    def __init__(self, message: str, request_id: int = 0) -> None:
        super().__init__(message)
        self.error = BadRequest(message)
        self.request_id = request_id


def encode_request(request_id: int, call: Call) -> bytes:
    """The line of a request."""
    return msgspec.json.encode({"id": request_id, "call": NAMES[type(call)], "args": call}) + b"\n"


def decode_request(line: bytes) -> tuple[int, Call]:
    """The id and the call in a line.

    Raises: `BadLine`.
    """
    try:
        request = msgspec.json.decode(line, type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLine(f"this is no request: {error}") from None
    kind = _KINDS.get(request.call)
    if kind is None:
        raise BadLine(f"there is no call {request.call!r}; there are {', '.join(_KINDS)}", request.id)
    try:
        return request.id, msgspec.json.decode(request.args, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLine(f"{request.call}: {error}", request.id) from None


def encode_answer(request_id: int, answer: Progress | Result | LlamboError) -> bytes:
    """The line of an answer; values are JSON's own, dataclasses or structs."""
    match answer:
        case Progress(value):
            fields = _Answer(request_id, progress=value)
        case Result(value):
            fields = _Answer(request_id, ok=value)
        case LlamboError():
            fields = _Answer(request_id, error=_Fault(answer.code, answer.message))
    return msgspec.json.encode(fields) + b"\n"


def decode_answer(line: bytes) -> tuple[int, Progress | Result | LlamboError]:
    """The id and the answer in a line.

    Raises: `LlamboError` for a line that is none.
    """
    try:
        fields = msgspec.json.decode(line, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LlamboError(f"the cluster's answer cannot be understood: {error}") from None
    if isinstance(fields.error, _Fault):
        return fields.id, from_code(fields.error.code, fields.error.message)
    if fields.progress is not msgspec.UNSET:
        return fields.id, Progress(fields.progress)
    if fields.ok is not msgspec.UNSET:
        return fields.id, Result(fields.ok)
    raise LlamboError("the cluster's answer has neither progress, ok nor error")
