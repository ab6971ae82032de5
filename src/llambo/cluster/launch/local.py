"""Nodes as processes on this machine, forked by a zygote.

Owns the zygote, the run directory with one private directory per node, and the nodes' log files. The run directory is
locked for as long as we live, so that a later launcher can tell, and remove, what a killed one had to leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llambo.cluster.launch.base import NodeExited, NodeHandle, NodeRequest
from llambo.core import paths
from llambo.core.errors import BadModel, LlamboError, TimedOut
from llambo.engine import llama
from llambo.node.spec import SOCKET_NAME, NodeSpec

log = logging.getLogger("llambo.launch.local")

RUN_PREFIX = "nodes-"
LOGS_KEPT = 50
_LOG_TAIL_LINES = 5
_LOG_TAIL_BYTES = 4096
_START_S = 60.0  # the zygote's own start: an import of a 100 MB library from a cold disk


class _Node:
    """A node from its spawn order to its exit report."""

    def __init__(self, spec: NodeSpec) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.ready: asyncio.Future[NodeHandle] = loop.create_future()
        self.exited: asyncio.Future[str] = loop.create_future()  # the reason
        self.complaint = ""  # of the engine
        self.unforked = ""  # why there never was a process
        self.expected_to_end = False


class LocalLauncher:
    """A launcher for this machine; nothing is started before the first spawn.

    `run_parent` gets the run directory, `log_dir` a file `PID-NAME.log` per node (default: within the node's directory,
    gone with it).
    """

    def __init__(self, run_parent: Path, *, log_dir: Path | None = None) -> None:
        self._run_parent = run_parent
        self._log_dir = log_dir
        self._run_dir: Path | None = None
        self._run_lock = -1  # a descriptor of the run directory, locked for as long as we live
        self._nodes: dict[str, _Node] = {}
        self._exits: asyncio.Queue[NodeExited] = asyncio.Queue()
        self._zygote: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._broken = ""

    async def spawn(self, request: NodeRequest, *, timeout_s: float) -> NodeHandle:
        """See `Launcher.spawn`."""
        try:
            zygote = await self._ensure_zygote()
            node = _Node(self._prepare(request))
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise LlamboError(f"cannot start a node: {place}{error.strerror or error}") from None
        self._nodes[request.name] = node
        self._order(zygote, {"spawn": dataclasses.asdict(node.spec)})
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait((node.ready, node.exited), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self.terminate(request.name)
            raise TimedOut(f"{Path(request.model_path).name} was not loaded within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            await asyncio.shield(self.terminate(request.name))
            raise
        if node.unforked:
            self._forget(node)
            raise LlamboError(f"cannot start a node: the system makes no process for it: {node.unforked}")
        if node.exited.done():
            raise BadModel(self._explain(node, request))
        return node.ready.result()

    async def terminate(self, name: str) -> None:
        """See `Launcher.terminate`."""
        node = self._nodes.get(name)
        if node is None:
            return
        node.expected_to_end = True
        if self._zygote is not None and not node.exited.done():
            # A node has no clean-up of its own, and one that is loading would look at SIGTERM only afterwards.
            self._order(self._zygote, {"signal": int(signal.SIGKILL), "name": name})
        await asyncio.shield(node.exited)
        self._forget(node)

    async def watch(self) -> AsyncIterator[NodeExited]:
        """See `Launcher.watch`."""
        while True:
            yield await self._exits.get()

    async def close(self) -> None:
        """See `Launcher.close`."""
        for node in self._nodes.values():
            node.expected_to_end = True
        async with self._starting:  # a start in progress would leave a zygote behind us
            if self._zygote is not None and self._zygote.stdin is not None:
                self._zygote.stdin.close()
                await self._zygote.wait()
            if self._reader is not None:
                await self._reader
            if self._run_dir is not None:
                shutil.rmtree(self._run_dir, ignore_errors=True)
                os.close(self._run_lock)
                self._run_dir = None

    def _prepare(self, request: NodeRequest) -> NodeSpec:
        if self._run_dir is None:
            sweep(self._run_parent)
            if self._log_dir is not None:
                prune_logs(paths.make_private_dir(self._log_dir))
            self._run_dir, self._run_lock = _make_run_dir(self._run_parent)
        directory = self._run_dir / request.name
        directory.mkdir(mode=0o700)
        # Our process id in the name: two launchers of one home share the directory of logs.
        log_dir, log_name = self._log_dir or directory, f"{os.getpid()}-{request.name}.log"
        return NodeSpec(
            name=request.name,
            directory=str(directory),
            log_path=str(log_dir / log_name),
            model_path=request.model_path,
            ctx=request.options.ctx,
            slots=request.options.slots,
            threads=request.options.threads,
            gpu_layers=request.options.gpu_layers,
            embedding=request.embedding,
        )

    async def _ensure_zygote(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._zygote is not None and self._zygote.returncode is None:
                return self._zygote
            self._broken = ""
            # A session of its own: signals from a terminal reach us alone, and we end it in our own order.
            zygote = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "llambo.node.zygote",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, **llama.spin_environment(os.environ)},
            )
            up = asyncio.Event()
            self._zygote = zygote
            self._reader = asyncio.create_task(self._read_events(zygote, up))
            try:
                async with asyncio.timeout(_START_S):
                    await up.wait()
            except TimeoutError:
                zygote.kill()
                raise TimedOut(f"the engine's library was not loaded within {_START_S:g} s") from None
            if self._broken:
                raise LlamboError(f"the engine cannot be loaded: {self._broken}")
            return zygote

    def _order(self, zygote: asyncio.subprocess.Process, order: dict[str, Any]) -> None:
        assert zygote.stdin is not None
        zygote.stdin.write(json.dumps(order).encode() + b"\n")

    async def _read_events(self, zygote: asyncio.subprocess.Process, up: asyncio.Event) -> None:
        assert zygote.stdout is not None
        self._broken = "its process ended at once"
        async for line in zygote.stdout:
            event = json.loads(line)
            if event["event"] == "up":
                self._broken = ""
                up.set()
            elif event["event"] == "broken":
                self._broken = event["message"]
            elif node := self._nodes.get(event["name"]):
                self._take(node, event)
        up.set()
        await zygote.wait()
        for node in list(self._nodes.values()):  # the zygote took its children along
            self._take_exit(node, 0, "its zygote ended")

    def _take(self, node: _Node, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ready":
                if not node.ready.done():
                    node.ready.set_result(NodeHandle(node.spec.name, event["pid"], node.spec.socket_path))
            case "failed":
                node.complaint = event["message"]
            case "unforked":
                node.unforked = event["message"]
                node.exited.set_result("it was never made")
            case "exited":
                self._take_exit(node, event["pid"], _exit_reason(event["status"]))

    def _take_exit(self, node: _Node, pid: int, reason: str) -> None:
        if node.exited.done():
            return
        node.exited.set_result(reason)
        if node.ready.done() and not node.expected_to_end:
            log.warning("node %s is gone: %s", node.spec.name, reason)
            self._exits.put_nowait(NodeExited(node.spec.name, pid, reason))
            self._forget(node)

    def _explain(self, node: _Node, request: NodeRequest) -> str:
        """The sentence for a node that ended before it was ready, with llama.cpp's last words."""
        tail = read_tail(Path(node.spec.log_path))
        self._forget(node)
        why = "llama.cpp refused it" if node.complaint else f"the node ended: {node.exited.result()}"
        words = f"; its log ends with: {tail}" if tail else ""
        return f"{request.model_path} cannot be loaded: {why}{words}"

    def _forget(self, node: _Node) -> None:
        if self._nodes.get(node.spec.name) is node:
            del self._nodes[node.spec.name]
        shutil.rmtree(node.spec.directory, ignore_errors=True)


