"""A daemon without nodes: the namespace of a cluster in memory on a real socket, made known as this home's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llambo.cli import running
from llambo.core import paths
from llambo.namespace.render import Facts
from llambo.namespace.server import Namespace
from llambo.ninep.server import FileServer
from tests.namespace.namespace_world import FakeCluster


@contextmanager
def fake_daemon() -> Iterator[FakeCluster]:
    """Serves a `FakeCluster` without nodes from a thread for the block."""
    address = f"unix!{paths.make_private_dir(paths.runtime_dir()) / 'styx.sock'}"
    clusters: list[FakeCluster] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        cluster = FakeCluster()
        cluster.by_id.clear()
        cluster.made = 0
        cluster.troubles = ()
        cluster.fault = RuntimeError("a fault of ours")
        clusters.append(cluster)
        facts = Facts(None, (address,))
        namespace = Namespace(cluster, cluster, cluster, home=paths.home(), request_stop=over.set, facts=lambda: facts)
        async with namespace, FileServer(namespace.attach) as server:
            await server.listen(address)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        with running.announced("/nowhere", log=Path("/nowhere"), drain_timeout_s=1, name=running.DAEMON, styx=address):
            yield clusters[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
