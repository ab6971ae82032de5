"""The endpoints over replies that are made up, where it matters when and how a node answers; the HTTP is real."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from gateways import MadeUp, Reply, Served, serving

from llambo.cluster.api import Cluster
from llambo.core import errors
from llambo.core.errors import LlamboError
from llambo.gateway.inference import ENDPOINTS, without_prompts

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
EVENTS = tuple(f'data: {{"n":{number}}}\n\n'.encode() for number in range(4))
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/v1/embeddings": {"input": "hello"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/reranking": {"query": "a", "documents": ["b"]},
    "/rerank": {"query": "a", "documents": ["b"]},
    "/reranking": {"query": "a", "documents": ["b"]},
    "/completion": {"prompt": "hello"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/tokenize": {"content": "hello"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": HELLO},
}
STREAMING = [endpoint.path for endpoint in ENDPOINTS if endpoint.shape.may_stream]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:  # it has no node, and needs none here
        yield cluster


def whole(body: bytes = b'{"ok":1}', status: int = 200, node: str = "n1") -> Reply:
    return Reply((body,), status=status, content_type="application/json; charset=utf-8", node=node)


async def post(served: Served, path: str = CHAT, **members: Any) -> Any:
    return await served.client.post(path, json=BODIES[path] | members)


# --- passing on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
async def test_each_endpoint_passes_body_and_reply_untouched(cluster: Cluster, endpoint: Any) -> None:
    reply = b'{ "odd" : [1.10, "\xc3\xa9"] }'
    relays = MadeUp([whole(reply)])
    async with serving(cluster, relays) as served:
        sent = BODIES[endpoint.path] | {"model": "m", "unknown": {"a": [1]}}
        got = await served.client.post(endpoint.path, json=sent)
    assert (got.status_code, got.content) == (200, reply)
    assert got.headers["content-type"] == "application/json; charset=utf-8"
    (request,) = relays.requests
    assert request.fields is not None
    assert {name: msgspec.json.decode(raw) for name, raw in request.fields.items()} == sent
    assert (request.path, request.kind, request.model) == (endpoint.path, endpoint.kind, "m")
    assert (request.streams, request.interface) == (False, "http")


async def test_the_session_comes_by_header(cluster: Cluster) -> None:
    relays = MadeUp([whole()])
    async with serving(cluster, relays) as served:
        await served.client.post(CHAT, json=BODIES[CHAT], headers={"X-Session-ID": "s1"})
    assert relays.requests[0].session == "s1"


async def test_looks_at_a_node_name_the_model_in_the_query(cluster: Cluster) -> None:
    slots = [{"id": 0, "n_ctx": 512, "is_processing": True, "prompt": "secret", "params": {"seed": 1}}]
    relays = MadeUp([whole(b'{"total_slots":1}'), whole(json.dumps(slots).encode())])
    async with serving(cluster, relays) as served:
        props = await served.client.get("/props", params={"model": "m"})
        found = await served.client.get("/slots")
    assert props.json() == {"total_slots": 1}
    assert found.json() == [{"id": 0, "n_ctx": 512, "is_processing": True}]
    assert [(r.path, r.fields, r.model, r.kind) for r in relays.requests] == [
        ("/props", None, "m", "look"),
        ("/slots", None, "", "look"),
    ]


def test_of_a_slot_only_numbers_and_flags_are_told() -> None:
    slot = {"id": 1, "busy": False, "speed": 1.5, "prompt": "p", "next_token": [{"n": 1}], "params": {}, "none": None}
    assert json.loads(without_prompts(json.dumps([slot]).encode())) == [
        {"id": 1, "busy": False, "speed": 1.5, "none": None}
    ]


async def test_the_node_is_named_to_whoever_asks_for_it(cluster: Cluster) -> None:
    relays = MadeUp([whole(node="n7"), whole(node="n7"), Reply((DONE,), node="n8")])
    async with serving(cluster, relays) as served:
        plain = await post(served)
        debug = {"X-Llambo-Debug": "1"}
        asked = await served.client.post(CHAT, json=BODIES[CHAT], headers=debug)
        streamed = await served.client.post(CHAT, json=BODIES[CHAT] | {"stream": True}, headers=debug)
    assert "x-llambo-node" not in plain.headers
    assert asked.headers["x-llambo-node"] == "n7"
    assert streamed.headers["x-llambo-node"] == "n8"
    assert len({reply.headers["x-request-id"] for reply in (plain, asked, streamed)}) == 3


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMING)
async def test_a_stream_is_the_nodes_events_byte_by_byte(cluster: Cluster, path: str) -> None:
    relays = MadeUp([Reply((EVENTS[0], EVENTS[1] + EVENTS[2], DONE))])
    async with serving(cluster, relays) as served:
        got = await post(served, path, stream=True)
    assert got.content == EVENTS[0] + EVENTS[1] + EVENTS[2] + DONE
    assert relays.requests[0].streams
    assert got.headers["content-type"] == "text/event-stream"
    assert got.headers["cache-control"] == "no-cache"
    assert got.headers["x-accel-buffering"] == "no"


async def test_each_piece_reaches_the_client_before_the_next_is_there(cluster: Cluster) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    relays = MadeUp([Reply((gates[0].wait, EVENTS[0], gates[1].wait, EVENTS[1], DONE))])
    async with serving(cluster, relays) as served:
        request = served.client.stream("POST", CHAT, json=BODIES[CHAT] | {"stream": True})
        async with request as got:  # the headers are there, and no event yet
            pieces = got.aiter_raw()
            for gate, event in zip(gates, EVENTS, strict=False):
                gate.set()
                assert (await anext(pieces)).startswith(event)


async def test_a_silent_stream_is_pinged_and_a_lively_one_is_not(cluster: Cluster) -> None:
    is_pinged, clock = asyncio.Event(), asyncio.get_running_loop().time
    relays = MadeUp([Reply((EVENTS[0], is_pinged.wait, EVENTS[1], DONE)), Reply((*EVENTS, DONE))])
    quiet, times = b"", [clock()]
    async with serving(cluster, relays, ping_interval="50ms") as served:
        async with served.client.stream("POST", CHAT, json=BODIES[CHAT] | {"stream": True}) as reply:
            async for piece in reply.aiter_raw():
                quiet += piece
                times += [clock()] * (piece == PING)
                if quiet.count(PING) == 3:
                    is_pinged.set()
        lively = (await post(served, stream=True)).content
    assert quiet == EVENTS[0] + 3 * PING + EVENTS[1] + DONE
    assert all(after - before > 0.03 for before, after in itertools.pairwise(times))
    assert b"ping" not in lively


@pytest.mark.parametrize("path", STREAMING)
async def test_a_failure_after_the_headers_is_the_streams_one_end(cluster: Cluster, path: str) -> None:
    relays = MadeUp([Reply((EVENTS[0], errors.NodeLost("node n1 is gone")))])
    async with serving(cluster, relays) as served:
        got = await post(served, path, stream=True)
    assert got.status_code == 200
    assert got.content.startswith(EVENTS[0])
    *names, data = got.text.removeprefix(EVENTS[0].decode()).strip().split("\n")
    assert names == ([] if path not in {"/v1/messages", "/v1/responses"} else ["event: error"])
    body = json.loads(data.removeprefix("data: "))
    assert body["error"]["message"] == "node n1 is gone"
    assert body["error"]["code"] == "node_lost"


async def test_a_fault_of_ours_ends_the_stream_too(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async def break_down() -> None:
        raise ZeroDivisionError

    relays = MadeUp([Reply((EVENTS[0], break_down)), Reply((break_down,), content_type="application/json")])
    async with serving(cluster, relays) as served:
        streamed = await post(served, stream=True)
        plain = await post(served)
    assert (
        json.loads(streamed.text.removeprefix(EVENTS[0].decode()).removeprefix("data: "))["error"]["code"] == "failed"
    )
    assert (plain.status_code, plain.json()["error"]["code"]) == (500, "failed")
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


# --- before the headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.NotFound("no model is called 'x'; loaded are y"), 404, "model_not_found"),
        (errors.PromptTooLong("too long"), 400, "context_length_exceeded"),
        (errors.Overloaded("the queue is full"), 429, "overloaded"),
        (errors.TimedOut("no slot came free"), 504, "timeout"),
        (errors.NodeLost("gone"), 502, "node_lost"),
        (errors.EngineFailed("failed"), 502, "engine_failed"),
        (errors.NoMemory("does not fit"), 503, "no_memory"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_headers_has_its_status(
    cluster: Cluster, error: LlamboError, status: int, code: str, stream: bool
) -> None:
    async with serving(cluster, MadeUp([error, error])) as served:
        openai = await post(served, stream=stream)
        anthropic = await post(served, "/v1/messages", stream=stream)
    assert (openai.status_code, openai.json()["error"]["code"]) == (status, code)
    assert anthropic.status_code == status
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["error"]["message"] == error.message
    assert ("retry-after" in openai.headers) == (status == 429)
    if status == 429:
        assert int(openai.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_nodes_own_refusal_is_put_into_the_envelope(cluster: Cluster, stream: bool) -> None:
    too_long = {"code": 400, "message": "m", "type": "exceed_context_size_error", "n_prompt_tokens": 700, "n_ctx": 512}
    wrong = {"code": 400, "message": "grammar is odd", "type": "invalid_request_error"}
    relays = MadeUp([whole(json.dumps({"error": error}).encode(), 400) for error in (too_long, wrong)])
    async with serving(cluster, relays) as served:
        first, second = await post(served, stream=stream), await post(served, stream=stream)
    assert (first.status_code, first.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "700" in first.json()["error"]["message"]
    assert first.json()["error"]["param"] == "messages"
    assert second.json()["error"] == {
        "message": "grammar is odd",
        "type": "invalid_request_error",
        "param": None,
        "code": "bad_request",
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"not json", None),
        (b"[]", None),
        (b'{"messages":"\xff"}', None),
        (b"{}", "messages"),
        (b'{"messages":"hi"}', "messages"),
        (b'{"messages":[{"role":"user","content":"a"}],"max_tokens":-1}', "max_tokens"),
        (b'{"messages":[{"role":"user","content":"a"}],"temperature":"hot"}', "temperature"),
        (b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    ],
)
async def test_bad_bodies_are_refused_before_any_node_is_asked(
    cluster: Cluster, body: bytes, param: str | None
) -> None:
    relays = MadeUp([])
    async with serving(cluster, relays) as served:
        openai = await served.client.post(CHAT, content=body)
        anthropic = await served.client.post("/v1/messages", content=body)
    assert openai.status_code == anthropic.status_code == 400
    assert openai.json()["error"]["param"] == param
    assert openai.json()["error"]["code"] == "bad_request"
    assert anthropic.json()["error"]["type"] == "invalid_request_error"
    assert relays.requests == []


async def test_a_body_of_100_mb_is_refused_by_its_header_and_others_go_on(cluster: Cluster) -> None:
    async with serving(cluster, MadeUp([whole()])) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), 100 * 2**20)
        )
        writer.write(b" " * 2**16)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"
        assert (await post(served)).status_code == 200


async def test_unknown_paths_and_methods_have_the_envelope_too(cluster: Cluster) -> None:
    async with serving(cluster, MadeUp([])) as served:
        missing = await served.client.get("/v1/nothing")
        method = await served.client.get(CHAT)
        anthropic = await served.client.get("/v1/messages")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"
    assert (anthropic.status_code, anthropic.json()["type"]) == (405, "error")


# --- hanging up -------------------------------------------------------------------------------------------------------


async def hang_up(served: Served, relays: MadeUp, body: dict[str, Any], *, until: bytes = b"") -> None:
    """Asks, reads until `until` has come, and closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    content = json.dumps(body).encode()
    writer.write(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(content)))
    writer.write(content)
    await relays.entered.wait()
    if until:
        await reader.readuntil(until)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("where", ["queued", "prefill"])
