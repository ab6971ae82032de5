"""The namespace of one cluster: what a `ninep.server.FileServer` attaches its clients to.

Owns who may attach to what: the owner of the daemon may all, everybody else what a token's scope says. An aname is
`[TOKEN/]PATH`, PATH being where the client's root lies, such as `nodes/n1`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Self

from llambo.cluster.control import Control
from llambo.cluster.door import Door
from llambo.core.errors import LlamboError, NotFound, Refused
from llambo.core.tokens import SECRET_PREFIX, Scope, TokenStore
from llambo.namespace import render
from llambo.namespace.answer import Answers
from llambo.namespace.house import House, NodeLook
from llambo.namespace.pulls import Pulls
from llambo.namespace.render import Facts
from llambo.namespace.session import Sessions
from llambo.namespace.view import View
from llambo.ninep.errors import PERMISSION
from llambo.ninep.streams import Broadcast
from llambo.ninep.tree import Node, Peer, walk

IDLE_S = 3600.0
"""How long a session that is kept may be without an open file, unless told otherwise."""

_log = logging.getLogger("llambo.namespace")


class Namespace:
    """The cluster behind `door` and `control` as files. An async context manager: leaving it ends every session.

    `look` tells of nodes without measuring them. `config` gives the text of the effective configuration, `facts` where
    the cluster is served. `request_stop` is what `shutdown` calls. Without `tokens` only the owner may attach.
    """

    def __init__(
        self,
        door: Door,
        control: Control,
        look: NodeLook,
        *,
        home: Path,
        request_stop: Callable[[], None],
        facts: Callable[[], Facts] = Facts,
        config: Callable[[], str] = str,
        tokens: TokenStore | None = None,
        idle_s: float = IDLE_S,
        offline: bool = False,
    ) -> None:
        answers = Answers(door)
        self._house = House(
            control=control,
            look=look,
            answers=answers,
            sessions=Sessions(answers, idle_s=idle_s),
            pulls=Pulls(home, offline=offline),
            events=Broadcast(),
            facts=facts,
            config=config,
            home=home,
            request_stop=request_stop,
        )
        self._tokens = tokens
        self._views: dict[tuple[Scope, str], View] = {}
        self._relay: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._relay = asyncio.create_task(self._relay_events(), name="events of the namespace")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def request_stop(self) -> None:
        """Refuses every new question from now on."""
        self._house.answers.request_stop()

    async def finish(self, timeout_s: float) -> None:
        """Lets answers end for so long; the rest is cancelled. New ones are refused."""
        await self._house.answers.finish(timeout_s)

    async def close(self) -> None:
        """Ends every session, and every reader of events reads the end."""
        if self._relay is not None:
            self._relay.cancel()
            await asyncio.wait([self._relay])
        self._house.events.end()
        await self._house.answers.finish(0)
        await self._house.sessions.close()

    async def attach(self, uname: str, aname: str, peer: Peer) -> Node:
        """The root for a client; `uname` is a claim and means nothing.

        Raises: `Refused` without the right, `NotFound` for a path that is not there for this client.
        """
        secret, path = split_aname(aname)
        view = self._view_of(secret, peer)
        names = tuple(name for name in path.split("/") if name)
        walked = walk((view,), names)
        if isinstance(walked, Awaitable):
            walked = await walked
        if walked.error is not None:
            raise walked.error if isinstance(walked.error, LlamboError) else NotFound()
        return walked.trail[-1]

    def _view_of(self, secret: str, peer: Peer) -> View:
        if secret:
            token = self._tokens.verify(secret) if self._tokens is not None else None
            if token is None:
                _log.warning("client %s was refused: its token is not valid", peer.address)
                raise Refused(f"{PERMISSION}: this token is not valid; make one with llamboctl token create")
            return self._view(token.scope, token.id)
        if peer.uid is not None and peer.uid in {0, os.geteuid()}:
            return self._view("admin", "")
        raise Refused(f"{PERMISSION}: a token is needed, as the first name of aname")

    def _view(self, scope: Scope, owner: str) -> View:
        if (scope, owner) not in self._views:
            self._views[scope, owner] = View(self._house, scope, owner)
        return self._views[scope, owner]

    async def _relay_events(self) -> None:
        async with aclosing(self._house.control.events()) as events:
            async for event in events:
                self._house.events.send(render.event(event))


def split_aname(aname: str) -> tuple[str, str]:
    """The token's secret in an aname ("" without one), and the path."""
    first, _, rest = aname.lstrip("/").partition("/")
    return (first, rest) if first.startswith(SECRET_PREFIX) else ("", aname)
