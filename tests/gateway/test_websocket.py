"""`/v1/ws` and `/ws/events`: real sockets and a real client library in front of a real cluster."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lookers import PATIENCE_S, SMALL, Served, Talker, serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llambo.cluster.api import Cluster
from llambo.cluster.control import ClusterEvent
from llambo.core.errors import NodeLost
from llambo.core.fusion import VoteCast
from llambo.core.fusion_document import cast_of, fusion_of
from llambo.core.types import Event, GenerateRequest
from llambo.gateway import messages, websocket


@pytest.fixture
async def served(tiny_model: Path, tmp_path: Path) -> AsyncIterator[Served]:
    async with Cluster() as cluster:
        await cluster.load(str(tiny_model), name="tiny", options=SMALL)
        async with serving(cluster, tmp_path) as served:
            yield served


async def until_busy(served: Served, count: int, limit_s: float = 10.0) -> float:
    """Seconds until so many slots are taken."""
    started = time.perf_counter()
    async with asyncio.timeout(limit_s):
        while served.busy() != count:
            await asyncio.sleep(0.002)
    return time.perf_counter() - started


# --- answers ---


async def test_an_answer_is_tokens_and_exactly_one_done(served: Served) -> None:
    async with served.talk() as client:
        await client.infer("a", seed=1, top_p=0.9, session="s", model="tiny")
        tokens, done = await client.answer("a")
        await client.send(type="ping")
        assert await client.next() == {"type": "pong"}
    assert len(tokens) == 8
    assert all(set(token) == {"type", "id", "text"} for token in tokens)
    assert 0 < done.pop("ttft_ms") <= done.pop("time_ms")
    assert done.pop("prompt_tokens") > 0
    assert done.pop("cached_tokens") >= 0
    assert done == {
        "type": "done",
        "id": "a",
        "finish_reason": "length",
        "model": "tiny",
        "node": "n1",
        "tokens": 8,
        "failovers": 0,
        "fusion": None,
    }


async def test_the_built_in_model_answers_a_conversation_and_bounds_its_answer(tmp_path: Path) -> None:
    async with Cluster() as cluster:
        await cluster.load("built-in", options=SMALL)
        async with serving(cluster, tmp_path) as served, served.talk() as client:
            schema = {"enum": ["red", "blue"]}
            turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
            await client.infer(1, messages=turns, json_schema=schema, max_tokens=64, logprobs=True)
            tokens, done = await client.answer(1)
            assert json.loads("".join(token["text"] for token in tokens)) in schema["enum"]
            assert done["finish_reason"] == "stop"
            assert all(token["logprob"] <= 0 and math.isfinite(token["logprob"]) for token in tokens)
            await client.infer(2, grammar='root ::= "yes" | "no"')
            tokens, _ = await client.answer(2)
            assert "".join(token["text"] for token in tokens) in ("yes", "no")
            await client.infer(3, prompt="Once upon", raw=True, stop=[" "])
            tokens, done = await client.answer(3)
            assert " " not in "".join(token["text"] for token in tokens)
            await client.infer(4, prompt="Hello", system="Be short.", json_schema=json.dumps(schema), max_tokens=64)
            tokens, done = await client.answer(4)
            assert json.loads("".join(token["text"] for token in tokens)) in schema["enum"]
            text = cluster.metrics()
    assert 'llambo_requests_total{interface="websocket",outcome="done"} 4.0' in text


async def test_many_requests_run_side_by_side_and_each_ends_once(served: Served) -> None:
    ends: dict[int, str] = {}
    counts: dict[int, int] = {}
    async with served.talk() as client:
        for key in range(40):
            await client.infer(key, prompt=f"number {key}", max_tokens=4)
        while len(ends) < 40:
            match await client.next():
                case {"type": "token", "id": key}:
                    assert key not in ends
                    counts[key] = counts.get(key, 0) + 1
                case {"type": kind, "id": key}:
                    assert key not in ends
                    ends[key] = kind
        await client.send(type="ping")
        assert await client.next() == {"type": "pong"}
    assert set(ends.values()) == {"done"}
    assert set(counts.values()) == {4}


async def test_a_cancelled_answer_ends_in_a_done_that_says_so_and_its_slot_is_free(served: Served) -> None:
    async with served.talk() as client:
        freed_after = []
        for _ in range(3):  # the best counts: a busy machine may add to one
            await client.endless("x")
            assert (await client.next())["type"] == "token"
            await client.send(type="cancel", id="x")
            freed = asyncio.create_task(until_busy(served, 0))
            tokens, done = await client.answer("x")
            freed_after.append(await freed)
        assert min(freed_after) < 0.2
        assert done["finish_reason"] == "cancelled"
        assert done["tokens"] == len(tokens) + 1
        assert 0 < done["ttft_ms"] <= done["time_ms"]
        assert done["model"] is done["prompt_tokens"] is None
        await client.send(type="cancel", id="x")  # it has ended: nothing to say
        await client.infer("x")  # and its id is free
        assert (await client.answer("x"))[1]["finish_reason"] == "length"


async def test_what_is_cancelled_before_it_began_or_while_it_waits_ends_too(served: Served) -> None:
    async with served.talk() as client:
        for key in ("a", "b"):
            await client.endless(key)
        await until_busy(served, 2)
        infer = {"type": "infer", "id": "c", "prompt": "x"}
        await client.infer("waits")
        await client.connection.send(json.dumps(infer))
        await client.send(type="cancel", id="c")
        await client.send(type="cancel", id="waits")
        ends: list[dict[str, Any]] = []
        while len(ends) < 2:
            if (message := await client.next())["type"] != "token":
                ends.append(message)
        assert {end["id"] for end in ends} == {"c", "waits"}
        assert all(end["finish_reason"] == "cancelled" and end["ttft_ms"] is None for end in ends)


async def test_a_client_that_hangs_up_frees_all_its_slots_within_200_ms(served: Served) -> None:
    freed_after = []
    for _ in range(3):  # the best counts: a busy machine may add to one
        async with served.talk() as client:
            for key in range(5):
                await client.endless(key)
            await until_busy(served, 2)
            client.connection.transport.abort()
            freed_after.append(await until_busy(served, 0))
    assert min(freed_after) < 0.2
    assert 'outcome="cancelled"} 15.0' in served.cluster.metrics()


class Chatter(Cluster):
    """Its answers to the session "flood" never end, and fill a socket quickly."""

    given = 0

    async def generate(self, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        async for event in super().generate(request):
            if request.session != "flood":
                yield event
                continue
            while True:
                self.given += 1
                yield type(event)("x" * 10_000, (1,))


async def test_a_client_that_does_not_read_slows_its_own_answers_alone_and_may_still_cancel(
    tmp_path: Path, tiny_model: Path
) -> None:
    async with Chatter() as cluster:
        await cluster.load(str(tiny_model), options=SMALL)
        async with serving(cluster, tmp_path) as served, served.talk(max_queue=1) as slow, served.talk() as quick:
            freed_after: list[float] = []
            for _ in range(3):
                cluster.given = 0
                await slow.infer("flood", session="flood")
                before = -1
                while before != cluster.given:  # until nothing more is taken from it: no event tells of what stays away
                    before = cluster.given
                    await asyncio.sleep(1)
                assert 0 < before < 2_000  # 20 MB
                await quick.infer(1)
                assert (await quick.answer(1))[1]["type"] == "done"
                await slow.send(type="cancel", id="flood")
                freed_after.append(await until_busy(served, 0))
                tokens, done = await slow.answer("flood")
                assert done["finish_reason"] == "cancelled"
                assert len(tokens) in (before, before - 1)
            assert min(freed_after) < 1, "the best counts: a busy machine may add to one"


async def test_a_ping_does_not_keep_a_cancel_from_being_heard(tmp_path: Path, tiny_model: Path) -> None:
    async with Chatter() as cluster:
        await cluster.load(str(tiny_model), options=SMALL)
        async with serving(cluster, tmp_path) as served, served.talk(max_queue=1) as slow:
            await slow.infer("flood", session="flood")
            before = -1
            while before != cluster.given:  # until nothing more is taken from it
                before = cluster.given
                await asyncio.sleep(0.5)
            for _ in range(3):
                await slow.send(type="ping")
            await slow.send(type="cancel", id="flood")
            await until_busy(served, 0)
            slow.connection.transport.abort()


async def test_a_token_that_was_revoked_asks_nothing_more_and_is_told_nothing_more(
    tmp_path: Path, tiny_model: Path
) -> None:
    async with Cluster() as cluster:
        await cluster.load(str(tiny_model), options=SMALL)
        async with serving(cluster, tmp_path, requests_per_minute=3) as served:
            token, secret = served.tokens.create("infer")
            mine = {"additional_headers": {"authorization": f"Bearer {secret}"}}
            url = f"ws://{served.address}/ws/events"
            async with served.talk(**mine) as client, connect(url, **mine) as told:
                await client.infer("a")
                assert (await client.answer("a"))[1]["type"] == "done"
                await client.infer("b")
                refused = (await client.answer("b"))[1]
                assert (refused["code"], "too many requests" in refused["message"]) == ("overloaded", True)
                served.tokens.revoke(token)
                await client.infer("c")
                refused = (await client.answer("c"))[1]
                assert (refused["code"], "revoked" in refused["message"]) == ("refused", True)
                cluster.set_strategy("random")
                with pytest.raises(ConnectionClosed):
                    while b"random" not in await asyncio.wait_for(told.recv(decode=False), 10):
                        pass


async def test_a_client_that_never_reads_loses_its_answers(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Chatter() as cluster:
        await cluster.load(str(tiny_model), options=SMALL)
        async with serving(cluster, tmp_path, write_timeout="300ms") as served, served.talk(max_queue=1) as slow:
            for key in ("a", "b"):
                await slow.infer(key, session="flood")
            await until_busy(served, 2)
            await until_busy(served, 0, limit_s=5)
            async with asyncio.timeout(5):
                await served.server._state.connections.none_left.wait()
            slow.connection.transport.abort()
    assert caplog.text.count("a client has left its answer unread for 0.3 s: dropped") == 1


async def test_more_than_the_limit_of_requests_or_bytes_is_refused_and_what_runs_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "MAX_REQUESTS", 3)
    monkeypatch.setattr(websocket, "MAX_REQUEST_BYTES", 2_000)
    async with served.talk() as client:
        await client.endless(1)
        await client.infer(2, prompt="x" * 1_500)
        await client.infer(3, prompt="y" * 1_000)
        await client.endless(4)
        await client.infer(5)
        errors = []
        while len(errors) < 2:
            if (message := await client.next())["type"] == "error":
                errors.append(message)
        assert [(error["id"], error["code"]) for error in errors] == [(3, "overloaded"), (5, "overloaded")]
        assert "more than 2000 bytes" in errors[0]["message"]
        assert "3 requests of this connection" in errors[1]["message"]
        await until_busy(served, 2)


async def test_a_node_that_dies_is_replaced_in_the_middle_of_an_answer(walk_model: Path, tmp_path: Path) -> None:
    async with Cluster() as cluster:
        await cluster.load(str(walk_model), options=SMALL)
        await cluster.spawn(1)
        async with serving(cluster, tmp_path) as served, served.talk() as client:
            await client.infer("whole", max_tokens=400)
            whole, _ = await client.answer("whole")
            done: dict[str, Any] = {"failovers": 0}
            while not done["failovers"]:  # an answer may be whole in the pipe when its node is killed
                await cluster.scale(2)
                await client.infer("a", max_tokens=400)
                first = await client.next()
                (node,) = (node for node in map(cluster.node_info, cluster.node_ids()) if node.busy)
                await cluster.kill(node.id)
                tokens, done = await client.answer("a")
                assert [first["text"], *(token["text"] for token in tokens)] == [token["text"] for token in whole]
    assert done["failovers"] == 1
    assert done["node"] != node.id


# --- several nodes ---


async def fused(client: Talker, key: int | str) -> tuple[list[str], list[VoteCast], dict[str, Any]]:
    """The kinds of messages in their order, the votes, and the end of an answer."""
    kinds, casts = [], []
    while (message := await client.next())["type"] not in {"done", "error"}:
        assert message["id"] == key
        kinds.append(message["type"])
        if message["type"] == "vote":
            casts.append(cast_of(message))
    assert message["id"] == key
    return kinds, casts, message


async def test_several_nodes_vote_before_the_answer_and_the_end_says_what_became_of_it(tmp_path: Path) -> None:
    async with Cluster() as cluster:
        await cluster.load("built-in", options=SMALL)
        await cluster.scale(2)
        async with serving(cluster, tmp_path) as served, served.talk() as client:
            await client.infer(1, fusion={"strategy": "majority-vote", "nodes": 3}, logprobs=True)
            kinds, casts, done = await fused(client, 1)
            await client.infer(2, fusion={"strategy": "token-average", "nodes": 2})
            averaged, votes, last = await fused(client, 2)
    assert kinds == ["vote"] * len(casts) + ["token"] * (len(kinds) - len(casts))
    assert 2 <= len(casts) <= 3
    outcome = fusion_of(done["fusion"])
    assert (outcome.strategy, outcome.asked, outcome.agreement) == ("majority-vote", 3, 1.0)
    assert [found.vote.node for found in casts] == [vote.node for vote in outcome.votes]
    assert (done["type"], done["finish_reason"], done["tokens"]) == ("done", "length", 8)
    assert averaged[0] == "token"
    assert averaged[-1] == "vote"
    assert len(votes) == 2
    assert fusion_of(last["fusion"]).strategy == "token-average"


async def test_without_a_quorum_an_infer_ends_in_an_error_after_its_votes(served: Served) -> None:
    wanted = {"strategy": "quorum", "nodes": 3, "min_consensus": 3}
    async with served.talk() as client:
        await client.infer("q", fusion=wanted, temperature=2, prompt="go on")  # of a model of noise
        kinds, casts, error = await fused(client, "q")
        assert kinds == ["vote"] * len(casts)
        assert (error["type"], error["code"]) == ("error", "no_quorum")
        assert error["message"].startswith("no quorum: 1 of 3 nodes agree, 3 are needed")
        await client.infer("next", max_tokens=1)
        assert (await client.answer("next"))[1]["type"] == "done"


async def test_a_cancel_ends_every_voter(served: Served) -> None:
    async with served.talk() as client:
        await client.infer("x", fusion={"strategy": "quorum", "nodes": 2}, max_tokens=450, prompt="go on")
        await until_busy(served, 2)
        await client.send(type="cancel", id="x")
        _, _, done = await fused(client, "x")
        assert (done["finish_reason"], done["fusion"]) == ("cancelled", None)
        await until_busy(served, 0)


# --- what is wrong ---


async def test_every_bad_message_is_answered_and_the_connection_lives(served: Served) -> None:
    wrong: list[tuple[str | bytes, str, str]] = [
        ("", "bad_request", "no valid JSON"),
        ("{", "bad_request", "no valid JSON"),
        ("[]", "bad_request", "one JSON object"),
        ("null", "bad_request", "one JSON object"),
        ("[" * 100_000, "bad_request", ""),
        ('{"a":' * 100_000, "bad_request", "nested too deeply"),
        ('{"type":"ping","x":1e999}', "bad_request", "no valid JSON"),
        ('{"type":"infer","id":1,"prompt":"\\ud800"}', "bad_request", "half a character"),
        ("{}", "bad_request", "type must be infer, cancel or ping"),
        ('{"type":7}', "bad_request", "type must be"),
        ('{"type":"token","id":1,"text":"x"}', "bad_request", "type must be"),
        ('{"type":"infer","prompt":"x"}', "bad_request", "id must be"),
        ('{"type":"infer","id":true,"prompt":"x"}', "bad_request", "id must be"),
        ('{"type":"infer","id":1.5,"prompt":"x"}', "bad_request", "id must be"),
        ('{"type":"infer","id":"","prompt":"x"}', "bad_request", "id must be"),
        ('{"type":"infer","id":12345678901234567890123,"prompt":"x"}', "bad_request", "id must be"),
        ('{"type":"cancel"}', "bad_request", "id must be"),
        ('{"type":"cancel","id":1,"why":2}', "bad_request", "no member 'why'"),
        (b'{"type":"ping"}', "bad_request", "this one was binary"),
        (json.dumps({"type": "ping", "x": "x" * messages.MAX_MESSAGE_BYTES}), "too_large", "at most 1048576"),
    ]
    async with served.talk() as client:
        for text, code, words in wrong:
            await client.connection.send(text)
            answer = await client.next()
            assert (answer["type"], answer["id"], answer["code"]) == ("error", None, code), text[:80]
            assert words in answer["message"], answer
        await client.infer("a")
        assert (await client.answer("a"))[1]["type"] == "done"


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        ({"prompt": ""}, "bad_request", "the prompt is empty"),
        ({"prompt": None}, "bad_request", "either prompt or messages"),
        ({"prompt": "a\0b"}, "bad_request", "NUL"),
        ({"prompt": 5}, "bad_request", "`$.prompt`"),
        ({"messages": []}, "bad_request", "messages is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "bad_request", "$.messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}], "prompt": "y"}, "bad_request", "not both"),
        ({"messages": [{"role": "user", "content": "x"}], "raw": True}, "bad_request", "raw is for a prompt"),
        ({"raw": True, "system": "x"}, "bad_request", "raw is for a prompt"),
        ({"max_tokens": -1}, "bad_request", "max_tokens must be between"),
        ({"max_tokens": 1.5}, "bad_request", "max_tokens"),
        ({"max_tokens": True}, "bad_request", "max_tokens"),
        ({"temperature": "hot"}, "bad_request", "temperature"),
        ({"seed": 2**70}, "bad_request", "seed must be"),
        ({"stop": [1]}, "bad_request", "stop"),
        ({"tempratur": 1}, "bad_request", "unknown field `tempratur`; known are type, id, prompt"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "bad_request", "not both"),
        ({"grammar": "root ::= ("}, "bad_request", ""),
        ({"fusion": {"strategy": "council"}}, "bad_request", "no fusion strategy is called 'council'; there are"),
        ({"fusion": {"nodes": 1}}, "bad_request", "fusion takes between 2 and 64 nodes, not 1"),
        ({"fusion": {"voters": 3}}, "bad_request", "unknown field `voters`"),
        ({"fusion": 3}, "bad_request", "$.fusion"),
        ({"model": "other"}, "not_found", "no model is called 'other'; loaded are tiny"),
        ({"node_type": "huge"}, "bad_request", "no 'huge' node has tiny"),
        ({"prompt": "word " * 2_000}, "prompt_too_long", "the context holds 512"),
    ],
)
async def test_an_infer_that_cannot_be_ends_in_one_error_with_its_id(
    served: Served, members: dict[str, Any], code: str, words: str
) -> None:
    async with served.talk() as client:
        await client.infer("bad", **members)
        tokens, error = await client.answer("bad")
        assert not tokens
        assert (error["type"], error["code"]) == ("error", code), error
        assert words in error["message"]
        await client.infer("good", max_tokens=1)
        assert (await client.answer("good"))[1]["type"] == "done"


async def test_an_id_in_flight_is_refused_without_ending_what_runs_under_it(served: Served) -> None:
    async with served.talk() as client:
        await client.endless("a")
        await client.infer("a")
        await client.infer("a", max_tokens=-1)
        errors = []
        while len(errors) < 2:
            if (message := await client.next())["type"] == "error":
                errors.append(message)
        assert [error["id"] for error in errors] == [None, None]
        await client.send(type="cancel", id="a")
        assert (await client.answer("a"))[1]["finish_reason"] == "cancelled"


async def test_a_fault_of_ours_is_an_error_too_and_the_log_has_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: object) -> AsyncIterator[object]:
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(served.cluster, "generate", broken)
    async with served.talk() as client:
        await client.infer("a")
        assert (await client.answer("a"))[1]["code"] == "failed"
    assert "ZeroDivisionError" in caplog.text


async def test_thousands_of_small_messages_at_once_keep_nobody_else_waiting(served: Served) -> None:
    async with served.talk() as flood, served.talk() as other:
        await flood.connection.send(["{"])  # the handshake is over, and the connection warm
        assert (await flood.next())["type"] == "error"
        sending = asyncio.create_task(_send_many(flood.connection, 3_000))
        waits = []
        for _ in range(20):
            started = time.perf_counter()
            await other.send(type="ping")
            assert await other.next() == {"type": "pong"}
            waits.append(time.perf_counter() - started)
        for _ in range(3_000):
            assert (await flood.next())["type"] == "error"
        await sending
    assert sorted(waits)[10] < 0.5


async def _send_many(connection: Any, count: int) -> None:
    for _ in range(count):
        await connection.send("{}")


async def test_a_quiet_client_stays_connected_beyond_the_time_for_a_header(tmp_path: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path, header_timeout="200ms") as served:
        url = f"ws://{served.address}/ws/events"
        async with served.talk() as client, connect(url) as events:
            await asyncio.sleep(0.5)  # nothing happens: that is what is tested
            await client.send(type="ping")
            assert await client.next() == {"type": "pong"}
            cluster.set_strategy("random")
            assert json.loads(await events.recv())["kind"] == "strategy"


# --- who may ---


async def test_a_token_for_reading_may_see_events_and_ask_nothing(tmp_path: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path, require_token=True) as served:
        _, secret = served.tokens.create("read")
        mine = {"additional_headers": {"Authorization": f"Bearer {secret}"}}
        for path, options, status in (("/v1/ws", {}, 401), ("/ws/events", {}, 401), ("/v1/ws", mine, 403)):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(f"ws://{served.address}{path}", **options):
                    pass
            assert refused.value.response.status_code == status
        async with connect(f"ws://{served.address}/ws/events", **mine) as events:
            cluster.set_strategy("random")
            assert json.loads(await events.recv())["fields"] == {"strategy": "random"}
        _, secret = served.tokens.create("infer")
        async with served.talk(additional_headers={"x-api-key": secret}) as client:
            await client.infer("a")
            assert (await client.answer("a"))[1]["code"] == "no_model"


async def test_at_a_stop_what_runs_may_end_nothing_begins_and_idle_clients_are_let_go(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, generate = asyncio.Event(), served.cluster.generate

    async def held(request: GenerateRequest) -> AsyncIterator[Event]:
        async for event in generate(request):
            yield event
            await go_on.wait()

    monkeypatch.setattr(served.cluster, "generate", held)
    async with served.talk() as idle, served.talk() as client:
        await client.infer("a")
        assert (await client.next())["type"] == "token"
        served.server.request_stop()
        with pytest.raises(ConnectionClosed):
            await idle.next()
        await client.infer("b")
        refused = await client.next()
        assert (refused["type"], refused["id"], refused["code"]) == ("error", "b", "stopping")
        go_on.set()
        assert (await client.answer("a"))[1]["finish_reason"] == "length"
        with pytest.raises(ConnectionClosed) as closed:
            await client.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == websocket.GOING_AWAY
        async with asyncio.timeout(5):
            await served.server.stop(10)


async def test_what_is_in_flight_when_the_cluster_closes_ends_in_an_error(served: Served) -> None:
    async with served.talk() as client:
        await client.endless("a")
        await until_busy(served, 1)
        await served.cluster.close()
        assert (await client.answer("a"))[1]["code"] == NodeLost.code


# --- events ---


async def test_events_come_as_they_happen_to_every_client(served: Served) -> None:
    url = f"ws://{served.address}/ws/events"
    async with connect(url) as one, connect(url) as two:
        before = time.time()
        served.cluster.set_strategy("round-robin")
        await served.cluster.spawn(1)
        for client in (one, two):
            seen = [json.loads(await asyncio.wait_for(client.recv(), PATIENCE_S)) for _ in range(3)]
            assert [event["kind"] for event in seen] == ["strategy", "node_starting", "node_ready"]
            assert all(set(event) == {"time", "kind", "fields"} for event in seen)
            assert before - 0.001 <= seen[0]["time"] <= seen[2]["time"] <= time.time() + 0.001
            assert seen[2]["fields"] == {"node": "n2", "epoch": 1, "model": "tiny"}
            await client.send("what a client says here is not heard")
        served.cluster.set_strategy("random")
        assert json.loads(await one.recv())["fields"] == {"strategy": "random"}
        await served.cluster.close()
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(_read_all(two), PATIENCE_S)


async def _read_all(client: Any) -> None:
    while True:
        await client.recv()


async def test_a_client_that_does_not_read_events_loses_some_is_told_and_slows_nobody(tmp_path: Path) -> None:
    sent = 1_600
    async with Cluster() as cluster, serving(cluster, tmp_path) as served:
        url = f"ws://{served.address}/ws/events"
        async with connect(url, max_queue=1, compression=None) as slow, connect(url, compression=None) as quick:
            for number in range(sent):  # 48 MB, and the one that reads gets them all
                event = ClusterEvent(0.0, "noise", {"number": number, "text": "x" * 30_000})
                cluster._runtime._publish(event)
                heard = json.loads(await asyncio.wait_for(quick.recv(), PATIENCE_S))
                assert heard["fields"]["number"] == number
            got: list[int] = []
            lost = 0
            while len(got) + lost < sent:
                said = json.loads(await asyncio.wait_for(slow.recv(), PATIENCE_S))
                if said["kind"] == "lost":
                    lost += said["fields"]["events"]
                else:
                    got.append(said["fields"]["number"])
            assert lost > 0
            assert got == list(range(len(got)))


def test_an_event_with_half_a_character_can_be_told() -> None:
    event = ClusterEvent(1.5, "node_failed", {"reason": "no \udcff", "epoch": 2, "model": None})
    assert json.loads(messages.happened(event)) == {
        "time": 1.5,
        "kind": "node_failed",
        "fields": {"reason": "no ?", "epoch": 2, "model": None},
    }


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_MEMBERS = st.sampled_from(["id", "session", "no_such", *messages._Infer.__struct_fields__])


@given(st.one_of(st.text(), st.dictionaries(_MEMBERS, _VALUES).map(lambda m: json.dumps({"type": "infer"} | m))))
def test_whatever_a_client_says_is_understood_or_answered_with_an_error(text: str) -> None:
    match messages.read(text):
        case messages.Bad(key, error):
            said = json.loads(messages.error(key, error))
            assert said["id"] == key
            assert said["code"] in ("bad_request", "too_large")
            assert said["message"]
        case messages.Infer(key, request):
            assert request.interface == "websocket"
            assert key == json.loads(text)["id"]
        case messages.Cancel() | messages.Ping():
            assert "type" in text
