"""What a daemon serves: the namespace and the bridge protocol, started and stopped together.

Owns the order in which listeners come up and go away. What is said on them is theirs to know.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from llambo.bridge.listen import bind_unix
from llambo.bridge.server import BridgeServer
from llambo.cli import serving
from llambo.cluster import checkpoint
from llambo.cluster.api import Cluster
from llambo.core import paths
from llambo.core.config import Config
from llambo.core.errors import NameInUse
from llambo.core.tokens import TokenStore
from llambo.namespace.listen import listen_tcp
from llambo.namespace.render import Facts
from llambo.namespace.server import Namespace
from llambo.ninep.server import FileServer

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
        self._bridge = BridgeServer(
            cluster,
            self.bridge_path,
            listen=settings.bridge.listen,
            tokens=tokens,
            settings=serving.bridge_settings(settings),
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

    @property
    def bridge_addresses(self) -> tuple[str, ...]:
        """Where the bridge protocol is spoken, as dial strings."""
        return self._bridge.addresses

    @property
    def styx_addresses(self) -> tuple[str, ...]:
        """Where the namespace is served, as dial strings; the Unix socket first."""
        return self._files.addresses

    async def start(self) -> None:
        """Listens; returns once clients can connect.

        Raises: `NameInUse`, `BadConfig`, `Refused`, each naming the address.
        """
        await self._namespace.__aenter__()
        await self._files.listen_on(_bind(self.styx_path))
        if self._settings.styx.listen:
            await listen_tcp(self._files, self._settings.styx.listen, self._tokens)
        await self._bridge.start()

    def request_stop(self) -> None:
        """Refuses what is new and makes `serve` return once what goes on has ended."""
        self._namespace.request_stop()
        self._bridge.request_stop()

    async def serve(self) -> None:
        """Serves until `request_stop`, or QUIT on the bridge; answers in flight may go on for the drain timeout."""
        await self._bridge.serve()
        await self._namespace.finish(self._drain_s)

    async def stop(self, drain_timeout_s: float) -> None:
        """Stops, or hurries a stop that goes on."""
        await asyncio.gather(self._bridge.stop(drain_timeout_s), self._namespace.finish(drain_timeout_s))

    async def close(self) -> None:
        """Ends what is still there and leaves no socket."""
        await self.stop(0)
        await self._files.close()
        await self._namespace.close()

    def _facts(self) -> Facts:
        state = checkpoint.path_of(self._settings.state.path, paths.home())
        return Facts(None, self.styx_addresses, str(state))


def _bind(path: Path) -> socket.socket:
    try:
        return bind_unix(path, backlog=_BACKLOG).socket
    except NameInUse:
        raise NameInUse(f"{path} is in use by another home's cluster; set LLAMBO_RUNTIME_DIR for this one") from None
