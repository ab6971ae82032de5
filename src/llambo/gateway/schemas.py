"""The OpenAPI description of endpoints: what their bodies hold, what they answer, with which statuses.

Pure data. A body's description names the members that this side reads; every other one passes to the engine.
"""

from __future__ import annotations

from typing import Any

from llambo.core.fusion import ALIASES, MAX_EXTRACT, MAX_VOTERS, MIN_VOTERS, STRATEGIES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_FLAG: Schema = {"type": "boolean"}
_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_CONTENT: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _PART, "minItems": 1}]}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _CONTENT},
    "required": ["role", "content"],
}
_NAMED: dict[str, Schema] = {
    "session": {"type": "string", "maxLength": 256, "description": "requests of one session share a node"},
    "node_type": {"type": "string", "description": "a node of this type answers"},
}
_FUSION: Schema = {
    "type": "object",
    "description": "several nodes answer, and one answer comes out; what is left out, the configuration says",
    "properties": {
        "strategy": {"enum": [*STRATEGIES, *ALIASES]},
        "nodes": {"type": "integer", "minimum": MIN_VOTERS, "maximum": MAX_VOTERS},
        "min_consensus": {"type": "integer", "minimum": 1, "maximum": MAX_VOTERS},
        "extract": {
            "type": "string",
            "maxLength": MAX_EXTRACT,
            "description": "a regular expression: answers are compared by what it finds",
        },
    },
    "additionalProperties": False,
}


def _extensions(members: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "description": "what only Llambo knows",
        "properties": members,
        "additionalProperties": False,
    }


_EXTENSIONS = _extensions(_NAMED)
_FUSED: dict[str, Schema] = {"llambo": _extensions({**_NAMED, "fusion": _FUSION})}
_ROUTING: dict[str, Schema] = {"model": {"type": "string", "description": "the default one if left out"}}
_EXTENDED: dict[str, Schema] = {**_ROUTING, "llambo": _EXTENSIONS}
_SAMPLING: dict[str, Schema] = {
    **_EXTENDED,
    "stream": {**_FLAG, "description": "answer as server-sent events"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 2},
}


def _object(members: dict[str, Schema], *required: str) -> Schema:
    return {"type": "object", "properties": members, "required": list(required), "additionalProperties": True}


_MESSAGES: Schema = {"type": "array", "items": _MESSAGE, "minItems": 1}
CHAT = _object(
    {"messages": _MESSAGES, "max_tokens": _COUNT, "max_completion_tokens": _COUNT, **_SAMPLING, **_FUSED}, "messages"
)
ANTHROPIC = _object({"messages": _MESSAGES, "system": _CONTENT, "max_tokens": _COUNT, **_SAMPLING}, "messages")
RESPONSES = _object(
    {"input": {"anyOf": [_TEXT, _MESSAGES]}, "instructions": _TEXT, "max_output_tokens": _COUNT, **_SAMPLING}, "input"
)
_PROMPT: Schema = {"anyOf": [_TEXT, {**_TOKENS, "minItems": 1}]}
COMPLETION = _object({"prompt": _PROMPT, "max_tokens": _COUNT, **_SAMPLING, **_FUSED}, "prompt")
LLAMA_COMPLETION = _object({"prompt": _PROMPT, "n_predict": _COUNT, **_SAMPLING}, "prompt")
INFILL = _object(
    {"input_prefix": _TEXT, "input_suffix": _TEXT, "n_predict": _COUNT, **_SAMPLING}, "input_prefix", "input_suffix"
)
EMBEDDINGS = _object(
    {"input": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}, **_EXTENDED}, "input"
)
RERANK = _object(
    {"query": _TEXT, "documents": {"type": "array", "items": _TEXT, "minItems": 1}, **_EXTENDED}, "query", "documents"
)
TOKENIZE = _object({"content": _TEXT, "add_special": _FLAG, "parse_special": _FLAG, **_ROUTING}, "content")
DETOKENIZE = _object({"tokens": _TOKENS, **_ROUTING}, "tokens")
TEMPLATE = _object({"messages": _MESSAGES, **_ROUTING}, "messages")

MODEL_PARAMETER: Schema = {
    "name": "model",
    "in": "query",
    "required": False,
    "schema": _TEXT,
    "description": "the default one if left out",
}

_OPENAI_ERROR = _object(
    {
        "error": _object(
            {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": _TEXT,
            },
            "message",
            "type",
            "param",
            "code",
        ),
        "llambo": {"type": "object", "description": "with fusion: the votes that were cast"},
    },
    "error",
)
_ANTHROPIC_ERROR = _object(
    {"type": {"const": "error"}, "error": _object({"type": _TEXT, "message": _TEXT, "code": _TEXT}, "type", "message")},
    "type",
    "error",
)

_MEANINGS = {
    400: "the request is wrong, or its prompt is longer than the context",
    401: "no token, or one that is not valid",
    403: "the token does not allow it, or the request comes from a foreign page",
    404: "no model or stream of that name",
    405: "another method",
    409: "not now: it is being delivered, it was cancelled, or too few nodes agree",
    413: "the body is too large",
    429: "too many requests; Retry-After says when to try again",
    500: "the gateway itself failed",
    502: "the node failed and no other could take over",
    503: "the model cannot be started, or the daemon stops",
    504: "no place came free in time",
}
LOOK = (400, 401, 403, 404, 429, 500, 502, 503, 504)
"""The statuses of an endpoint that only looks, beside 200."""
WORK = (*LOOK, 409, 413)
"""Those of one that makes the engine work."""


def responses(statuses: tuple[int, ...], *, anthropic: bool = False, streams: bool = False) -> dict[int | str, Schema]:
    """What FastAPI takes as `responses`."""
    error = {"application/json": {"schema": _ANTHROPIC_ERROR if anthropic else _OPENAI_ERROR}}
    content: Schema = {"application/json": {"schema": {}}}
    if streams:
        content["text/event-stream"] = {"schema": _TEXT}
    found: dict[int | str, Schema] = {200: {"description": "the answer", "content": content}}
    for status in sorted(statuses):
        found[status] = {"description": _MEANINGS[status], "content": error}
        if status == 429:
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return found


def body(schema: Schema) -> Schema:
    """What FastAPI takes as `openapi_extra` of an endpoint with a body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parameter(name: str, where: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    """One parameter of an endpoint; `where` is "query" or "path"."""
    return {"name": name, "in": where, "required": required, "schema": schema, "description": description}
