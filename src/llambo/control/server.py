"""The control socket of a daemon: serves a `Control` to local programs of the same user.

Owns connections and their calls. A connection may have several calls under way; the end of its input is a hang-up and
cancels them. Knows nothing of where the socket lies: whoever made it removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from llambo.cluster.control import Control
from llambo.control import protocol as p
from llambo.core.errors import BadRequest, LlamboError, Refused

_log = logging.getLogger("llambo.control")


class ControlServer:
    """`control` behind the listening Unix socket `listener`; `request_stop` is what `shutdown` calls."""

    def __init__(self, control: Control, listener: socket.socket, *, request_stop: Callable[[], None]) -> None:
        self._control = control
        self._listener = listener
        self._request_stop = request_stop
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Serves from now on."""
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener, limit=p.MAX_LINE_BYTES)

    async def close(self) -> None:
        """Takes no more connections and cancels every call."""
        if self._server is not None:
            self._server.close()
        connections = self._connections.copy()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        for writer in connections.values():
            writer.transport.abort()  # its caller may never read what is still to be sent
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._converse(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls: set[asyncio.Task[None]] = set()
        try:
            _check_caller(writer)
            while line := await reader.readline():
                call = asyncio.create_task(self._answer(line, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
        except ValueError:  # a line over the limit: what follows it has no beginning
            error = BadRequest(f"a request has at most {p.MAX_LINE_BYTES} bytes")
            writer.write(p.encode_answer(0, error))
        except Refused as error:
            writer.write(p.encode_answer(0, error))
        except ConnectionError:
            pass  # a hang-up like any other
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await asyncio.shield(writer.wait_closed())  # cancelling it would leave nothing to wait for in `close`

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        request_id = 0
        answer: p.Result | LlamboError
        try:
            request_id, call = p.decode_request(line)

            def tell(value: Any) -> None:
                writer.write(p.encode_answer(request_id, p.Progress(value)))

            if isinstance(call, p.Events):
                await self._events(tell, writer)
            answer = p.Result(await self._perform(call, tell))
        except p.BadLine as bad:
            request_id, answer = bad.request_id, bad.error
        except LlamboError as error:
            answer = error
        except Exception:
            _log.exception("a call failed in an unforeseen way")
            answer = LlamboError("the cluster failed in an unforeseen way; its log has the details")
        writer.write(p.encode_answer(request_id, answer))
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _events(self, tell: Callable[[Any], None], writer: asyncio.StreamWriter) -> None:
        async with aclosing(self._control.events()) as events:
            async for event in events:
                tell(event)
                await writer.drain()

    async def _perform(self, call: p.Call, tell: Callable[[Any], None]) -> Any:
        def progress(ready: int, wanted: int) -> None:
            tell({"ready": ready, "wanted": wanted})

        control = self._control
        match call:
            case p.Status():
                return control.cluster_status()
            case p.Nodes():
                return await control.nodes()
            case p.Spawn(count, node_type, model, slots):
                return await control.spawn(count, node_type=node_type, model=model, slots=slots, progress=progress)
            case p.Scale(count, model):
                return await control.scale(count, model=model, progress=progress)
            case p.Attach():
                return await control.attach(
                    call.url, node_type=call.node_type, api_key=call.api_key, api_key_env=call.api_key_env
                )
            case p.Detach(node):
                return await control.detach(node)
            case p.Drain(node):
                return await control.drain(node)
            case p.Kill(node):
                return await control.kill(node)
            case p.Restart(node):
                return await control.restart(node)
            case p.Pin(model, pinned):
                return await control.pin(model, pinned=pinned)
            case _:
                return await self._look(call)

    async def _look(self, call: p.Call) -> Any:
        control = self._control
        match call:
            case p.Balancer(strategy):
                if strategy:
                    control.set_strategy(strategy)
                stats = control.balancer_stats()
                return {name: getattr(stats, name) for name in (*stats.__slots__, "hit_ratio")}
            case p.Metrics():
                return control.metrics()
            case p.Checkpoint():
                return control.checkpoint()
            case p.Save(path):
                return str(await control.save_checkpoint(Path(path) if path else None))
            case p.Restore(path):
                return await control.restore_checkpoint(Path(path) if path else None)
            case p.Shutdown():
                self._request_stop()
                return {"pid": os.getpid()}
            case _:
                raise AssertionError(f"{call} has no meaning")


def _check_caller(writer: asyncio.StreamWriter) -> None:
    """Passes for programs of this user and of root, or where the system cannot tell (the socket's mode is 0600).

    Raises: `Refused`.
    """
    if sys.platform != "linux":
        return
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("iII", credentials)
    if uid not in {0, os.geteuid()}:
        raise Refused("this cluster belongs to another user")
