"""GET /v1/models: the models that are loaded, and those that a request could have loaded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from llambo.core.errors import NotFound
from llambo.gateway import schemas
from llambo.gateway.inference import Raw
from llambo.gateway.relay import Exchange

if TYPE_CHECKING:
    from llambo.gateway.app import Gateway

OWNER = "llambo"
ON_DEMAND = "on demand"
"""The state of a model that is not loaded; a request that names it loads it."""


def model_routes(gateway: Gateway) -> APIRouter:
    """The list and its entries."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/v1/models", summary="List the models", response_model=None, responses=schemas.responses(schemas.LOOK))
    async def models(request: Request) -> Response:
        async def work(exchange: Exchange) -> None:
            await exchange.json({"object": "list", "data": list(_entries(gateway, started).values())})

        return Raw(work)

    @router.get(
        "/v1/models/{model_id:path}",
        summary="Show one model",
        response_model=None,
        responses=schemas.responses(schemas.LOOK),
        openapi_extra={
            "parameters": [schemas.parameter("model_id", "path", {"type": "string"}, "its name", required=True)]
        },
    )
    async def model(request: Request) -> Response:
        async def work(exchange: Exchange) -> None:
            name = request.path_params["model_id"]
            entries = _entries(gateway, started)
            if name not in entries:
                there = ", ".join(entries) or "none"
                raise NotFound(f"no model is called {name[:200]!r}; there are {there}")
            await exchange.json(entries[name])

        return Raw(work)

    return router


def _entries(gateway: Gateway, started: int) -> dict[str, dict[str, Any]]:
    """By name; the loaded ones first, the default one before all."""
    found: dict[str, dict[str, Any]] = {}
    for model in gateway.door.status().models:
        state = {"state": model.state, "ctx": model.ctx, "slots": model.slots, "busy": model.busy}
        found[model.name] = _entry(model.name, started, state)
    for name in gateway.models():
        found.setdefault(name, _entry(name, started, {"state": ON_DEMAND}))
    return found


def _entry(name: str, started: int, state: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": started, "owned_by": OWNER, "llambo": state}