def _exit_reason(status: int) -> str:
    if status >= 0:
        return f"it ended with status {status}"
    name = ""
    with contextlib.suppress(ValueError):
        name = f" ({signal.Signals(-status).name})"
    return f"it was killed by signal {-status}{name}"


def read_tail(path: Path) -> str:
    """The last few lines of a log file, joined by " | "; "" when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in lines[-_LOG_TAIL_LINES:] if line.strip())


def _make_run_dir(run_parent: Path) -> tuple[Path, int]:
    """A fresh run directory and a descriptor of it whose lock tells other launchers that it is in use."""
    while True:
        directory = paths.make_short_private_dir(run_parent, RUN_PREFIX, f"n{10**6}/{SOCKET_NAME}")
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if directory.exists():  # nobody swept it away in the moment before the lock
            return directory, lock
        os.close(lock)


def sweep(run_parent: Path) -> None:
    """Removes run directories (there, and where long paths made them go) whose launcher was killed before it could."""
    overflow = Path(tempfile.gettempdir()).glob(f"{paths.OVERFLOW_PREFIX}{RUN_PREFIX}*")
    for directory in (*run_parent.glob(f"{RUN_PREFIX}*"), *overflow):
        with contextlib.suppress(OSError):  # in use, another user's, or gone meanwhile
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def prune_logs(log_dir: Path) -> None:
    """Removes all but the newest of the logs that earlier nodes left."""
    logs = sorted(log_dir.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs[LOGS_KEPT:]:
        path.unlink(missing_ok=True)
