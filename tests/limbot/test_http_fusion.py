"""Votes over HTTP: what is sent to a gateway, and what is made of its events and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NoQuorum, PromptTooLong, Refused, Unreachable
from llambo.core.fusion import Fusion, FusionRequest, Vote, VoteCast
from llambo.core.fusion_document import cast_document, fusion_document
from llambo.core.types import Done, Event, GenerateRequest, Message, Sampling, TokenEvent
from llambo.limbot.http_door import HttpDoor
from llambo.limbot.http_fusion import body_of

VOTE = Vote("n1", "m", "yes", 1, 1.0, 10.0, -0.5)
CAST = VoteCast(VOTE, 2, 1, 0.5)
FUSION = Fusion("majority-vote", 1.0, 2, 1, 1, (VOTE,))
REQUEST = GenerateRequest.from_prompt("hello", model="m", sampling=Sampling(seed=7))
FUSED = GenerateRequest(messages=REQUEST.messages, model="m", fusion=FusionRequest("majority-vote", 2))


def event(choices: Sequence[dict[str, Any]] = (), **more: Any) -> bytes:
    return f"data: {json.dumps({'id': 'c', 'choices': list(choices), **more})}\n\n".encode()


def said(text: str = "", finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}


VOTED = event(llambo={"vote": cast_document(CAST)})
ANSWER = event([said("ye")]) + event([said("s")]) + event([said(finish_reason="stop")])
USAGE = event(usage={"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}})
OUTCOME = event(llambo={"fusion": fusion_document(FUSION)})
END = b"data: [DONE]\n\n"


class Server:
    """Answers every POST with the same bytes; `bodies` are what it was sent."""

    def __init__(self, status: str, reply: bytes, *, is_cluster: bool) -> None:
        self.bodies: list[tuple[str, Any]] = []
        self._status = status
        self._reply = reply
        self._models = {"data": [{"id": "m", **({"llambo": {"ctx": 512}} if is_cluster else {})}]}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        path = head.split(" ")[1]
        status, reply = "200 OK", json.dumps(self._models).encode()
        if head.startswith("post"):
            size = int(head.split("content-length: ")[1].split("\r\n")[0])
            self.bodies.append((path, json.loads(await reader.readexactly(size))))
            status, reply = self._status, self._reply
        writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + reply)
        writer.close()


@asynccontextmanager
async def door_to(
    reply: bytes, *, status: str = "200 OK", is_cluster: bool = True
) -> AsyncIterator[tuple[HttpDoor, Server]]:
    made = Server(status, reply, is_cluster=is_cluster)
    async with await asyncio.start_server(made.answer, "127.0.0.1", 0) as server:
        door = HttpDoor(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "llb_secret")
        await door.models()
        try:
            yield door, made
        finally:
            await door.close()


async def all_of(door: HttpDoor, request: GenerateRequest = FUSED) -> list[Event]:
    async with aclosing(door.generate(request)) as events:
        return [event async for event in events]


async def test_votes_come_before_the_answer_and_the_outcome_with_its_end() -> None:
    async with door_to(VOTED + ANSWER + USAGE + OUTCOME + END) as (door, server):
        cast, *pieces, done = await all_of(door)
    assert cast == CAST
    assert pieces == [TokenEvent("ye"), TokenEvent("s")]
    assert isinstance(done, Done)
    assert (done.fusion, done.finish_reason) == (FUSION, "stop")
    assert (done.model, done.node) == ("m", "n1"), "of the answer that was chosen"
    assert (done.tokens, done.prompt_tokens, done.cached_tokens) == (2, 9, 4)
    ((path, body),) = server.bodies
    assert path == "/v1/chat/completions"
    assert body["llambo"] == {"fusion": {"strategy": "majority-vote", "nodes": 2}}
    assert (body["messages"], body["stream"]) == ([{"role": "user", "content": "hello"}], True)


def test_all_that_a_request_says_is_in_its_body_and_nothing_else() -> None:
    fusion = FusionRequest("quorum", 5, 4, "(x)")
    path, body = body_of(
        GenerateRequest(
            messages=(Message("system", "s"), Message("user", "u")),
            sampling=Sampling(5, 0.5, 0.9, 7),
            stop=("END",),
            json_schema='{"type": "integer"}',
            session="k",
            node_type="tiny",
            fusion=fusion,
        )
    )
    assert path == "/v1/chat/completions"
    assert "model" not in body, "every model has a vote"
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"]) == (5, 0.5, 0.9, 7)
    assert body["stop"] == ["END"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    wanted = {"strategy": "quorum", "nodes": 5, "min_consensus": 4, "extract": "(x)"}
    assert body["llambo"] == {"fusion": wanted, "session": "k", "node_type": "tiny"}
    path, body = body_of(GenerateRequest(raw_prompt="bare", grammar="root ::= x", fusion=fusion))
    assert (path, body["prompt"], body["grammar"]) == ("/v1/completions", "bare", "root ::= x")


async def test_a_completion_without_a_template_is_read_too() -> None:
    pieces = event([{"index": 0, "text": "yes", "finish_reason": None}])
    pieces += event([{"index": 0, "text": "", "finish_reason": "length"}])
    async with door_to(VOTED + pieces + OUTCOME + END) as (door, _):
        _, piece, done = await all_of(door, GenerateRequest(raw_prompt="hello", fusion=FUSED.fusion))
    assert piece == TokenEvent("yes")
    assert isinstance(done, Done)
    assert (done.finish_reason, done.tokens) == ("length", 1)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("no_quorum", NoQuorum),
        ("context_length_exceeded", PromptTooLong),
        ("bad_request", BadRequest),
        ("refused", Refused),
        ("something else", LlamboError),
    ],
)
@pytest.mark.parametrize("is_in_stream", [False, True])
async def test_an_error_is_ours_by_its_code_before_a_stream_and_in_it(
    code: str, kind: type[LlamboError], is_in_stream: bool
) -> None:
    fault = {"error": {"message": "the reason", "type": "x", "param": None, "code": code}, "llambo": {"fusion": {}}}
    reply = VOTED + f"data: {json.dumps(fault)}\n\n".encode() if is_in_stream else json.dumps(fault).encode()
    seen: list[Event] = []
    async with door_to(reply, status="200 OK" if is_in_stream else "409 Conflict") as (door, _):
        with pytest.raises(kind, match="the reason") as raised:
            async for one in door.generate(FUSED):
                seen.append(one)
    assert type(raised.value) is kind
    assert seen == ([CAST] if is_in_stream else [])


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (VOTED, EngineFailed, "ended its answer early"),
        (ANSWER + END, EngineFailed, "it knows no fusion"),
        (b"data: {\n\n", EngineFailed, "cannot be read"),
        (event(llambo={"vote": {"node": 3}}), EngineFailed, "cannot be read"),
        (event(llambo={"fusion": {"strategy": "best"}}), EngineFailed, "cannot be read"),
    ],
)
async def test_what_is_no_answer_is_told(reply: bytes, kind: type[LlamboError], words: str) -> None:
    async with door_to(reply) as (door, _):
        with pytest.raises(kind, match=words):
            await all_of(door)


async def test_a_key_that_is_refused_is_told_with_what_helps() -> None:
    async with door_to(b'{"error":{"message":"no","code":"invalid_api_key"}}', status="401 No") as (door, _):
        with pytest.raises(Refused, match="refuses the token in LLAMBO_TOKEN"):
            await all_of(door)


async def test_a_refusal_without_words_has_its_status() -> None:
    async with door_to(b"<html>", status="500 Oh") as (door, _):
        with pytest.raises(EngineFailed, match="HTTP status 500"):
            await all_of(door)


async def test_a_server_that_is_no_cluster_is_never_asked() -> None:
    async with door_to(ANSWER + END, is_cluster=False) as (door, server):
        with pytest.raises(BadRequest, match="is no Llambo cluster, and has no fusion; leave --fusion out"):
            await all_of(door)
        assert server.bodies == []
        assert len(await all_of(door, REQUEST)) == 3, "without it, it answers"


async def test_a_server_that_is_gone_is_told() -> None:
    async with door_to(b"") as (door, _):
        pass
    with pytest.raises(Unreachable):
        await all_of(door)
