"""What the gateway's benchmarks run against: a daemon of its own, a node's native server beside it, idle clients.

Owns processes and sockets, which are gone when a block ends. What is measured is `gateway`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import ending
from bench.harness import LLAMBOCTL, MODELS
from bench.load import Target, Workload
from llambo.cluster.launch.base import UNIX, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core.types import LoadOptions
from llambo.engine import gguf, llama

_START_S = 120.0

EVENTS = (
    b"GET /ws/events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
)
"""A WebSocket's opening for the cluster's events."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon: its own process (nodes are others) and its gateway on a Unix socket."""

    process: psutil.Process
    gateway: Target
    home: Path

    def ask(self, *arguments: str) -> Any:
        """The JSON document of a `llamboctl` command for this daemon."""
        return json.loads(_ctl(self.home, *arguments, "--json"))

    def cpu_s(self) -> float:
        """The processor time that the daemon's process has had."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def daemon(
    model: Path | str = "built-in",
    *,
    nodes: int = 1,
    slots: int = 8,
    ctx: int = 512,
    attach: Sequence[str] = (),
    **sections: Any,
) -> Iterator[Daemon]:
    """A daemon with a home of its own, `nodes` nodes of `model` and the servers at the URLs `attach`."""
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        home = Path(directory)
        home.chmod(0o700)
        node_type = {"ctx": ctx, "slots": slots, "threads": _threads(model), "memory": "64GiB"}
        settings: dict[str, Any] = {
            "cluster": {"node_types": {"bench": node_type}, "default_type": "bench"},
            "models": {"default": str(model)},
            "gateway": {"listen": f"unix!{home}/gateway.sock"},
        }
        for name, values in ({"orchestrator": {"min_nodes": nodes}} | sections).items():
            settings[name] = settings.get(name, {}) | values
        (home / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML too
        # In the foreground, and so in our session as what it is compared with: Linux may share the processor among
        # sessions first (autogroups), and a program that has one to itself would be another world.
        start = [*LLAMBOCTL, "init", "--foreground", "--json", "--config", str(home / "config.yaml")]
        with ending.process(start, stdout=subprocess.PIPE, env=_environment(home)) as process:
            assert process.stdout is not None
            if not (said := process.stdout.readline()):
                raise SystemExit(f"llamboctl init ended with status {process.wait()}")
            daemon_process = psutil.Process(json.loads(said)["pid"])
            running = Daemon(daemon_process, Target("localhost", 0, f"{home}/gateway.sock"), home)
            for url in attach:
                running.ask("attach", url)
            yield running


def _environment(home: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMBO_")}
    return environment | {"LLAMBO_HOME": str(home)}


def _ctl(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*LLAMBOCTL, *arguments], env=_environment(home), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"llamboctl {' '.join(arguments)} ended with status {done.returncode}")
    return done.stdout


def _threads(model: Path | str) -> int:
    return llama.threads_for(gguf.read(model).tensor_bytes) if isinstance(model, Path) else 1


@asynccontextmanager
async def native_server(model: Path, *, slots: int, ctx: int) -> AsyncIterator[Target]:
    """A node's own HTTP server with nothing in front of it, with the options that the daemon's node has."""
    launcher = LocalLauncher(MODELS / "run")
    try:
        options = LoadOptions(ctx=ctx, slots=slots, threads=_threads(model))
        handle = await launcher.spawn(NodeRequest("native", str(model), options), timeout_s=_START_S)
        yield Target("localhost", 0, handle.address.removeprefix(UNIX))
    finally:
        await launcher.close()


@asynccontextmanager
async def llama_server(model: Path, *, slots: int, ctx: int) -> AsyncIterator[Target | None]:
    """The `llama-server` on PATH with the same options, on a Unix socket; None where there is none."""
    program = shutil.which("llama-server")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as directory:
        socket = f"{directory}/llama.sock"
        counts = ["-c", str(ctx * slots), "-np", str(slots), *(["-t", str(_threads(model))] * bool(_threads(model)))]
        process = await asyncio.create_subprocess_exec(
            program, "-m", str(model), *counts, "--host", socket,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_START_S):
                while b"200 OK" not in await _head(socket, "/health"):
                    if process.returncode is not None:
                        raise SystemExit(f"{program} ended with status {process.returncode}")
                    await asyncio.sleep(0.1)
            yield Target("localhost", 0, socket)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _head(socket: str, path: str) -> bytes:
    """The head of a reply; nothing where nobody listens yet."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()
    return b""


def chat_request(workload: Workload) -> bytes:
    """The workload's first request, as it goes over the wire."""
    body = workload.body(0)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


class Idle(asyncio.Protocol):
    """A client that sends one request and then only listens; `has_begun` once `sign` came."""

    def __init__(self, request: bytes, sign: bytes) -> None:
        self._request = request
        self._sign = sign
        self._seen = b""
        self.has_begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self.has_begun.done():
            return
        self._seen += data
        if self._sign in self._seen:
            self.has_begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if not self.has_begun.done():
            self.has_begun.set_exception(SystemExit(f"an idle client was refused: {self._seen[:300]!r}"))

    def close(self) -> None:
        """Hangs up."""
        self._transport.abort()


@asynccontextmanager
async def idle_clients(target: Target, count: int, request: bytes, sign: bytes) -> AsyncIterator[list[Idle]]:
    """`count` clients that have sent `request`; with a `sign` each of them has got it."""
    loop = asyncio.get_running_loop()
    clients: list[Idle] = []
    try:
        for _ in range(count):
            _, client = await loop.create_unix_connection(lambda: Idle(request, sign), target.socket_path)
            clients.append(client)
        if sign:
            async with asyncio.timeout(_START_S):
                await asyncio.gather(*(client.has_begun for client in clients))
        yield clients
    finally:
        for client in clients:
            client.has_begun.cancel()
            client.close()


def allow_connections() -> None:
    """Connections are files: raises their soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def settled_uss(process: psutil.Process, *, steady_s: float = 1.0) -> int:
    """The process's private memory in bytes, once it has stopped moving for `steady_s` (10 s at most)."""
    end = time.monotonic() + 10
    last, since = process.memory_full_info().uss, time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < steady_s:
        await asyncio.sleep(0.2)
        now = process.memory_full_info().uss
        if abs(now - last) > 2**16:
            last, since = now, time.monotonic()
    return int(process.memory_full_info().uss)
