"""The ASGI application: what it is made of, and all its routes together.

Knows no addresses and no tokens: `guard` stands in front of it, `server` puts it on a listener.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from llambo.cluster.control import Control
from llambo.cluster.door import Door
from llambo.cluster.relay import Relays
from llambo.core.errors import LlamboError
from llambo.core.sections import Gateway as GatewaySettings
from llambo.core.version import __version__
from llambo.gateway.errors import HTTP_CODES, Failure, dialect_of, failure_of
from llambo.gateway.inference import Raw, inference_routes, replies
from llambo.gateway.looks import look_routes
from llambo.gateway.models import model_routes
from llambo.gateway.streams import Streams
from llambo.gateway.websocket import websocket_routes


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the endpoints work with. `models` names what could be loaded on demand; it must not block."""

    relays: Relays
    door: Door
    control: Control
    models: Callable[[], list[str]]
    settings: GatewaySettings
    streams: Streams


def make_app(gateway: Gateway) -> ASGIApp:
    """The application; the guard belongs around it."""
    answers = replies(gateway)
    described = _described(gateway, answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # A short way to the endpoints that relay: FastAPI's routing and wrappers would cost more than all else.
        answer = answers.get(scope["path"]) if scope.get("method") == "POST" else None
        await (answer or described)(scope, receive, send)

    return app


def _described(gateway: Gateway, answers: dict[str, Raw]) -> FastAPI:
    """Everything, with its description; the page at /docs loads nothing from elsewhere."""
    app = FastAPIOffline(
        title="Llambo",
        version=__version__,
        description="llama.cpp models across many nodes, behind one door.",
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/files",
        redirect_slashes=False,
    )
    app.include_router(inference_routes(gateway, answers))
    app.include_router(model_routes(gateway))
    app.include_router(look_routes(gateway))
    app.router.routes.extend(websocket_routes(gateway))
    app.add_exception_handler(HTTPException, _http_failure)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(LlamboError, _llambo_failure)
    app.add_exception_handler(Exception, _unforeseen)
    return app


async def _http_failure(request: Request, error: Exception) -> Response:
    """An unknown path or another method."""
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "failed")
    where = f"{request.method} {request.url.path[:200]}"
    match error.status_code:
        case 404:
            message = f"there is no {where}; /openapi.json lists what there is"
        case 405:
            message = f"there is no {where}; another method would do: {(error.headers or {}).get('Allow', '')}"
        case status:
            message = str(error.detail) or HTTPStatus(status).phrase
    return _reply(request, Failure(error.status_code, code, message), dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    """A parameter that FastAPI checks."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return _reply(request, Failure(400, "bad_request", f"{name}: {first['msg']}", name))


async def _llambo_failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlamboError)
    return _reply(request, failure_of(error))


async def _unforeseen(request: Request, error: Exception) -> Response:
    return _reply(request, Failure(500, "failed", "the gateway itself failed; its log says why"))


def _reply(request: Request, failure: Failure, headers: dict[str, str] | None = None) -> Response:
    found = (headers or {}) | {name.decode(): value.decode() for name, value in failure.headers}
    return Response(failure.body(dialect_of(request.url.path)), failure.status, found)
