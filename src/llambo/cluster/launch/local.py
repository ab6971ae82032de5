"""Nodes as processes on this machine, forked by a zygote.

Owns the nodes from the wish for one to the report of its end, the turns in which they load, and the one zygote that is
theirs. Files are `rundir`'s business, memory is `admission`'s, and when to start or end a node is the caller's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from llambo.cluster.launch.admission import Admission, Plan, padded
from llambo.cluster.launch.base import (
    EMBEDDING,
    GENERATE,
    RERANKING,
    SLOT_FILES,
    TEMPLATE,
    TOKEN_IDS,
    UNIX,
    NodeExited,
    NodeHandle,
    NodeRequest,
)
from llambo.cluster.launch.engine import NodeEngines
from llambo.cluster.launch.rundir import NodeLogs, RunDir, read_tail
from llambo.cluster.launch.zygote import ANSWER_S, ZygoteProcess, exit_reason
from llambo.core.errors import BadModel, Cancelled, LlamboError, NameInUse, TimedOut
from llambo.engine import memory
from llambo.engine.policy import EngineHome, niceness_of
from llambo.node.spec import NodeSpec

log = logging.getLogger("llambo.launch.local")

LOADS_PER_CORE = 2
"""How many nodes load at once, for each processor core: one computes while another waits for the disk."""
ZYGOTES_PER_SPAWN = 3
"""A node whose order so many zygotes did not survive is refused: it may be the order that ends them."""
_CLOSED = "cannot start a node: the launcher is closed"


class _Node:
    """A node from its spawn order to its exit report."""

    def __init__(self, spec: NodeSpec, plan: Plan | None, zygote: ZygoteProcess) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.plan = plan
        self.zygote = zygote
        self.pid = 0  # until it was forked
        self.ready: asyncio.Future[NodeHandle] = loop.create_future()
        self.exited: asyncio.Future[str] = loop.create_future()  # the reason
        self.complaint = ""  # of the node, where it could say one
        self.unforked = ""  # why there never was a process
        self.has_crashed = False  # in a backend that was built here, which is set aside by now
        self.expected_to_end = False


class LocalLauncher:
    """A launcher for this machine; nothing is started before the first spawn.

    `run_parent` gets the run directory, `log_dir` a file `PID-NAME.log` per node (default: within the node's directory,
    gone with it). `available` gives the bytes of memory that new processes could have. At most `loads_at_once` nodes
    load at the same time; 0 is `LOADS_PER_CORE` for each core. `engines` choose what each node computes with (None: the
    wheel's own engine, as it was asked for).
    """

    def __init__(
        self,
        run_parent: Path,
        *,
        log_dir: Path | None = None,
        available: Callable[[], int] = memory.available_bytes,
        loads_at_once: int = 0,
        engines: EngineHome | None = None,
    ) -> None:
        self._run_parent = run_parent
        self._log_dir = log_dir
        self._run_dir: RunDir | None = None
        self._logs: NodeLogs | None = None
        self._admission = Admission(available)
        self._engines = NodeEngines(engines)
        self._names: set[str] = set()  # wanted or alive
        self._nodes: dict[str, _Node] = {}
        self._exits: asyncio.Queue[NodeExited] = asyncio.Queue()
        self._zygote: ZygoteProcess | None = None
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(loads_at_once or LOADS_PER_CORE * (os.cpu_count() or 1))
        self._is_closed = False

    async def spawn(self, request: NodeRequest, *, timeout_s: float) -> NodeHandle:
        """See `Launcher.spawn`. Nodes load a few at a time; `timeout_s` begins when it is this one's turn.

        Raises: also `NameInUse`, and `Cancelled` where it was terminated while it loaded.
        """
        if request.name in self._names:
            raise NameInUse(f"there is a node {request.name} already")
        self._names.add(request.name)
        try:
            plan = await self._admission.plan(request)
            if plan is not None:
                self._admission.claim(request.name, plan)
            async with self._turns:
                return await self._load(request, plan, timeout_s)
        except BaseException:
            if request.name not in self._nodes:
                self._names.discard(request.name)
                self._admission.release(request.name)
            raise

    async def room_for(self, request: NodeRequest) -> int | None:
        """See `Launcher.room_for`. Nodes whose spawn is in progress are counted as if they had loaded."""
        return await self._admission.room_for(request)

    async def terminate(self, name: str) -> None:
        """See `Launcher.terminate`."""
        node = self._nodes.get(name)
        if node is None:
            return
        node.expected_to_end = True
        if not node.exited.done():
            # A node has no clean-up of its own, and one that is loading or stopped would not look at SIGTERM.
            node.zygote.order({"signal": int(signal.SIGKILL), "name": name})
            await self._wait_gone(node)
        self._forget(node)

    async def watch(self) -> AsyncIterator[NodeExited]:
        """See `Launcher.watch`."""
        while True:
            yield await self._exits.get()

    async def close(self) -> None:
        """See `Launcher.close`. Spawns that wait for their turn fail; a closed launcher starts nothing more."""
        self._is_closed = True
        for node in self._nodes.values():
            node.expected_to_end = True
        await self._engines.close()
        if self._zygote is not None:
            await self._zygote.end()  # and whoever waits for its start fails
        async with self._starting:  # a start in progress would leave a zygote behind us
            if self._zygote is not None:
                await self._zygote.end()
                self._zygote = None
            for node in list(self._nodes.values()):
                self._forget(node)
            if self._run_dir is not None:
                self._run_dir.remove()
                self._run_dir = None

    def slot_dir(self, name: str) -> Path | None:
        """Where the node `name` saves its slots and restores them from; None where there is no such node."""
        node = self._nodes.get(name)
        return Path(node.spec.slots_path) if node else None

    async def _load(self, request: NodeRequest, plan: Plan | None, timeout_s: float) -> NodeHandle:
        for _ in range(ZYGOTES_PER_SPAWN):
            node = await self._begin(request, plan)
            await self._wait_loaded(node, timeout_s)
            if (node.pid or node.unforked or node.expected_to_end) and not node.has_crashed:
                return self._outcome(node)
            # Its zygote had ended before it was forked, or its backend failed: another one will do it.
            why = node.exited.result()
            del self._nodes[request.name]
            shutil.rmtree(node.spec.directory, ignore_errors=True)
        raise LlamboError(f"cannot start a node: {ZYGOTES_PER_SPAWN} zygotes ended before it was forked: {why}")

    async def _begin(self, request: NodeRequest, plan: Plan | None) -> _Node:
        """Orders the node from a zygote that lives."""
        try:
            zygote = await self._ensure_zygote()
            spec = self._prepare(request, plan)
            try:
                spec = await self._engines.complete(spec, nodes=len(self._names))
            except BaseException:
                shutil.rmtree(spec.directory, ignore_errors=True)
                raise
            node = _Node(spec, plan, zygote)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise LlamboError(f"cannot start a node: {place}{error.strerror or error}") from None
        self._nodes[request.name] = node
        if zygote.has_ended:
            self._take_end(zygote)
            return node
        zygote.order({"spawn": dataclasses.asdict(node.spec)})
        return node

    async def _wait_loaded(self, node: _Node, timeout_s: float) -> None:
        """Returns when the node is ready or gone; one that takes too long, or is not wanted any more, is ended."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait((node.ready, node.exited), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await self.terminate(node.spec.name)
            raise TimedOut(f"{Path(node.spec.model_path).name} was not loaded within {timeout_s:g} s") from None
        except asyncio.CancelledError:
            await asyncio.shield(self.terminate(node.spec.name))
            raise

    async def _wait_gone(self, node: _Node) -> None:
        """Returns when a node that its zygote was told to kill is gone, also where that zygote is stopped."""
        await asyncio.wait((node.exited,), timeout=ANSWER_S)
        if node.exited.done():
            return
        name = node.spec.name
        if node.pid and await node.zygote.kill_node(node.pid):
            log.warning("the zygote does not answer; node %s was killed without it", name)
            self._take_exit(node, "it was killed")
            return
        if not node.exited.done():  # a node that it may still fork cannot be ended otherwise
            log.error("the zygote does not answer, so it is killed, and its nodes with it, to end node %s", name)
            node.zygote.kill()
        await asyncio.shield(node.exited)

    def _outcome(self, node: _Node) -> NodeHandle:
        """What became of a spawn."""
        if node.ready.done():  # and if it has ended since, that was reported
            self._admission.settle(node.spec.name)
            self._engines.has_served(node.spec)
            return node.ready.result()
        tail = read_tail(Path(node.spec.log_path))
        self._forget(node)
        if node.expected_to_end:
            raise Cancelled(f"node {node.spec.name} was ended while it loaded")
        if node.unforked:
            raise LlamboError(f"cannot start a node: the system makes no process for it: {node.unforked}")
        why = node.complaint or f"the node ended: {node.exited.result()}"
        words = f"; its log ends with: {tail}" if tail else ""
        raise BadModel(f"{node.spec.model_path} cannot be loaded: {why}{words}")

    def _prepare(self, request: NodeRequest, plan: Plan | None) -> NodeSpec:
        if self._run_dir is None:
            if self._log_dir is not None:
                self._logs = NodeLogs(self._log_dir)
            self._run_dir = RunDir(self._run_parent)
        directory = self._run_dir.make_node_dir(request.name)
        log_path = self._logs.path_of(request.name) if self._logs else directory / "node.log"
        spec = NodeSpec(
            name=request.name,
            directory=str(directory),
            log_path=str(log_path),
            # The node works in its own directory, and its sandbox opens what the path leads to.
            model_path=str(Path(request.model_path).absolute()),
            ctx=request.options.ctx,
            slots=request.options.slots,
            threads=request.options.threads,
            threads_by_default=request.options.threads_by_default,
            gpu_layers=request.options.gpu_layers,
            embedding=request.embedding,
            reranking=request.reranking,
            alias=request.model,
            niceness=niceness_of(nodes=len(self._names)),
        )
        if plan is None:
            return dataclasses.replace(spec, batch=max(spec.batch, padded(spec.ctx))) if spec.pools else spec
        cache_mib = -(-plan.need.prompt_cache_bytes // 2**20)
        return dataclasses.replace(spec, batch=plan.batch, cache_mib=cache_mib)

    async def _ensure_zygote(self) -> ZygoteProcess:
        async with self._starting:
            if self._is_closed:
                raise LlamboError(_CLOSED)
            if self._zygote is None or self._zygote.has_ended:
                self._zygote = await ZygoteProcess.start(
                    on_event=self._take, on_end=self._take_end, wait=self._engines.policy.wait
                )
            try:
                if not self._is_closed:
                    await self._zygote.wait_up()
            except LlamboError:
                if not self._is_closed:  # else it was ended by `close`
                    raise
            if self._is_closed:
                raise LlamboError(_CLOSED)
            return self._zygote

    def _take(self, event: dict[str, Any]) -> None:
        node = self._nodes.get(event["name"])
        if node is None:
            return
        match event["event"]:
            case "started":
                node.pid = event["pid"]
            case "ready":
                node.pid = event["pid"]
                if not node.ready.done():
                    node.ready.set_result(_handle(node, event))
            case "refused":
                node.complaint = "llama.cpp refused it"
            case "failed":
                node.complaint = f"the node could not begin: {event['message']}"
            case "unbacked":
                self._engines.cannot_load(node.spec, event["message"], lasts=event["lasts"])
            case "unforked":
                node.unforked = event["message"]
                node.exited.set_result("it was never made")
            case "exited" if event["pid"] == node.pid:  # not another one's that had the name before
                if not node.expected_to_end and not node.exited.done():
                    blamed = self._engines.blames(node.spec, event["status"])
                    node.has_crashed = blamed and not node.ready.done()
                self._take_exit(node, exit_reason(event["status"]))

    def _take_end(self, zygote: ZygoteProcess) -> None:
        mine = [node for node in self._nodes.values() if node.zygote is zygote]
        # It carries out one order after the other, so it may have ended while it loaded the backend of the first node
        # that it has not forked; those after it had no part in that.
        tried = next((node for node in mine if not node.pid and not node.exited.done()), None)
        if tried is not None and not tried.expected_to_end:
            self._engines.blames(tried.spec, zygote.status)
        for node in mine:  # it took its children along
            self._take_exit(node, f"its zygote ended: {zygote.ending}")

    def _take_exit(self, node: _Node, reason: str) -> None:
        if node.exited.done():
            return
        node.exited.set_result(reason)
        if node.ready.done() and not node.expected_to_end:
            log.warning("node %s is gone: %s", node.spec.name, reason)
            self._exits.put_nowait(NodeExited(node.spec.name, node.pid, reason))
            self._forget(node)

    def _forget(self, node: _Node) -> None:
        name = node.spec.name
        if self._nodes.get(name) is node:
            del self._nodes[name]
            self._names.discard(name)
            self._admission.release(name)
            if self._logs is not None:
                self._logs.node_ended(name)
        shutil.rmtree(node.spec.directory, ignore_errors=True)


def _handle(node: _Node, ready: dict[str, Any]) -> NodeHandle:
    """What the ready node is. Its template is what the model's header has: llama.cpp would make one up."""
    spec = node.spec
    features = {GENERATE, TOKEN_IDS, SLOT_FILES}
    if spec.pools:
        features = {EMBEDDING} if spec.embedding else {RERANKING}
    elif node.plan is None or node.plan.has_template:
        features.add(TEMPLATE)
    return NodeHandle(
        name=spec.name,
        pid=ready["pid"],
        address=UNIX + spec.socket_path,
        machine=socket.gethostname(),
        slots=spec.slots,
        ctx=node.plan.ctx if node.plan else padded(spec.ctx),
        model=Path(spec.model_path).stem,
        log_path=spec.log_path,
        sandbox=tuple(ready["sandbox"]),
        backend=ready["backend"],
        features=frozenset(features),
    )
