"""How a failure looks from outside: its HTTP status, its envelope in the dialect of the endpoint, its headers.

Pure. The table is in docs/gateway.md; each error class has one row here, the nearest base class counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from llambo.core import errors
from llambo.core.errors import LlamboError
from llambo.core.llama_fault import LlamaFault, fault_in
from llambo.core.types import as_text
from llambo.gateway import sse

Dialect = Literal["openai", "responses", "anthropic"]
"""Whose envelope an endpoint answers with; "responses" has OpenAI's with a form of its own for what is in a stream."""

RETRY_AFTER_S = 1
"""How long a caller should wait who found the queue full: places come free as answers end."""


class InvalidField(errors.BadRequest):
    """A member of the body is wrong; `param` names it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class Missing(errors.NotFound):
    """What is named by a path is not there, and it is no model."""


class Conflict(LlamboError):
    """What was asked does not go with what is happening now."""

    code = "conflict"


class Stopping(LlamboError):
    """The daemon stops: what runs may end, nothing new begins."""

    code = "stopping"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as the outside sees it. `retry_after_s` 0: no header says when to try again.

    `extensions` is what only Llambo has to say beside the error.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float = 0.0
    extensions: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The reply's headers, beside its length."""
        found = [(b"content-type", b"application/json")]
        if self.retry_after_s > 0:
            found.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        return found

    def body(self, dialect: Dialect) -> bytes:
        """The reply's body."""
        return msgspec.json.encode(self._envelope(dialect))

    def event(self, dialect: Dialect) -> bytes:
        """The same as an event in a stream, with the empty line that ends it."""
        envelope = self._envelope(dialect)
        if dialect == "responses":
            envelope |= {"type": "error", "code": self.code, "message": as_text(self.message), "param": self.param}
        return sse.event(msgspec.json.encode(envelope), "" if dialect == "openai" else "error")

    def _envelope(self, dialect: Dialect) -> dict[str, Any]:
        openai_type, anthropic_type = _TYPES.get(self.status, ("server_error", "api_error"))
        message = as_text(self.message)
        if dialect == "anthropic":
            return {"type": "error", "error": {"type": anthropic_type, "message": message, "code": self.code}}
        error = {"message": message, "type": openai_type, "param": self.param, "code": self.code}
        return {"error": error, "llambo": self.extensions} if self.extensions else {"error": error}


_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "timeout_error"),
    409: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    431: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    503: ("server_error", "overloaded_error"),
    504: ("server_error", "timeout_error"),
}
"""The `type` of OpenAI's envelope and of Anthropic's, by status."""

_ROWS: dict[type[LlamboError], tuple[int, str]] = {
    errors.BadRequest: (400, "bad_request"),
    errors.TooLarge: (413, "too_large"),
    errors.PromptTooLong: (400, "context_length_exceeded"),
    errors.NotFound: (404, "model_not_found"),  # the cluster's: of what a request names only a model may be unknown
    Missing: (404, "not_found"),
    Conflict: (409, "conflict"),
    Stopping: (503, "stopping"),
    errors.Cancelled: (409, "cancelled"),
    errors.NoQuorum: (409, "no_quorum"),
    errors.Refused: (403, "refused"),
    errors.Overloaded: (429, "overloaded"),
    errors.TimedOut: (504, "timeout"),
    errors.NodeLost: (502, "node_lost"),
    errors.EngineFailed: (502, "engine_failed"),
    errors.Diverged: (502, "diverged"),
    errors.NoMemory: (503, "no_memory"),
    errors.BadModel: (503, "bad_model"),
    errors.DownloadFailed: (503, "download_failed"),
    errors.Unreachable: (503, "unreachable"),
    LlamboError: (500, "failed"),
}

HTTP_CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "refused",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "rate_limit_exceeded",
    503: "stopping",
}
"""The code of a failure that is no `LlamboError`, by its status."""


def failure_of(error: LlamboError) -> Failure:
    """The failure that `error` is to the outside."""
    row = next(found for kind in type(error).__mro__ if (found := _ROWS.get(kind)))
    param = "model" if row[1] == "model_not_found" else getattr(error, "param", None)
    return Failure(*row, error.message, param, RETRY_AFTER_S if row[0] == 429 else 0.0)


def dialect_of(path: str) -> Dialect:
    """In whose words the endpoint at `path` answers."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "responses" if path == "/v1/responses" else "openai"


# --- what a node refused ----------------------------------------------------------------------------------------------


def failure_of_node(status: int, body: bytes, node: str, prompt: str | None = None) -> Failure:
    """What a node's refusal for a request's own fault is to the outside; `status` is from 400 to 499.

    Its words are kept, the envelope is ours. Any other refusal comes as an error of the cluster. `prompt` is the member
    of the body that has the prompt.
    """
    fault = fault_in(body) or LlamaFault()
    if fault.type == "exceed_context_size_error":
        counts = f"the prompt has {fault.n_prompt_tokens} tokens and the context holds {fault.n_ctx}"
        advice = "shorten it or load the model with a larger ctx"
        return Failure(400, "context_length_exceeded", f"{counts}; {advice}", prompt)
    message = fault.message or f"node {node} refused the request with HTTP status {status} and no reason"
    return Failure(status if status in _TYPES else 400, HTTP_CODES.get(status, "bad_request"), message)
