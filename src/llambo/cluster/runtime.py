"""The one loop that performs what the orchestrator decides.

Events come in by `post`, wherever they happen; the orchestrator's commands are carried out at once where that takes no
time, and as tasks where it does. Nothing here decides: which node, whether to retry and when to restart is the
orchestrator's. Owns the launchers, the connections to live nodes, and those who wait for a node or a place.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

from llambo.cluster import handover, node_waiters
from llambo.cluster.control import ClusterEvent
from llambo.cluster.event_readers import EventReaders
from llambo.cluster.events import (
    Command,
    ConversationsMoved,
    Event,
    MoveConversations,
    NodeEnded,
    NodeStarted,
    NodeStartFailed,
    NodeStopped,
    PlaceRequest,
    ProbeAnswered,
    ProbeFailed,
    ProbeNode,
    Publish,
    RefuseRequest,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    RequestGone,
    SaveCheckpoint,
    StartNode,
    StopNode,
    TellNodeGone,
    TellNodeReady,
    Ticked,
)
from llambo.cluster.launch.base import EMBEDDING, GENERATE, RERANKING, UNNAMED, Launcher, NodeHandle, NodeRequest
from llambo.cluster.node_waiters import NodeWaiters
from llambo.cluster.orchestrator import Orchestrator
from llambo.cluster.state import ATTACHED, EMBED, LOCAL, RERANK, Node, Route
from llambo.cluster.state import GENERATE as ANSWERS
from llambo.cluster.tickets import Place, Ticket
from llambo.cluster.upstream import open_upstream
from llambo.cluster.world import Policy, serves
from llambo.core.errors import BadModel, LlamboError, NodeLost, from_code

log = logging.getLogger("llambo.cluster")


@dataclass(frozen=True, slots=True)
class Limits:
    """Times that performing depends on, in seconds."""

    start_s: float = 300.0
    stall_s: float = 60.0
    health_s: float = 5.0


class Observer(Protocol):
    """Whoever counts: told of what the metrics show and nothing else here knows."""

    def routed(self, seconds: float) -> None:
        """A request was placed or queued in that time."""
        ...

    def queued(self, seconds: float) -> None:
        """A request waited for so long before it was placed."""
        ...


MakeRoom = Callable[[str, NodeRequest], AbstractAsyncContextManager[None]]
"""For a model and a node of it: entered when there is room, left when the node has taken it. Raises: `NoMemory`."""


class Runtime:
    """Performs.

    `request_for` says what to start for a node, `changed` hears that a checkpoint would look different, `heard` all
    that is published, `make_room` (None: nothing) ends what may go before a node that nobody ordered starts.
    """

    def __init__(
        self,
        policy: Policy,
        launchers: Mapping[str, Launcher],
        *,
        limits: Limits,
        request_for: Callable[[Node], NodeRequest],
        changed: Callable[[], None],
        observer: Observer,
        heard: Callable[[ClusterEvent], None],
        make_room: MakeRoom | None = None,
    ) -> None:
        self.orchestrator = Orchestrator(policy, random.Random())  # noqa: S311 - spreads load, guards nothing
        self._launchers = launchers
        self._limits = limits
        self._request_for = request_for
        self._changed = changed
        self._observer = observer
        self._heard = heard
        self._make_room = make_room
        self._live: dict[str, Place] = {}
        self._starting: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._stopping: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets: dict[int, Ticket] = {}
        self._waiters = NodeWaiters()
        self._readers = EventReaders()
        self._alarm: asyncio.TimerHandle | None = None
        self._calmer = asyncio.Event()  # each is set once: by the next thing that frees something
        self._is_watching = False
        self.is_closed = False

    # --- what others ask ------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Tells the orchestrator, and does what it wants. Events after `close` are of no effect."""
        if self.is_closed:
            return
        loop = asyncio.get_running_loop()
        for command in self.orchestrator.handle(event, loop.time()):
            self._perform(command)
        if isinstance(event, _CALMING):
            calmer, self._calmer = self._calmer, asyncio.Event()
            calmer.set()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if (at := self.orchestrator.wake_at) is not None:
            self._alarm = loop.call_at(at, self.post, Ticked())

    def check_open(self) -> None:
        """Passes until `close`. Raises: `NodeLost`."""
        if self.is_closed:
            raise _closed()

    def submit(self, route: Route) -> Ticket:
        """Brings a request in; the ticket says where it may run."""
        ticket = Ticket(self, route)
        self._tickets[route.id] = ticket
        started = time.perf_counter()
        self.post(RequestArrived(route))
        self._observer.routed(time.perf_counter() - started)
        return ticket

    def forget_ticket(self, ticket: Ticket) -> None:
        """The request is over."""
        self._tickets.pop(ticket.route.id, None)

    def place_of(self, node: str) -> Place | None:
        """The way to a live node."""
        return self._live.get(node)

    def until_ready(self, node_id: str) -> asyncio.Future[None]:
        """Done when the node serves; raises what kept it from it."""
        node = self.orchestrator.world.nodes.get(node_id)
        if self.is_closed or node is None:
            return node_waiters.failed(_closed() if self.is_closed else NodeLost(f"node {node_id} is gone"))
        return node_waiters.done() if serves(node) else self._waiters.until_ready(node_id)

    def until_gone(self, node_id: str) -> asyncio.Future[None]:
        """Done when the node is forgotten and its process is gone."""
        if self.is_closed or node_id not in self.orchestrator.world.nodes:
            return node_waiters.done()
        return self._waiters.until_gone(node_id)

    async def until_calmer(self) -> None:
        """Returns when a request has ended or a node is gone: what was impossible may be possible now."""
        await self._calmer.wait()

    def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """Everything published from now on."""
        return self._readers.events()

    async def close(self) -> None:
        """Ends every node and task; requests in flight end with `NodeLost`."""
        self.is_closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._waiters.fail_all(_closed())
        for ticket in list(self._tickets.values()):
            if not ticket.turn.done():
                ticket.turn.set_exception(_closed())
                ticket.turn.exception()  # nobody may be waiting: that is no fault
        tasks = [*self._tasks, *self._starting.values(), *self._stopping.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(launcher.close() for launcher in self._launchers.values()))
        await asyncio.gather(*(place.upstream.close() for place in self._live.values()))
        self._waiters.all_gone()
        self._readers.end()

    # --- what the orchestrator wants ------------------------------------------------------------------------------

    def _perform(self, command: Command) -> None:  # noqa: PLR0912 - one case per command
        match command:
            case PlaceRequest(request_id, node):
                self._place(request_id, node)
            case RefuseRequest(request_id, code, message):
                if (ticket := self._tickets.get(request_id)) and not ticket.turn.done():
                    ticket.turn.set_exception(from_code(code, message))
                    ticket.turn.exception()  # a caller that is gone by now is no fault
            case StartNode(node, epoch):
                self._watch()
                self._track(self._starting, (node, epoch), self._start(node, epoch))
            case StopNode(node, epoch):
                if (node, epoch) not in self._stopping:
                    self._track(self._stopping, (node, epoch), self._stop(node, epoch))
            case ProbeNode(node, epoch, end_to_end):
                self._spawn_task(self._probe(node, epoch, end_to_end=end_to_end))
            case MoveConversations(source, target):
                self._spawn_task(self._move(source, target))
            case TellNodeReady(node):
                self._waiters.ready(node)
            case TellNodeGone(node, code, message):
                self._tell_gone(node, from_code(code, message) if code else NodeLost(f"node {node} is gone: {message}"))
            case Publish(kind, fields):
                self._publish(ClusterEvent(time.time(), kind, fields))
            case SaveCheckpoint():
                self._changed()
            case _:
                assert_never(command)

    def _place(self, request_id: int, node: str) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is not None and not ticket.turn.done():
            self._observer.queued(time.perf_counter() - ticket.arrived)
            ticket.turn.set_result(self._live[node])

    def _tell_gone(self, node: str, error: LlamboError) -> None:
        self._waiters.failed(node, error)
        if node not in self.orchestrator.world.nodes:  # else it was given up, and is still there to be looked at
            self._waiters.gone(node)

    def _publish(self, event: ClusterEvent) -> None:
        words = " ".join(f"{name}={value}" for name, value in event.fields.items())
        self._heard(event)
        log.log(logging.WARNING if event.kind in _BAD_NEWS else logging.INFO, "%s %s", event.kind, words)
        self._readers.tell(event)

    async def _start(self, node_id: str, epoch: int) -> None:
        node = self.orchestrator.world.nodes[node_id]
        launcher = self._launchers[node.launcher]
        request = self._request_for(node)
        try:
            makes_room = self._make_room is not None and node.is_on_demand
            room = self._make_room(node.model, request) if self._make_room and makes_room else nullcontext()
            async with room:
                handle = await launcher.spawn(request, timeout_s=self._limits.start_s)
            if node.launcher == ATTACHED and (found := handle.model or UNNAMED) != request.model:
                await launcher.terminate(request.name)
                raise BadModel(f"the server at {request.url} has the model {found} now, not {request.model}")
        except LlamboError as error:
            self.post(NodeStartFailed(node_id, epoch, error.code, error.message))
            return
        except Exception as error:  # a fault of ours must not leave somebody waiting for this node for ever
            self.post(NodeStartFailed(node_id, epoch, LlamboError.code, f"cannot start a node: {error!r}"))
            raise
        if before := self._live.get(node_id):  # its process is still being ended
            self._spawn_task(before.upstream.close())
        self._live[node_id] = Place(node_id, epoch, handle, open_upstream(handle, stall_s=self._limits.stall_s))
        likeness = f"{node.launcher} {self._live[node_id].upstream.probe_kind}"
        self.post(NodeStarted(node_id, epoch, handle.slots, handle.ctx, _kinds(handle), likeness))

    async def _stop(self, node_id: str, epoch: int) -> None:
        """Ends what runs under that name, also while it starts."""
        starting = self._starting.get((node_id, epoch))
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        name = node_name(node_id, epoch)
        await asyncio.gather(*(launcher.terminate(name) for launcher in self._launchers.values()))
        await self._hang_up(node_id, epoch)
        self.post(NodeStopped(node_id, epoch))

    async def _hang_up(self, node_id: str, epoch: int) -> None:
        place = self._live.get(node_id)
        if place is not None and place.epoch == epoch:
            del self._live[node_id]
            await place.upstream.close()

    async def _probe(self, node_id: str, epoch: int, *, end_to_end: bool) -> None:
        place = self._live.get(node_id)
        if place is None or place.epoch != epoch:
            return
        try:
            answer = None
            if end_to_end:
                answer = await place.upstream.probe(self._limits.health_s)
            else:
                await place.upstream.health(self._limits.health_s)
        except LlamboError as error:
            self.post(ProbeFailed(node_id, epoch, error.message))
        except Exception as error:  # a fault of ours must not leave the node unchecked for ever
            self.post(ProbeFailed(node_id, epoch, f"the check failed: {error!r}"))
            raise
        else:
            self.post(ProbeAnswered(node_id, epoch, answer))

    async def _move(self, source: str, target: str) -> None:
        moved = 0
        origin, goal = self._live.get(source), self._live.get(target)
        if origin is not None and goal is not None:
            moved = await handover.move(origin, goal, self._slot_dir)
        self.post(ConversationsMoved(source, target, moved))

    def _slot_dir(self, name: str) -> Path | None:
        find = getattr(self._launchers[LOCAL], "slot_dir", None)
        return find(name) if find is not None else None

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            for launcher in self._launchers.values():
                self._spawn_task(self._watch_launcher(launcher))

    async def _watch_launcher(self, launcher: Launcher) -> None:
        async for exited in launcher.watch():
            node, _, epoch = exited.name.rpartition(".")
            self.post(NodeEnded(node, int(epoch), exited.reason))
            self._spawn_task(self._hang_up(node, int(epoch)))

    # --- small tools ----------------------------------------------------------------------------------------------

    def _spawn_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the cluster failed", exc_info=error)

    def _track(
        self,
        tasks: dict[tuple[str, int], asyncio.Task[None]],
        key: tuple[str, int],
        work: Coroutine[None, None, None],
    ) -> None:
        task = tasks[key] = asyncio.create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if tasks.get(key) is task:
                del tasks[key]
            self._task_ended(task)

        task.add_done_callback(ended)


_BAD_NEWS = frozenset({"node_dead", "node_failed", "node_given_up", "node_quarantined", "node_suspect", "failover"})

_CALMING = (RequestFinished, RequestGone, RequestFailed, NodeStopped, NodeEnded)
"""Events after which there may be room for what had none."""


def _closed() -> NodeLost:
    return NodeLost("the cluster was closed")


def node_name(node_id: str, epoch: int) -> str:
    """What launchers call one process of a node."""
    return f"{node_id}.{epoch}"


def _kinds(handle: NodeHandle) -> frozenset[str]:
    kinds = {GENERATE: ANSWERS, EMBEDDING: EMBED, RERANKING: RERANK}
    return frozenset(kind for feature, kind in kinds.items() if feature in handle.features)
