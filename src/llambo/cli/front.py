"""What a daemon serves: the namespace, the bridge protocol and HTTP, started and stopped together.

Owns the order in which listeners come up and go away. What is said on them is theirs to know.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from llambo.bridge.server import BridgeServer
from llambo.cli import serving
from llambo.cli.stored import StoredModels
from llambo.cluster import checkpoint
from llambo.cluster.api import Cluster
from llambo.core import paths
from llambo.core.config import Config
from llambo.core.errors import NameInUse
from llambo.core.tokens import TokenStore
from llambo.core.unix_socket import bind_unix
from llambo.namespace.listen import listen_tcp
from llambo.namespace.render import Facts
from llambo.namespace.server import Namespace
from llambo.ninep.server import FileServer

if TYPE_CHECKING:
    from llambo.gateway.server import GatewayServer
    from llambo.gateway.streams import Streams

STYX_SOCKET = "styx.sock"
BRIDGE_SOCKET = "bridge.sock"
_BACKLOG = 1024


class Front:
    """The interfaces of `cluster`, with their sockets in `directory`. `serve` returns once it was stopped."""

    def __init__(self, cluster: Cluster, config: Config, directory: Path) -> None:
        self._settings = settings = config.settings
        self._tokens = tokens = TokenStore(paths.home() / "tokens.json")
        self.styx_path = directory / STYX_SOCKET
        self.bridge_path = directory / BRIDGE_SOCKET
        self._drain_s = settings.bridge.drain_timeout
        self._asked_to_stop = asyncio.Event()
        self._bridge = BridgeServer(
            cluster,
            self.bridge_path,
            listen=settings.bridge.listen,
            tokens=tokens,
            settings=serving.bridge_settings(settings),
            http=self._http_address,
        )
        self._namespace = Namespace(
            cluster,
            cluster,
            cluster,
            home=paths.home(),
            request_stop=self.request_stop,
            facts=self._facts,
            config=lambda: "".join(f"{key} = {value}  # {source}\n" for key, value, source in config.entries()),
            tokens=tokens,
            idle_s=settings.styx.idle_limit,
            offline=settings.models.offline,
        )
        self._files = FileServer(self._namespace.attach)
        self._models = StoredModels(paths.home())
        self._streams: Streams | None = None
        self._gateway = self._make_gateway(cluster) if settings.gateway.listen else None

    def _make_gateway(self, cluster: Cluster) -> GatewayServer:
        # FastAPI and what it needs: a daemon that speaks no HTTP goes without their memory.
        from llambo.gateway.app import Gateway, make_app
        from llambo.gateway.server import GatewayServer
        from llambo.gateway.streams import Streams

        def on_demand() -> list[str]:
            return self._models.names(without={model.path for model in cluster.cluster_status().models})

        settings = self._settings.gateway
        self._streams = Streams(settings.resume_window, settings.resume_memory)
        gateway = Gateway(
            relays=cluster,
            door=cluster,
            control=cluster,
            models=on_demand if self._settings.models.on_demand else list,
            settings=settings,
            streams=self._streams,
        )
        return GatewayServer(make_app(gateway), settings, self._tokens, self._streams.end)

    @property
    def bridge_addresses(self) -> tuple[str, ...]:
        """Where the bridge protocol is spoken, as dial strings."""
        return self._bridge.addresses

    @property
    def styx_addresses(self) -> tuple[str, ...]:
        """Where the namespace is served, as dial strings; the Unix socket first."""
        return self._files.addresses

    @property
    def http_addresses(self) -> tuple[str, ...]:
        """Where HTTP is spoken, as URLs and `unix!PATH`; none where it is switched off."""
        return self._gateway.addresses if self._gateway else ()

    async def start(self) -> None:
        """Listens; returns once clients can connect.

        Raises: `NameInUse`, `BadConfig`, `Refused`, each naming the address.
        """
        await self._namespace.__aenter__()
        await self._files.listen_on(_bind(self.styx_path))
        if self._settings.styx.listen:
            await listen_tcp(self._files, self._settings.styx.listen, self._tokens)
        await self._bridge.start()
        if self._gateway:
            await self._gateway.start()
            self._models.names()  # begins to look for them

    def request_stop(self) -> None:
        """Refuses what is new and makes `serve` return once what goes on has ended."""
        self._asked_to_stop.set()
        self._namespace.request_stop()
        self._bridge.request_stop()
        if self._gateway:
            self._gateway.request_stop()

    async def serve(self) -> None:
        """Serves until `request_stop`, or QUIT on the bridge; answers in flight may go on for the drain timeout."""
        bridge = asyncio.create_task(self._bridge.serve())
        asked = asyncio.create_task(self._asked_to_stop.wait())
        try:
            await asyncio.wait({bridge, asked}, return_when=asyncio.FIRST_COMPLETED)
            self.request_stop()
            await asyncio.gather(bridge, self._namespace.finish(self._drain_s), self._stop_http(self._drain_s))
        finally:
            bridge.cancel()
            asked.cancel()
            await asyncio.gather(bridge, asked, return_exceptions=True)

    async def stop(self, drain_timeout_s: float) -> None:
        """Stops, or hurries a stop that goes on."""
        await asyncio.gather(
            self._bridge.stop(drain_timeout_s),
            self._namespace.finish(drain_timeout_s),
            self._stop_http(drain_timeout_s),
        )

    async def close(self) -> None:
        """Ends what is still there and leaves no socket."""
        await self.stop(0)
        await self._files.close()
        await self._namespace.close()
        if self._streams:
            self._streams.clear()
        await self._models.close()

    async def _stop_http(self, drain_timeout_s: float) -> None:
        if self._gateway:
            await self._gateway.stop(drain_timeout_s)

    def _facts(self) -> Facts:
        state = checkpoint.path_of(self._settings.state.path, paths.home())
        return Facts(self._http_address(), self.styx_addresses, str(state))

    def _http_address(self) -> str | None:
        return next(iter(self.http_addresses), None)


def _bind(path: Path) -> socket.socket:
    try:
        return bind_unix(path, backlog=_BACKLOG).socket
    except NameInUse:
        raise NameInUse(f"{path} is in use by another home's cluster; set LLAMBO_RUNTIME_DIR for this one") from None
