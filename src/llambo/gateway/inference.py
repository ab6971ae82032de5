"""The endpoints that a node answers: which there are, how each one's body is read, and how its reply goes back.

Understands of a body what `bodies` reads. Everything else about an answer is the engine's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llambo.cluster.relay import Kind, RelayRequest
from llambo.gateway import bodies, openai, relay, schemas
from llambo.gateway.bodies import Asked, Shape
from llambo.gateway.errors import InvalidField, dialect_of
from llambo.gateway.fused import Fused, objects_for
from llambo.gateway.relay import Exchange
from llambo.gateway.streams import Stream

if TYPE_CHECKING:
    from llambo.gateway.app import Gateway

SESSION_HEADER = b"x-session-id"
JSON = [(b"content-type", b"application/json")]
MAX_NUMBER_DIGITS = 9
CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One POST endpoint: the node's path is the same."""

    path: str
    kind: Kind
    shape: Shape
    schema: schemas.Schema
    summary: str


ENDPOINTS = (
    Endpoint(CHAT_PATH, "generate", bodies.CHAT, schemas.CHAT, "Answer a conversation"),
    Endpoint("/v1/completions", "generate", bodies.COMPLETION, schemas.COMPLETION, "Continue a text"),
    Endpoint("/v1/responses", "generate", bodies.RESPONSES, schemas.RESPONSES, "Answer, as OpenAI's responses"),
    Endpoint("/v1/messages", "generate", bodies.ANTHROPIC, schemas.ANTHROPIC, "Answer, as Anthropic's messages"),
    Endpoint("/v1/messages/count_tokens", "look", bodies.COUNT_TOKENS, schemas.ANTHROPIC, "Count a prompt's tokens"),
    Endpoint("/v1/embeddings", "embed", bodies.EMBEDDINGS, schemas.EMBEDDINGS, "Embed texts"),
    Endpoint("/v1/rerank", "rerank", bodies.RERANK, schemas.RERANK, "Order documents by a query"),
    Endpoint("/v1/reranking", "rerank", bodies.RERANK, schemas.RERANK, "The same as /v1/rerank"),
    Endpoint("/rerank", "rerank", bodies.RERANK, schemas.RERANK, "The same as /v1/rerank"),
    Endpoint("/reranking", "rerank", bodies.RERANK, schemas.RERANK, "The same as /v1/rerank"),
    Endpoint(
        "/completion", "generate", bodies.LLAMA_COMPLETION, schemas.LLAMA_COMPLETION, "llama-server's own completion"
    ),
    Endpoint("/infill", "generate", bodies.INFILL, schemas.INFILL, "Fill in between two texts"),
    Endpoint("/tokenize", "look", bodies.TOKENIZE, schemas.TOKENIZE, "Turn text into tokens"),
    Endpoint("/detokenize", "look", bodies.DETOKENIZE, schemas.DETOKENIZE, "Turn tokens into text"),
    Endpoint("/apply-template", "look", bodies.TEMPLATE, schemas.TEMPLATE, "Turn a conversation into the prompt"),
)


class Raw(Response):
    """A reply that `work` sends by itself, as raw ASGI; whatever it raises becomes the reply's end."""

    def __init__(self, work: Callable[[Exchange], Awaitable[None]]) -> None:
        # Nothing of what the base class prepares is of use here.
        self.background = None
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        exchange = Exchange(scope, receive, send, dialect_of(scope["path"]))
        try:
            await self._work(exchange)
        except Exception as error:  # a reply has an end, whatever happens
            await relay.ended(exchange, error)


def replies(gateway: Gateway) -> dict[str, Raw]:
    """What answers a POST, by its path."""
    return {endpoint.path: _reply(gateway, endpoint) for endpoint in ENDPOINTS}


def inference_routes(gateway: Gateway, answers: dict[str, Raw]) -> APIRouter:
    """Every endpoint that a node answers, and those of the streams that they began."""
    router = APIRouter()
    for endpoint in ENDPOINTS:
        _add(router, endpoint, answers[endpoint.path])
    _add_looks(router, gateway)
    _add_streams(router, gateway)
    return router


def _reply(gateway: Gateway, endpoint: Endpoint) -> Raw:
    async def work(exchange: Exchange) -> None:
        body = await exchange.body()
        asked = bodies.read(body, endpoint.shape, session=exchange.header(SESSION_HEADER))
        request = RelayRequest(
            path=endpoint.path,
            fields=asked.fields,
            model=asked.model,
            kind=endpoint.kind,
            streams=asked.streams,
            text=asked.text,
            max_tokens=asked.max_tokens,
            session=asked.session,
            node_type=asked.node_type,
        )
        if asked.fusion is not None:
            await _fuse(gateway, exchange, asked, request, len(body))
            return
        if not request.streams:
            await _pass_on(gateway, exchange, request)
            return
        stream = Stream(exchange.id, exchange.owner, request, exchange.dialect, len(body))
        await relay.deliver(exchange, gateway.relays, gateway.streams, stream, ping_s=gateway.settings.ping_interval)

    return Raw(work)


