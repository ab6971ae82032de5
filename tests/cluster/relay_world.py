"""Relayed requests for tests: in every dialect, read to the end, with nodes that are killed on the way."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import msgspec
import pytest

from llambo.cluster.api import Cluster
from llambo.cluster.relay import RelayRequest, Take
from llambo.cluster.transcript import Transcript, parsed
from llambo.core.types import LoadOptions
from tests.cluster.clusters import until

OPTIONS = LoadOptions(ctx=1024, slots=2, threads=1)
MESSAGES = [{"role": "user", "content": "What is Llambo?"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"enum": ["é…", "日本"]}},
    "required": ["n", "s"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
GREEDY: dict[str, Any] = {"temperature": 0}

DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 30}),
    "chat with usage": (
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 30, "stream_options": {"include_usage": True}},
    ),
    "completions": ("/v1/completions", {"prompt": "Llambo is", "max_tokens": 30, "ignore_eos": True}),
    "completion": ("/completion", {"prompt": "Llambo is", "n_predict": 30, "ignore_eos": True}),
    "responses": ("/v1/responses", {"input": "What is Llambo?", "max_output_tokens": 30}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 30}),
}


def ask(path: str, body: dict[str, Any] | None, *, streams: bool = True, **more: Any) -> RelayRequest:
    members = None if body is None else {**body, "stream": True} if streams else body
    fields = None if members is None else {name: msgspec.Raw(json.dumps(v).encode()) for name, v in members.items()}
    return RelayRequest(path, fields, streams=streams, **more)


def dialect(name: str, *, streams: bool = True, **members: Any) -> RelayRequest:
    path, body = DIALECTS[name]
    return ask(path, {**body, **members}, streams=streams)


LIMITS = {"responses": "max_output_tokens", "completion": "n_predict"}
"""What limits an answer is called, where it is not `max_tokens`."""

ENDLESS = dialect("completion", n_predict=-1, ignore_eos=True)


async def second(cluster: Cluster) -> None:
    """One more node like the first."""
    await cluster.scale(2)


def pid_of(cluster: Cluster, node: str) -> int:
    place = cluster._runtime.place_of(node)
    assert place is not None
    return place.handle.pid


def kill(cluster: Cluster, node: str) -> None:
    os.kill(pid_of(cluster, node), signal.SIGKILL)


@dataclass
class Seen:
    """What a reader got."""

    status: int
    transcript: Transcript
    nodes: list[str]
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def events(self) -> list[Any]:
        return [essence(parsed(event)) for event in self.transcript.events()]

    @property
    def ids(self) -> set[bytes]:
        return set(re.findall(rb'"(?:id|\w+_id)":("[^"]*")', self.body))


class Pours(Protocol):
    """A node's reply, and the cluster's."""

    async def pour(self, take: Take) -> bool: ...


async def pieces(reply: Pours) -> AsyncIterator[bytes]:
    """The pieces of a reply, one at a time: a reader that has room for no more."""
    given: list[bytes] = []

    def take(piece: bytes) -> bool:
        given.append(piece)
        return False

    is_over = False
    while not is_over:
        is_over = await reply.pour(take)
        if given:
            yield given.pop()


async def relay(cluster: Cluster, request: RelayRequest, *deaths: int) -> Seen:
    """Reads to the end; the node that answers is killed as soon as so many events were given, once for each number."""
    left = list(deaths)
    async with cluster.relay(request) as reply:
        seen = Seen(reply.status, reply.transcript, [reply.node])
        async for piece in pieces(reply):
            seen.pieces.append(piece)
            if reply.node != seen.nodes[-1]:
                seen.nodes.append(reply.node)
            if left and reply.transcript.count >= left[0]:
                left.pop(0)
                kill(cluster, reply.node)
    assert not left, "the answer was over before every node had died"
    return seen


async def killed_in_the_middle(cluster: Cluster, request: RelayRequest, *deaths: int) -> Seen:
    """`relay` where each death was noticed. An answer may be whole in the pipe when its node is killed: then again."""
    for _ in range(20):
        seen = await relay(cluster, request, *deaths)
        await until(lambda: all(node.state.value == "ready" for node in cluster._world.nodes.values()))
        if len(seen.nodes) == len(deaths) + 1:
            return seen
    pytest.fail("no answer of twenty was gone on with by another node")


_OWN = {"created", "created_at", "completed_at", "timings", "usage", "system_fingerprint", "id_slot", "tokens_cached"}


def essence(value: Any) -> Any:
    """A reply without what is a run's own."""
    if isinstance(value, dict):
        return {
            name: "*" if isinstance(inner, str) and (name == "id" or name.endswith("_id")) else essence(inner)
            for name, inner in value.items()
            if name not in _OWN
        }
    if isinstance(value, list):
        return [essence(inner) for inner in value]
    return round(value, 2) if isinstance(value, float) else value


@asynccontextmanager
async def straight(cluster: Cluster) -> AsyncIterator[Any]:
    """Asks the first node itself, past the cluster."""
    place = cluster._runtime.place_of("n1")
    assert place is not None
    connector = aiohttp.UnixConnector(place.handle.socket_path, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post(request: RelayRequest) -> tuple[int, bytes]:
            data = msgspec.json.encode(request.fields)
            async with session.post(f"http://node{request.path}", data=data) as response:
                return response.status, await response.read()

        yield post
