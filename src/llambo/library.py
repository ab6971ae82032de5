"""A cluster for Python programs: a private one (`Cluster`), or one that runs (`connect`); both are used alike.

Puts together what the interfaces are made of, as the entry points do. Decides nothing: a request is the cluster's to
answer, a command the cluster's to perform or to refuse.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any, Self, Unpack, assert_never, get_args

import msgspec

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.client_calls import Completion, InferOptions, Token, completion_of, last_token
from llambo.bridge.remote import BridgeDoor
from llambo.cli import running
from llambo.cli.daemon_client import model_ref
from llambo.cluster import api
from llambo.cluster.control import ClusterEvent, ClusterStatus, NodeInfo
from llambo.cluster.door import Door
from llambo.core.config import Settings
from llambo.core.errors import BadRequest, LlamboError, TimedOut, Unreachable
from llambo.core.fusion import FusionRequest, VoteCast, strategy_named
from llambo.core.types import Done, GenerateRequest, Message, Role, Sampling, TokenEvent
from llambo.namespace import ctls, grammar
from llambo.ninep.client import AsyncClient

LOOK_TIMEOUT_S = 10.0
"""How long a running cluster may take to accept a connection, or to tell its status."""

Turn = Message | Mapping[str, str]
"""What was said: a `Message`, or {"role": …, "content": …}."""
OnVote = Callable[[VoteCast], None]

_SAMPLING = ("max_tokens", "temperature", "top_p", "seed")
_FIELDS = ("logprobs", "grammar", "json_schema", "session", "node_type")
_MEMORY = ("rss_bytes", "uss_bytes")
_NOT_OPEN = "the cluster is not open: use it inside `async with`"
_OPEN = "the cluster is open already: make another one"


class _Answers(ABC):
    """Answers to prompts and conversations.

    Options are those of `InferOptions`; one that is not given is the engine's choice. Raises, all of them: `NoModel`,
    `PromptTooLong`, `NodeLost`, `Overloaded`, `TimedOut`, `BadRequest`.
    """

    @property
    @abstractmethod
    def _door(self) -> Door:
        """What answers. Raises: `LlamboError` outside the block."""

    async def infer(self, prompt: str, **options: Unpack[InferOptions]) -> str:
        """The text of one answer."""
        return (await self.chat([Message("user", prompt)], **options)).text

    async def chat(self, messages: Iterable[Turn], **options: Unpack[InferOptions]) -> Completion:
        """The answer to a conversation, with its counts; a cancelled call ends it."""
        timeout_s = options.pop("timeout_s", None)
        return await self._whole(_request(messages, options), timeout_s)

    async def fuse(
        self,
        prompt: str | Iterable[Turn],
        strategy: str = "",
        nodes: int = 0,
        *,
        min_consensus: int = 0,
        extract: str = "",
        on_vote: OnVote | None = None,
        **options: Unpack[InferOptions],
    ) -> Completion:
        """The answer that several nodes agree on; its `fusion` has the agreement and every vote.

        See `FusionRequest` for what is asked; "" and 0 leave it to the cluster's configuration. `on_vote` hears of each
        vote as it is cast. Raises also: `NoQuorum`.
        """
        timeout_s = options.pop("timeout_s", None)
        fusion = FusionRequest(strategy_named(strategy) if strategy else "", nodes, min_consensus, extract)
        request = replace(_request(_turns(prompt), options), fusion=fusion)
        return await self._whole(request, timeout_s, on_vote)

    async def stream(
        self, prompt: str | Iterable[Turn], **options: Unpack[InferOptions]
    ) -> AsyncGenerator[Token, None]:
        """The answer to a prompt or a conversation as it comes; the last token has `final` set, and the counts.

        Leave it early only inside `contextlib.aclosing`, so that it is closed, and its slot free, at once.
        """
        timeout_s = options.pop("timeout_s", None)
        async with aclosing(self._tokens(_request(_turns(prompt), options), timeout_s)) as tokens:
            async for token in tokens:
                yield token

    async def _whole(
        self, request: GenerateRequest, timeout_s: float | None, on_vote: OnVote | None = None
    ) -> Completion:
        text, last = "", Token("", True)
        try:
            async with asyncio.timeout(timeout_s), aclosing(self._tokens(request, None, on_vote)) as tokens:
                async for last in tokens:
                    text += last.text
        except TimeoutError:
            raise TimedOut(f"the answer was not whole within {timeout_s:g} s") from None
        return completion_of(last, text)

    async def _tokens(
        self, request: GenerateRequest, each_s: float | None, on_vote: OnVote | None = None
    ) -> AsyncGenerator[Token, None]:
        async with aclosing(self._door.generate(request)) as events:
            while True:
                try:
                    async with asyncio.timeout(each_s):
                        event = await anext(events)
                except TimeoutError:
                    raise TimedOut(f"no token came within {each_s:g} s") from None
                match event:
                    case Done():
                        yield last_token(event)
                        return
                    case TokenEvent():
                        yield Token(event.text, ids=event.ids, logprob=event.logprob)
                    case VoteCast():
                        if on_vote is not None:
                            on_vote(event)
                    case _:
                        assert_never(event)


class Cluster(_Answers):
    """A private cluster, there for the block: `async with Cluster(nodes=4, model="built-in") as cluster`.

    `model` is any reference ("": the configuration's default), `node_type` and `slots` are what each of the `nodes` is
    ("", 0: as the configuration says). It ends with its nodes when the block does, however that is left.

    Raises, on entering: what `llambo.cluster.control.Control.spawn` raises.
    """

    def __init__(
        self,
        nodes: int = 1,
        model: str = "",
        *,
        node_type: str = "",
        slots: int = 0,
        settings: Settings | None = None,
    ) -> None:
        self._wanted = {"node_type": node_type, "model": model, "slots": slots}
        self._nodes = nodes
        self._settings = settings
        self._cluster: api.Cluster | None = None

    async def __aenter__(self) -> Self:
        if self._cluster is not None:
            raise LlamboError(_OPEN)
        self._cluster = cluster = api.Cluster(self._settings)
        try:
            await self.spawn(self._nodes, **self._wanted)  # type: ignore[arg-type]
        except BaseException:
            self._cluster = None
            await cluster.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        cluster, self._cluster = self._there, None
        await cluster.close()

    async def spawn(self, count: int, *, node_type: str = "", model: str = "", slots: int = 0) -> list[NodeInfo]:
        """See `Control.spawn`."""
        return await self._there.spawn(count, node_type=node_type, model=model, slots=slots)

    async def scale(self, count: int, *, model: str = "") -> list[NodeInfo]:
        """See `Control.scale`."""
        return await self._there.scale(count, model=model)

    async def status(self) -> ClusterStatus:
        """The whole cluster now."""
        return self._there.cluster_status()

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """What happens from the first step on; a reader too slow gets one "lost" with a number."""
        async with aclosing(self._there.events()) as events:
            async for event in events:
                yield event

    @property
    def _there(self) -> api.Cluster:
        if self._cluster is None:
            raise LlamboError(_NOT_OPEN)
        return self._cluster

    @property
    def _door(self) -> Door:
        return self._there


class Connection(_Answers):
    """A cluster that runs, for the block; `connect` makes it. The cluster stays when the block ends."""

    def __init__(self, address: str, styx: str, token: str) -> None:
        self._address = address
        self._styx = styx
        self._token = token
        self._held = AsyncExitStack()
        self._reached: BridgeDoor | None = None
        self._tree: AsyncClient | None = None

    async def __aenter__(self) -> Self:
        if self._reached is not None:
            raise LlamboError(_OPEN)
        address, styx = self._address, self._styx
        if not address:
            found = running.find(running.DAEMON)
            if found is None:
                raise Unreachable("no cluster runs for this home; start one with: llamboctl init")
            address, styx = found.socket, found.styx
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    bridge = await held.enter_async_context(AsyncBridge.connect(address, token=self._token))
            except TimeoutError:
                raise TimedOut(f"{address} does not answer within {LOOK_TIMEOUT_S:g} s") from None
            if styx:
                client = await AsyncClient.connect(styx, aname=self._token, timeout_s=LOOK_TIMEOUT_S)
                self._tree = await held.enter_async_context(client)
            self._reached = BridgeDoor(bridge)
            self._held = held.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reached = self._tree = None
        await self._held.aclose()

    async def spawn(self, count: int, *, node_type: str = "", model: str = "", slots: int = 0) -> list[NodeInfo]:
        """See `Control.spawn`; the nodes' memory is not measured."""
        return await self._command("spawn", n=count, type=node_type, model=model_ref(model), slots=slots)

    async def scale(self, count: int, *, model: str = "") -> list[NodeInfo]:
        """See `Control.scale`; the nodes' memory is not measured."""
        nodes = await self._command("scale", n=count, model=model)
        return [node for node in nodes if not model or node.model == model]

    async def status(self) -> ClusterStatus:
        """The whole cluster now."""
        return msgspec.convert(await self._look(), ClusterStatus)

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """What happens from the first step on, its fields as texts; a reader too slow gets one "lost" with a number."""
        async with self._files.open("events") as file:
            async for piece in file.follow():
                for line in piece.decode().splitlines():
                    yield _event(line)

    async def _command(self, name: str, **values: str | int) -> list[NodeInfo]:
        """Has the cluster perform a command of its `ctl` that answers ids; gives those nodes."""
        line = ctls.CLUSTER[name].line(**values)
        async with self._files.open("ctl", "rw") as ctl:
            await ctl.write(line)
            ids = (await ctl.read_all()).decode().split()
        known = {node["id"]: node | dict.fromkeys(_MEMORY, 0) for node in (await self._look())["node_list"]}
        return [msgspec.convert(known[node_id], NodeInfo) for node_id in ids if node_id in known]

    async def _look(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S), self._files.open("status.json") as file:
                return msgspec.json.decode(await file.read_all(), type=dict[str, Any])
        except TimeoutError:
            raise TimedOut(f"the cluster does not answer within {LOOK_TIMEOUT_S:g} s") from None

    @property
    def _files(self) -> AsyncClient:
        if self._reached is not None and self._tree is None:
            raise BadRequest("nodes, status and events are the namespace's: connect(address, styx=ADDRESS) says where")
        if self._tree is None:
            raise LlamboError(_NOT_OPEN)
        return self._tree

    @property
    def _door(self) -> Door:
        if self._reached is None:
            raise LlamboError(_NOT_OPEN)
        return self._reached


def connect(address: str = "", *, styx: str = "", token: str = "") -> Connection:
    """The cluster that runs for this home, or at `address`, as an async context manager.

    `address` is where it speaks the bridge protocol, `styx` where its namespace is (then `spawn`, `scale`, `status` and
    `events` are there too): a socket's path or `tcp!HOST!PORT`. `token` is for both.

    Raises, on entering: `Unreachable`, `TimedOut`, and what the cluster refuses a token with.
    """
    return Connection(address, styx, token)


def _request(messages: Iterable[Turn], options: InferOptions) -> GenerateRequest:
    """Raises: `TypeError` for an option that does not exist, as any call would; `BadRequest` for a value."""
    given: dict[str, Any] = dict(options)
    sampling = Sampling(**{name: given.pop(name) for name in _SAMPLING if name in given})
    fields = {name: given.pop(name) for name in _FIELDS if name in given}
    stop, model = tuple(given.pop("stop", ())), given.pop("model", "")
    is_raw, system = given.pop("raw", False), given.pop("system", "")
    if given:
        raise TypeError(f"unknown option {min(given)!r}; known are {', '.join(sorted(InferOptions.__optional_keys__))}")
    turns = tuple(_turn(message) for message in messages)
    if is_raw:
        if len(turns) != 1:
            raise BadRequest(f"raw takes one prompt, not a conversation of {len(turns)} messages")
        request = GenerateRequest.from_prompt(turns[0].content, raw=True, system=system)
    else:
        request = GenerateRequest(messages=(*((Message("system", system),) if system else ()), *turns))
    return replace(request, model=model, sampling=sampling, stop=stop, **fields)


def _turns(prompt: str | Iterable[Turn]) -> Iterable[Turn]:
    return [Message("user", prompt)] if isinstance(prompt, str) else prompt


def _turn(message: Turn) -> Message:
    if isinstance(message, Message):
        return message
    role = message.get("role")
    if role not in get_args(Role):
        raise BadRequest(f"a message's role is one of {', '.join(get_args(Role))}, not {role!r}")
    return Message(role, message.get("content", ""))  # type: ignore[arg-type]


def _event(line: str) -> ClusterEvent:
    """The event that a line of the namespace's `events` tells."""
    first, *words = grammar.split(line)
    if first == "lost":
        return ClusterEvent(time.time(), "lost", {"events": int(words[0])})
    kind, *fields = words
    return ClusterEvent(float(first), kind, dict(word.partition("=")[::2] for word in fields))
