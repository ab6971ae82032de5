"""A daemon without nodes: a `Control` in memory behind a real control socket, made known as this home's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llambo.bridge.listen import bind_unix
from llambo.cli import running
from llambo.control.server import ControlServer
from llambo.core import paths
from tests.control.control_fakes import FakeControl


@contextmanager
def fake_daemon() -> Iterator[FakeControl]:
    """Serves a `FakeControl` from a thread for the block."""
    path = paths.make_private_dir(paths.runtime_dir()) / "control.sock"
    controls: list[FakeControl] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        controls.append(FakeControl())
        bound = bind_unix(path, 8)
        server = ControlServer(controls[0], bound.socket, request_stop=over.set)
        await server.start()
        ready.set()
        await over.wait()
        await server.close()
        bound.remove_file()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        with running.announced(
            "/nowhere", log=Path("/nowhere"), drain_timeout_s=1, name=running.DAEMON, control=str(path)
        ):
            yield controls[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
