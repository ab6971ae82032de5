"""A chat's connection: the running cluster of this home, else its bridge, else a private cluster; or one elsewhere.

Looks before every question which of them there is, so that a chat goes on when the cluster ends or comes back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llambo.cli import running
from llambo.cli.running import Running
from llambo.core.errors import BadRequest, LlamboError, NoMemory, Unreachable
from llambo.core.fusion import FusionRequest
from llambo.core.types import Event, GenerateRequest, ModelInfo
from llambo.limbot.connection import Served

if TYPE_CHECKING:
    from llambo.bridge.remote import BridgeDoor
    from llambo.core.config import Config
    from llambo.engine.download import Progress

TOKEN_VARIABLE = "LLAMBO_TOKEN"  # noqa: S105 - its name
PRIVATE = "a private node"


class _Answers(Protocol):
    """The part of a door that a chat uses."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]: ...

    async def tokenize(self, text: str, *, model: str = "") -> list[int]: ...


@dataclass(slots=True)
class _Open:
    """An open door, what it is, and whose it is; closing `stack` closes it."""

    door: _Answers
    served: Served
    ref: str
    stack: AsyncExitStack
    daemon: Running | None = None
    names: tuple[str, ...] = ()


class Switching:
    """See `Connection`. `connect` is the address of a cluster elsewhere, "" for this home's.

    `progress` is told of downloads, `tell` of a wait that is long. Raises: `BadRequest`.
    """

    def __init__(
        self,
        config: Config,
        *,
        connect: str = "",
        progress: Progress | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._connect = connect
        self._token = os.environ.get(TOKEN_VARIABLE, "")
        self._progress = progress
        self._tell = tell
        self._open: _Open | None = None
        self._lock = asyncio.Lock()
        if connect and not connect.startswith(("tcp!", "unix!", "http://", "https://")):
            raise BadRequest(f"{connect!r} is no address: write tcp!HOST!PORT, unix!PATH, http://HOST or https://HOST")

    async def __aenter__(self) -> Switching:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def ready(self, model: str, fusion: FusionRequest | None = None) -> Served:
        """See `Connection.ready`."""
        async with self._lock:
            opened = await self._settle(model)
            if fusion is not None:
                await self._give_nodes(opened, fusion.voters or self._config.settings.cognition.n_nodes)
            return opened.served

    async def _settle(self, model: str) -> _Open:
        """Opens what `ready` settles on."""
        daemon = None if self._connect else running.find(running.DAEMON)
        now = self._open
        if now is not None and now.daemon is not None and now.daemon != daemon:
            await self._close()  # it ended, or another one began
            now = None
        if now is not None and now.ref == model and (now.daemon == daemon or daemon is None):
            return now
        opened = await self._choose(model, daemon)
        if opened is not now:
            await self._close()
            self._open = opened
        return opened

    async def _give_nodes(self, opened: _Open, count: int) -> None:
        """Has a private cluster start as many nodes as are to answer; any other has the nodes that it has.

        Raises: `NoMemory` saying how many fit.
        """
        from llambo.cluster.api import Cluster

        if not isinstance(opened.door, Cluster):
            return
        name = opened.served.model
        there = sum(node.model == name for node in await opened.door.nodes())
        if there >= count:
            return
        self._tell(f"starting {count - there} more nodes")
        try:
            await opened.door.scale(count, model=name)
        except NoMemory as error:
            raise NoMemory(f"a private cluster of {count} nodes does not fit: {error.message}") from None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `Connection.generate`."""
        if self._open is None:
            raise Unreachable("the cluster went away")
        async with aclosing(self._open.door.generate(request)) as events:
            async for event in events:
                yield event

    async def tokenize(self, text: str) -> list[int]:
        """See `Connection.tokenize`."""
        if self._open is None:
            raise Unreachable("the cluster went away")
        return await self._open.door.tokenize(text, model=self._open.served.model)

    async def models(self) -> list[str]:
        """See `Connection.models`."""
        return list(self._open.names) if self._open is not None else []

    async def lost(self) -> None:
        """See `Connection.lost`."""
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            with suppress(LlamboError, OSError):  # it may be gone already
                await opened.stack.aclose()

    async def _choose(self, model: str, daemon: Running | None) -> _Open:
        """Opens the first of the places that is there. What was open stays so until this has succeeded."""
        await asyncio.to_thread(_import_doors)
        if self._connect.startswith("http"):
            return await self._over_http(model)
        if self._connect:
            return await self._entered(lambda stack: self._elsewhere(stack, model))
        if daemon is not None:
            try:
                return await self._entered(lambda stack: self._daemon(stack, daemon, model))
            except Unreachable:  # it is starting or ending
                if self._open is not None and self._open.ref == model:
                    return self._open
        found = await self._entered_or_none(model)
        return found or await self._private(model)

    async def _entered(self, enter: object) -> _Open:
        assert callable(enter)
        async with AsyncExitStack() as stack:
            opened: _Open = await enter(stack)
            opened.stack = stack.pop_all()
            return opened

    async def _daemon(self, stack: AsyncExitStack, daemon: Running, model: str) -> _Open:
        from llambo.cli import doors

        opening = doors.daemon_door(daemon, self._config, model, self._progress, self._tell)
        door, name = await stack.enter_async_context(opening)
        await door.refresh()
        return _described(door, name, model, stack, "the cluster of this home", daemon)

    async def _elsewhere(self, stack: AsyncExitStack, model: str) -> _Open:
        from llambo.bridge.async_client import AsyncBridge
        from llambo.bridge.remote import BridgeDoor

        bridge = await stack.enter_async_context(AsyncBridge.connect(self._connect, token=self._token))
        door = BridgeDoor(bridge)
        names = [info.name for info in (await door.refresh()).models]
        name = model if model in names or not model else (await door.load(model)).name
        return _described(door, name, model, stack, self._connect)

    async def _entered_or_none(self, model: str) -> _Open | None:
        """The bridge of this home, when it has the model."""
        from llambo.cli import doors

        async def enter(stack: AsyncExitStack) -> _Open | None:
            socket = doors.socket_of_bridge(self._config)
            bridge = await stack.enter_async_context(doors.connected(socket, f"the bridge at {socket}", self._tell))
            name = doors.find_model(model, (await bridge.refresh()).models) if bridge is not None else None
            if bridge is None or name is None:
                return None
            return _described(bridge, name, model, stack, "the bridge of this home")

        async with AsyncExitStack() as stack:
            opened = await enter(stack)
            if opened is not None:
                opened.stack = stack.pop_all()
            return opened

    async def _private(self, model: str) -> _Open:
        """A cluster of this process; a model is loaded beside the one that answered before, which then goes."""
        from llambo.cluster.api import Cluster

        now = self._open
        ref = model or self._config.settings.models.default
        if now is not None and isinstance(now.door, Cluster):
            info = await now.door.load(ref)
            if info.name != now.served.model:
                await now.door.free(now.served.model)
            now.served, now.ref, now.names = _served(info, PRIVATE), model, (info.name,)
            return now

        async def enter(stack: AsyncExitStack) -> _Open:
            cluster = await stack.enter_async_context(Cluster(self._config.settings, progress=self._progress))
            info = await cluster.load(ref)
            return _Open(cluster, _served(info, PRIVATE), model, stack, names=(info.name,))

        return await self._entered(enter)

    async def _over_http(self, model: str) -> _Open:
        from llambo.limbot.http_door import HttpDoor

        async def enter(stack: AsyncExitStack) -> _Open:
            door = HttpDoor(self._connect, self._token)
            stack.push_async_callback(door.close)
            names = await door.models()
            if model and model not in names:
                raise BadRequest(f"{door.host} has no model {model!r}; there are {', '.join(names)}")
            name = model or next(iter(names))
            ctx = await door.context_of(name, names[name])
            where = f"{door.host}{', the token unencrypted' if door.shows_token else ''}"
            return _Open(door, Served(where, name, ctx, _is_small(name)), model, stack, names=tuple(names))

        return await self._entered(enter)


def _described(
    door: BridgeDoor, name: str, ref: str, stack: AsyncExitStack, where: str, daemon: Running | None = None
) -> _Open:
    loaded = door.status().models
    names = tuple(info.name for info in loaded)
    info = next((info for info in loaded if not name or info.name == name), None)
    served = _served(info, where) if info is not None else Served(where, name)
    return _Open(door, served, ref, stack, daemon, names)


def _served(info: ModelInfo, where: str) -> Served:
    return Served(where, info.name, info.ctx, _is_small(info.name))


def _is_small(model: str) -> bool:
    from llambo.engine.references import BUILT_IN

    return model == BUILT_IN


def _import_doors() -> None:
    """Loads what opening takes: half a second, in which a chat can be typed into."""
    import llambo.cli.doors
    import llambo.cluster.api  # noqa: F401