async def test_whoever_hangs_up_before_the_first_event_ends_the_request(
    cluster: Cluster, stream: bool, where: str
) -> None:
    never = asyncio.Event()
    kind = "text/event-stream" if stream else "application/json"
    relays = MadeUp([Reply((never.wait,), content_type=kind)], before=never.wait if where == "queued" else None)
    async with serving(cluster, relays) as served:
        await hang_up(served, relays, BODIES[CHAT] | {"stream": stream})
        async with asyncio.timeout(5):
            await relays.closed.wait()


async def test_whoever_hangs_up_in_the_middle_ends_the_request(cluster: Cluster) -> None:
    never = asyncio.Event()
    relays = MadeUp([Reply((EVENTS[0], never.wait))])
    async with serving(cluster, relays) as served:
        await hang_up(served, relays, BODIES[CHAT] | {"stream": True}, until=EVENTS[0])
        async with asyncio.timeout(5):
            await relays.closed.wait()


# --- models and documentation -----------------------------------------------------------------------------------------


async def test_models_that_could_be_loaded_are_listed(cluster: Cluster) -> None:
    async with serving(cluster, MadeUp([]), models=("built-in", "user/repo:Q4_0")) as served:
        listed = (await served.client.get("/v1/models")).json()
        one = (await served.client.get("/v1/models/user/repo:Q4_0")).json()
        quoted = (await served.client.get("/v1/models/user%2Frepo%3AQ4_0")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["built-in", "user/repo:Q4_0"]
    assert one == quoted == listed["data"][1]
    assert (one["object"], one["owned_by"], one["llambo"]["state"]) == ("model", "llambo", "on demand")
    assert isinstance(one["created"], int)


@pytest.mark.parametrize("name", ["nope", "..%2f..%2fetc%2fpasswd", "a" * 5000, "%00", "%ff", "built-in%2f"])
async def test_an_unknown_model_is_404_with_the_names(cluster: Cluster, name: str) -> None:
    async with serving(cluster, MadeUp([]), models=("built-in",)) as served:
        got = await served.client.get(f"/v1/models/{name}")
    assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
    assert "built-in" in got.json()["error"]["message"]
    assert len(got.content) < 2000


async def test_every_endpoint_is_documented_with_its_body_and_statuses(cluster: Cluster) -> None:
    async with serving(cluster, MadeUp([])) as served:
        described = (await served.client.get("/openapi.json")).json()
        page = await served.client.get("/docs")
        assert page.status_code == 200
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) >= 2
        for address in loaded:
            assert address.startswith("/"), "nothing comes from elsewhere"
            assert (await served.client.get(address)).status_code == 200
    for endpoint in ENDPOINTS:
        operation = described["paths"][endpoint.path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) <= set(BODIES[endpoint.path])
        assert {"200", "400", "401", "404", "413", "429", "502", "503", "504"} <= set(operation["responses"])
        streams = "text/event-stream" in operation["responses"]["200"]["content"]
        assert streams == endpoint.shape.may_stream
