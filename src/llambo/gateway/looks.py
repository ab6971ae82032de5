"""Whether the gateway lives, whether it could answer now, and its figures: `/health`, `/ready`, `/metrics`.

Reads what the cluster says of itself and changes nothing. `/health` and `/ready` are for everybody, so they name models
and no more: why a node failed, with paths and addresses, is for those who may read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from llambo.cluster.control import ClusterStatus
from llambo.core.types import ModelInfo

if TYPE_CHECKING:
    from llambo.gateway.app import Gateway

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_STARTS = {"loading": "is being loaded", "restarting": "has no node: it is being restarted"}
_ANSWERS = frozenset({"ready", "unloaded"})
"""A model that was unloaded, or scaled to nothing, comes back with the first request for it."""


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether a request could be answered now."""

    status: Literal["ready", "not_ready"]
    nodes: int = Field(description="nodes that serve")
    slots: int = Field(description="answers that they can give at once")
    busy: int = Field(description="answers that they are giving")
    queued: int = Field(description="requests that wait")
    problems: list[str] = Field(description="what is missing, in sentences")


def look_routes(gateway: Gateway) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["looks"])

    @router.get("/health", summary="The process lives")
    async def health() -> Health:
        return Health()

    @router.get(
        "/ready",
        summary="A request could be answered now",
        responses={503: {"model": Readiness, "description": "It could not; `problems` says why"}},
    )
    async def ready(response: Response) -> Readiness:
        status = gateway.control.cluster_status()
        problems = what_is_missing(status, gateway.models)
        if problems:
            response.status_code = 503
        return Readiness(
            status="not_ready" if problems else "ready",
            nodes=status.nodes.ready + status.nodes.busy,
            slots=status.slots.total,
            busy=status.slots.busy,
            queued=status.queued,
            problems=problems,
        )

    @router.get(
        "/metrics",
        summary="The figures of the cluster and of its nodes, for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        nodes = await gateway.control.node_metrics()
        return Response(gateway.control.metrics() + nodes, media_type=PROMETHEUS)

    return router


def what_is_missing(status: ClusterStatus, on_demand: Callable[[], list[str]]) -> list[str]:
    """Why no request could be answered now, in sentences; nothing where one could.

    `on_demand` names the models that a request could load.
    """
    if any(model.state in _ANSWERS for model in status.models):
        return []
    if status.models:
        return [_sentence(model) for model in status.models]
    if on_demand():
        return []
    if status.nodes.total:
        return ["no model is ready: the first one is being loaded"]
    return ["no model is loaded, and there is none on this machine that a request could load"]


def _sentence(model: ModelInfo) -> str:
    return f"model {model.name} {_STARTS.get(model.state, 'cannot be loaded: its nodes have failed')}"
