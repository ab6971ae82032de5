"""Several nodes behind one request, over HTTP as OpenAI's objects: the real SDK, real nodes, and a door made up."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
import openai
import pytest
from gateways import Served, serving
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.api import Cluster
from llambo.cluster.door import DoorStatus
from llambo.core.errors import BadRequest, Cancelled, EngineFailed, LlamboError, NoQuorum
from llambo.core.fusion import STRATEGIES, Fusion, FusionRequest, Vote, VoteCast
from llambo.core.fusion_document import cast_of, fusion_of
from llambo.core.types import Counters, Done, Event, GenerateRequest, LoadOptions, Message, TokenEvent
from llambo.gateway import bodies
from llambo.gateway.openai import request_of

HELLO: list[Any] = [{"role": "user", "content": "What is a node?"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
FIRST = Vote("n1", "m", "four", 1, 1.0, 12.5, -0.25)
SECOND = Vote("n2", "m2", "five", 1, 0.5, 20.0)
CASTS = [VoteCast(FIRST, 3, 1, 1.0), VoteCast(SECOND, 3, 2, 0.5)]
OUTCOME = Fusion("majority-vote", 0.5, 3, 2, 1, (FIRST, SECOND))
DONE = Done("stop", "m", "n1", 2, 7, 3, 1.5, 25.0, 0, OUTCOME)
REFUSAL = NoQuorum("no quorum: 1 of 3 nodes agree, 2 are needed")


class MadeUpDoor:
    """Gives the steps of one answer: events, errors to raise, things to wait for."""

    def __init__(self, *steps: Event | LlamboError | Callable[[], Any]) -> None:
        self._steps = steps
        self.requests: list[GenerateRequest] = []
        self.closed = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        try:
            for step in self._steps:
                match step:
                    case LlamboError():
                        raise step
                    case VoteCast() | TokenEvent() | Done():
                        yield step
                    case _:
                        await step()
        finally:
            self.closed.set()

    def status(self) -> DoorStatus:
        return DoorStatus((), Counters(), 0.0)


@asynccontextmanager
async def made_up(*steps: Any, **settings: Any) -> AsyncIterator[tuple[Served, MadeUpDoor]]:
    door = MadeUpDoor(*steps)
    async with serving(cast(Cluster, door), **settings) as served:
        yield served, door


def body(**members: Any) -> dict[str, Any]:
    return {"messages": HELLO, "llambo": {"fusion": {"strategy": "majority-vote", "nodes": 3}}, **members}


def events_of(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


# --- how an answer looks ---


async def test_a_whole_answer_is_a_completion_with_what_became_of_the_votes() -> None:
    async with made_up(*CASTS, TokenEvent("fo"), TokenEvent("ur"), DONE) as (served, door):
        reply = await served.client.post(CHAT, json=body(), headers={"X-Llambo-Debug": "1"})
        text = await served.client.post(TEXT, json={"prompt": "2+2=", "llambo": {"fusion": {}}})
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-llambo-node"] == "n1"
    document = reply.json()
    assert document["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "four"}, "logprobs": None, "finish_reason": "stop"}
    ]
    assert (document["object"], document["model"]) == ("chat.completion", "m")
    assert document["id"] == reply.headers["x-request-id"].replace("req-", "chatcmpl-")
    assert document["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert fusion_of(document["llambo"]["fusion"]) == OUTCOME
    assert text.json()["object"] == "text_completion"
    assert text.json()["choices"] == [{"index": 0, "text": "four", "logprobs": None, "finish_reason": "stop"}]
    chat, bare = door.requests
    assert (chat.fusion, bare.fusion) == (FusionRequest("majority-vote", 3), FusionRequest())
    assert (chat.messages, bare.raw_prompt) == ((Message("user", "What is a node?"),), "2+2=")
    assert (chat.interface, bare.interface) == ("http", "http")


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_is_votes_then_text_then_ends_in_the_order_of_the_page(path: str) -> None:
    said = {"messages": HELLO} if path == CHAT else {"prompt": "2+2="}
    async with made_up(*CASTS, TokenEvent("fo"), TokenEvent("ur"), DONE) as (served, _):
        asked = {**body(stream=True, stream_options={"include_usage": True}, model="m"), **said}
        asked = {name: value for name, value in asked.items() if name != "messages" or path == CHAT}
        reply = await served.client.post(path, json=asked)
    assert reply.headers["content-type"] == "text/event-stream"
    *chunks, end = events_of(reply.text)
    assert end == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    votes, pieces, (finish, usage, outcome) = chunks[:2], chunks[2:4], chunks[4:]
    assert [cast_of(chunk["llambo"]["vote"]) for chunk in votes] == CASTS
    assert all(chunk["choices"] == [] for chunk in (*votes, usage, outcome))
    if path == CHAT:
        assert [piece["choices"][0]["delta"] for piece in pieces] == [
            {"role": "assistant", "content": "fo"},
            {"content": "ur"},
        ]
        assert finish["choices"][0]["delta"] == {}
    else:
        assert [piece["choices"][0]["text"] for piece in pieces] == ["fo", "ur"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in (*pieces, finish)] == [None, None, "stop"]
    assert usage["usage"]["total_tokens"] == 9
    assert fusion_of(outcome["llambo"]["fusion"]) == OUTCOME


async def test_each_vote_reaches_the_client_before_the_next_is_cast_and_a_silent_stream_is_pinged() -> None:
    gate = asyncio.Event()
    async with (
        made_up(CASTS[0], gate.wait, CASTS[1], TokenEvent("four"), DONE, ping_interval=0.1) as (served, _),
        served.client.stream("POST", CHAT, json=body(stream=True)) as reply,
    ):
        text = ""
        async for piece in reply.aiter_text():
            text += piece
            if ": ping" in text and not gate.is_set():
                assert text.count('"vote"') == 1
                gate.set()
    assert text.count('"vote"') == 2
    assert text.endswith("data: [DONE]\n\n")


async def test_a_stream_whose_first_vote_takes_long_is_opened_and_pinged_until_then() -> None:
    gate = asyncio.Event()
    async with (
        made_up(gate.wait, REFUSAL, ping_interval=0.1) as (served, _),
        served.client.stream("POST", CHAT, json=body(stream=True)) as reply,
    ):
        assert not gate.is_set()  # the headers came without a vote
        text = ""
        async for piece in reply.aiter_text():
            text += piece
            if text.count(": ping") == 2:
                gate.set()
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream")
    assert text.count("no_quorum") == 1
    assert events_of(text)[-1]["error"]["code"] == "no_quorum"


# --- failures ---


async def test_without_a_quorum_the_answer_is_409_with_the_tally() -> None:
    async with made_up(*CASTS, REFUSAL) as (served, _):
        reply = await served.client.post(CHAT, json=body())
    assert reply.status_code == 409
    document = reply.json()
    assert document["error"] == {
        "message": "no quorum: 1 of 3 nodes agree, 2 are needed",
        "type": "invalid_request_error",
        "param": None,
        "code": "no_quorum",
    }
    tally = fusion_of(document["llambo"]["fusion"])
    assert tally == Fusion("quorum", 0.5, 3, 2, 1, (FIRST, SECOND))


async def test_in_a_stream_the_same_is_its_last_event() -> None:
    async with made_up(*CASTS, REFUSAL) as (served, _):
        reply = await served.client.post(CHAT, json=body(stream=True))
    assert reply.status_code == 200
    *votes, last = events_of(reply.text)
    assert len(votes) == 2
    assert last["error"]["code"] == "no_quorum"
    assert fusion_of(last["llambo"]["fusion"]).votes == (FIRST, SECOND)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineFailed("every node failed"), 502, "engine_failed"),
        (Cancelled("x"), 409, "cancelled"),
        (Done("cancelled", "m", "n1", 0, 0, 0, 0.0, 0.0), 409, "cancelled"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_other_failures_are_as_without_fusion(error: Any, status: int, code: str, stream: bool) -> None:
    async with made_up(error) as (served, _):
        reply = await served.client.post(CHAT, json=body(stream=stream))
    found = events_of(reply.text)[-1] if stream and reply.status_code == 200 else reply.json()
    assert (found["error"]["code"], "llambo" in found) == (code, False)
    if not isinstance(error, Done):
        assert reply.status_code == status


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_hangs_up_ends_every_voter(stream: bool) -> None:
    never = asyncio.Event()
    async with made_up(CASTS[0], never.wait, DONE) as (served, door):
        request = served.client.build_request("POST", CHAT, json=body(stream=stream))
        asking = asyncio.create_task(served.client.send(request, stream=True))
        async with asyncio.timeout(10):
            while not door.requests:
                await asyncio.sleep(0.005)
            if stream:
                await (await asking).aclose()
            else:
                asking.cancel()
            await door.closed.wait()


async def test_a_stream_can_be_ended_by_its_id_and_is_not_kept() -> None:
    never = asyncio.Event()
    async with (
        made_up(CASTS[0], never.wait, DONE) as (served, door),
        served.client.stream("POST", CHAT, json=body(stream=True)) as reply,
    ):
        name = reply.headers["x-request-id"]
        async with httpx.AsyncClient(base_url=served.url) as other:
            assert (await other.get(f"/v1/streams/{name}")).status_code == 409
            assert (await other.delete(f"/v1/streams/{name}")).status_code == 200
            assert "was cancelled" in "".join([piece async for piece in reply.aiter_text()])
            assert (await other.get(f"/v1/streams/{name}")).status_code == 404
    assert door.closed.is_set()
    assert served.gateway.streams.kept == 0


# --- what is asked ---


def read(shape: bodies.Shape = bodies.CHAT, **members: Any) -> bodies.Asked:
    return bodies.read(json.dumps(members).encode(), shape)


def asked_of(**members: Any) -> GenerateRequest:
    kind: Any = "text" if "prompt" in members else "chat"
    shape = bodies.COMPLETION if kind == "text" else bodies.CHAT
    said = {} if "prompt" in members or "messages" in members else {"messages": HELLO}
    return request_of(read(shape, llambo={"fusion": {}}, **said, **members), kind)


def test_everything_that_the_door_takes_is_asked() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = asked_of(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
            {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "annotations": []},
            {"role": "user", "content": "Go."},
        ],
        model="m",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=["\n", "END"],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}},
        user="me",
        metadata={"a": "b"},
        n=1,
        logprobs=False,
        tools=[],
        presence_penalty=0.0,
        frequency_penalty=0,
        tool_choice=None,
    )
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Yes?"),
        ("user", "Go."),
    ]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (5, 0.5, 0.9, 3)
    assert (request.model, request.stop) == ("m", ("\n", "END"))
    assert json.loads(request.json_schema) == schema


def test_what_has_several_forms_is_understood_in_each() -> None:
    assert asked_of(max_tokens=5, max_completion_tokens=6).sampling.max_tokens == 6
    assert asked_of(stop="x").stop == ("x",)
    assert asked_of(stop=None).stop == asked_of(stop="").stop == ()
    assert asked_of(stop=["", "x"]).stop == ("x",)
    assert asked_of(prompt=["one"]).raw_prompt == "one"
    assert asked_of(grammar='root ::= "a"').grammar == 'root ::= "a"'
    assert asked_of(response_format={"type": "text"}).json_schema == ""
    assert asked_of(response_format=None, json_schema=None).json_schema == ""
    assert json.loads(asked_of(json_schema={"enum": [1]}).json_schema) == {"enum": [1]}
    assert json.loads(asked_of(response_format={"type": "json_object"}).json_schema) == {"type": "object"}
    assert json.loads(asked_of(response_format={"type": "json_object", "schema": {}}).json_schema) == {}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": "x", "logprobs": 0}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"min_p": 0.1}, "min_p"),
        ({"id_slot": 1}, "id_slot"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "json_schema": {"enum": [1]}}, "json_schema"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\0"}]}, "messages"),
        ({"seed": -1}, None),
        ({"max_tokens": 0}, None),
        ({"temperature": 9}, None),
        ({"grammar": "a", "json_schema": {}}, None),
    ],
)
def test_what_fusion_cannot_honour_is_refused_by_name(members: dict[str, Any], param: str | None) -> None:
    with pytest.raises(BadRequest) as refusal:
        asked_of(**members)
    assert getattr(refusal.value, "param", None) == param
    assert refusal.value.message


@pytest.mark.parametrize(
    ("fusion", "sentence"),
    [
        ({"strategy": "council"}, "no fusion strategy is called 'council'; there are majority-vote, "),
        ({"strategy": "quorum", "nodes": 1}, "fusion takes between 2 and 64 nodes, not 1"),
        ({"nodes": 0}, "nodes must be 1 at least; leave it out for the configured number"),
        ({"strategy": "quorum", "min_consensus": 0}, "min_consensus must be 1 at least; leave it out"),
        ({"nodes": 65}, "fusion takes between 2 and 64 nodes, not 65"),
        ({"nodes": 3, "min_consensus": 4}, "min_consensus must be between 1 and the 3 nodes asked, not 4"),
        ({"nodes": "3"}, "llambo is of the wrong type: Expected `int | null`, got `str` - at `$.fusion.nodes`"),
        ({"voters": 3}, "llambo is of the wrong type: Object contains unknown field `voters`"),
        (5, "llambo is of the wrong type"),
        ({"extract": "x" * 2000}, "extract has 2000 characters and may have 1024"),
    ],
)
def test_fusion_that_cannot_be_is_refused_in_one_sentence(fusion: Any, sentence: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(messages=HELLO, llambo={"fusion": fusion})
    assert refusal.value.message.startswith(sentence)


@pytest.mark.parametrize("shape", [bodies.RESPONSES, bodies.ANTHROPIC, bodies.INFILL, bodies.LLAMA_COMPLETION])
def test_other_endpoints_say_where_fusion_is(shape: bodies.Shape) -> None:
    members = {"messages": HELLO, "input": "x", "prompt": "x", "input_prefix": "x", "input_suffix": "x"}
    assert read(shape, **members, llambo={"fusion": None}).fusion is None
    with pytest.raises(BadRequest, match="fusion answers /v1/chat/completions and /v1/completions alone"):
        read(shape, **members, llambo={"fusion": {}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["messages", "stop", "seed", "response_format", "json_schema", "stream_options", "tools", "n"])


@given(st.dictionaries(NAMES | st.text(max_size=5), JSON, max_size=4), JSON)
def test_any_body_is_understood_or_refused(members: dict[str, Any], content: Any) -> None:
    said = {"messages": [{"role": "user", "content": content}], **members, "llambo": {"fusion": {}}}
    try:
        assert request_of(bodies.read(json.dumps(said).encode(), bodies.CHAT), "chat").fusion == FusionRequest()
    except BadRequest as error:
        assert error.message


# --- real nodes, the real SDK ---


@asynccontextmanager
async def real(model: str | Path = "built-in", nodes: int = 3) -> AsyncIterator[tuple[Served, openai.AsyncOpenAI]]:
    async with Cluster() as cluster:
        await cluster.load(str(model), options=LoadOptions(slots=2, threads=1))
        await cluster.scale(nodes)
        async with (
            serving(cluster) as served,
            openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.token, max_retries=0) as client,
        ):
            yield served, client


def fused(**members: Any) -> dict[str, Any]:
    return {"llambo": {"fusion": members}}


async def test_the_sdk_gets_an_agreed_answer_of_every_strategy_from_real_nodes() -> None:
    async with real() as (_, client):
        plain = await client.chat.completions.create(
            model="built-in", messages=HELLO, temperature=0, seed=1, max_tokens=16
        )
        for strategy in STRATEGIES:
            answer = await client.chat.completions.create(
                model="built-in",
                messages=HELLO,
                temperature=0,
                seed=1,
                max_tokens=16,
                extra_body=fused(strategy=strategy, nodes=3),
            )
            assert answer.choices[0].message.content == plain.choices[0].message.content, strategy
            assert answer.choices[0].finish_reason == plain.choices[0].finish_reason
            assert answer.usage and plain.usage
            assert answer.usage.completion_tokens == plain.usage.completion_tokens
            assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
            outcome = fusion_of(cast(Any, answer.model_extra)["llambo"]["fusion"])
            assert (outcome.strategy, outcome.asked) == (strategy, 3)
            assert outcome.answered + outcome.cancelled == 3
            assert len({vote.node for vote in outcome.votes}) >= 2


async def test_the_sdk_streams_votes_and_the_answer_of_real_nodes() -> None:
    async with real() as (_, client):
        stream = await client.chat.completions.create(
            model="built-in",
            messages=HELLO,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=fused(strategy="weighted-average", nodes=3),
        )
        casts, text, outcome, usage = [], "", None, None
        async for chunk in stream:
            told = cast(Any, chunk.model_extra).get("llambo", {})
            if "vote" in told:
                assert not text, "votes come before the answer"
                casts.append(cast_of(told["vote"]))
            if "fusion" in told:
                outcome = fusion_of(told["fusion"])
            for choice in chunk.choices:
                text += choice.delta.content or ""
            usage = chunk.usage or usage
        assert outcome is not None
        assert usage is not None
        assert [found.vote.node for found in casts] == [vote.node for vote in outcome.votes]
        assert text in {vote.text for vote in outcome.votes}
        assert usage.completion_tokens == 16


async def test_nodes_that_disagree_reach_no_quorum_and_the_sdk_raises_its_conflict(tiny_model: Path) -> None:
    async with real(tiny_model) as (_, client):  # a model of noise
        with pytest.raises(openai.ConflictError) as refusal:
            await client.completions.create(
                model="tiny",
                prompt="go on",
                max_tokens=8,
                temperature=2,
                extra_body=fused(strategy="quorum", nodes=3, min_consensus=3),
            )
    document = cast(Any, refusal.value.response.json())
    assert document["error"]["code"] == "no_quorum"
    assert document["error"]["message"].startswith("no quorum: 1 of 3 nodes agree, 3 are needed")
    tally = fusion_of(document["llambo"]["fusion"])
    assert tally.asked == 3
    assert len({vote.text for vote in tally.votes}) >= 2


async def test_whoever_hangs_up_frees_every_slot_of_real_nodes(tiny_model: Path) -> None:
    async with real(tiny_model) as (served, client):
        asking = asyncio.create_task(
            client.completions.create(model="tiny", prompt="go on", extra_body=fused(strategy="quorum", nodes=3))
        )
        async with asyncio.timeout(20):
            while served.gateway.door.status().busy < 3:
                await asyncio.sleep(0.005)
            asking.cancel()
            while served.gateway.door.status().busy:
                await asyncio.sleep(0.005)


async def test_the_example_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    async with real() as (served, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"url = {served.url!r}\n{example}", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    assert process.returncode == 0
    answer, agreement = output.decode().strip().rsplit("\n", 1)
    assert "node" in answer
    assert 0 < float(agreement) <= 1
