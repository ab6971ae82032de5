"""A request's stay in the cluster: its ticket, and the places that it is given.

What the orchestrator decides arrives here through the runtime; what the caller does goes back as events.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal, Protocol

from llambo.cluster.events import Event, RequestBroken, RequestFailed, RequestFinished, RequestGone
from llambo.cluster.launch.base import NodeHandle
from llambo.cluster.state import Route
from llambo.cluster.upstream import Upstream
from llambo.core.errors import LlamboError, NodeLost


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request may run: a live node and the way to it."""

    node: str
    epoch: int
    handle: NodeHandle
    upstream: Upstream


class Office(Protocol):
    """Who issues tickets and hears what became of them."""

    is_closed: bool

    def post(self, event: Event) -> None:
        """Takes an event."""
        ...

    def forget_ticket(self, ticket: Ticket) -> None:
        """The request is over."""
        ...


class Ticket:
    """A request's stay in the cluster, from `place` to exactly one of `finished`, `failed` and `gone`.

    A context manager: whoever leaves it before the end is gone.
    """

    def __init__(self, office: Office, route: Route) -> None:
        self._office = office
        self.route = route
        self.arrived = time.perf_counter()
        self.turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._is_over = False

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(RequestGone(self.route.id))

    async def place(self) -> Place:
        """The node to run on; waits in the queue.

        Raises: whatever the orchestrator refuses the request with; then the request is over.
        """
        try:
            if self._office.is_closed and not self.turn.done():
                raise NodeLost("the cluster was closed")
            place = await self.turn
        except LlamboError:
            self._is_over = True
            self._office.forget_ticket(self)
            raise
        self.turn = asyncio.get_running_loop().create_future()
        return place

    def broken(self, kind: Literal["lost", "failed", "too_long"], error: LlamboError, *, has_delivered: bool) -> None:
        """The node failed it; `place` says where to go on."""
        self._office.post(RequestBroken(self.route.id, kind, error.code, error.message, has_delivered))

    def finished(self, event: RequestFinished) -> None:
        """The answer is whole."""
        self._end(event)

    def failed(self) -> None:
        """The request itself was wrong."""
        self._end(RequestFailed(self.route.id))

    def _end(self, event: RequestFinished | RequestFailed | RequestGone) -> None:
        if not self._is_over:
            self._is_over = True
            self._office.forget_ticket(self)
            self._office.post(event)