def _add(router: APIRouter, endpoint: Endpoint, raw: Raw) -> None:
    async def reply(request: Request) -> Response:
        return raw

    router.add_api_route(
        endpoint.path,
        reply,
        methods=["POST"],
        name=endpoint.path,
        operation_id=endpoint.path.strip("/").replace("/", "_").replace("-", "_"),
        summary=endpoint.summary,
        response_model=None,
        responses=schemas.responses(
            schemas.WORK,
            anthropic=dialect_of(endpoint.path) == "anthropic",
            streams=endpoint.shape.may_stream,
        ),
        openapi_extra=schemas.body(endpoint.schema),
    )


async def _pass_on(gateway: Gateway, exchange: Exchange, request: RelayRequest) -> None:
    body, reply = await relay.answer(exchange, gateway.relays, gateway.streams, request)
    headers = [(b"content-type", reply.content_type.encode("latin-1"))]
    await exchange.whole(200, headers, body, reply.node)


async def _fuse(gateway: Gateway, exchange: Exchange, asked: Asked, request: RelayRequest, body_bytes: int) -> None:
    wanted = openai.request_of(asked, "chat" if request.path == CHAT_PATH else "text")
    fused = Fused(exchange, gateway.door, wanted, objects_for(exchange, gateway.door, wanted))
    if not request.streams:
        await fused.answer(gateway.streams)
        return
    stream = Stream(exchange.id, exchange.owner, request, exchange.dialect, body_bytes)
    ping_s = gateway.settings.ping_interval
    await fused.deliver(gateway.streams, stream, ping_s=ping_s, with_usage=openai.wants_usage(asked))


# --- looks at a node --------------------------------------------------------------------------------------------------


def _add_looks(router: APIRouter, gateway: Gateway) -> None:
    described = schemas.responses(schemas.LOOK)

    @router.get(
        "/props",
        summary="What a node of the model says of itself",
        openapi_extra={"parameters": [schemas.MODEL_PARAMETER]},
        response_model=None,
        responses=described,
    )
    async def props(request: Request) -> Response:
        async def work(exchange: Exchange) -> None:
            await _pass_on(gateway, exchange, _look("/props", request))

        return Raw(work)

    @router.get(
        "/slots",
        summary="The slots of a node of the model, without prompts",
        openapi_extra={"parameters": [schemas.MODEL_PARAMETER]},
        response_model=None,
        responses=described,
    )
    async def slots(request: Request) -> Response:
        async def work(exchange: Exchange) -> None:
            await exchange.body()
            body, reply = await relay.answer(exchange, gateway.relays, gateway.streams, _look("/slots", request))
            await exchange.whole(200, JSON, without_prompts(body), reply.node)

        return Raw(work)


def _look(path: str, request: Request) -> RelayRequest:
    return RelayRequest(path, None, model=request.query_params.get("model", ""), kind="look")


def without_prompts(slots: bytes) -> bytes:
    """A node's slots with their numbers and flags alone: a slot also tells its prompt, and what it was sampled with."""
    found = msgspec.json.decode(slots, type=list[dict[str, msgspec.Raw]])
    bare = [{name: raw for name, raw in slot.items() if bytes(memoryview(raw)[:1]) not in b'"[{'} for slot in found]
    return msgspec.json.encode(bare)


# --- streams that a client lost ---------------------------------------------------------------------------------------


def _add_streams(router: APIRouter, gateway: Gateway) -> None:
    stream_id = schemas.parameter(
        "stream_id", "path", {"type": "string"}, "the X-Request-ID of its reply", required=True
    )
    start = schemas.parameter(
        "from",
        "query",
        {"type": "integer", "minimum": 0, "default": 0},
        "the first event that is wanted, counted from 0",
    )

    @router.get(
        "/v1/streams/{stream_id}",
        summary="Go on with a stream that was lost",
        response_model=None,
        responses=schemas.responses(schemas.WORK, streams=True),
        openapi_extra={"parameters": [stream_id, start]},
    )
    async def resume(request: Request) -> Response:
        async def work(exchange: Exchange) -> None:
            await exchange.body()
            stream = gateway.streams.take(request.path_params["stream_id"], exchange.owner)
            first = _start(exchange, request, stream)
            exchange.dialect = stream.dialect
            ping_s = gateway.settings.ping_interval
            await relay.deliver(exchange, gateway.relays, gateway.streams, stream, ping_s=ping_s, start=first)

        return Raw(work)

    @router.delete(
        "/v1/streams/{stream_id}",
        summary="End a stream and forget it",
        response_model=None,
        responses=schemas.responses(schemas.LOOK),
        openapi_extra={"parameters": [stream_id]},
    )
    async def forget(request: Request) -> Response:
        async def work(exchange: Exchange) -> None:
            name = request.path_params["stream_id"]
            gateway.streams.forget(name, exchange.owner)
            await exchange.json({"id": name, "object": "stream", "deleted": True})

        return Raw(work)


def _start(exchange: Exchange, request: Request, stream: Stream) -> int:
    text = request.query_params.get("from", "0")
    there = stream.transcript.count if stream.transcript is not None else 0
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS) or int(text) > there:
        raise InvalidField(f"from must be a number between 0 and {there}, not {text[:40]!r}", "from")
    return int(text)
