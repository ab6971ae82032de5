"""An answer that outlives its nodes, on real ones: killed with SIGKILL in the middle, gone on with elsewhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from bench.make_model import PRESETS, SPECIALS, Matrix, Writer
from llambo.cluster.failover import Answer, Attempt, StreamEnd
from llambo.cluster.launch.attach import AttachLauncher
from llambo.cluster.launch.base import NodeHandle, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import Upstream, open_upstream
from llambo.core.errors import Diverged, EngineFailed, NodeLost
from llambo.core.types import GenerateRequest, LoadOptions, Sampling, TokenEvent
from tests.cluster.llama_server import BUILT_IN, llama_server

OPTIONS = LoadOptions(ctx=512, slots=2, threads=1)
QUESTION = "What is Llambo?"
SCHEMA = '{"type":"object","properties":{"é…😀":{"enum":["né","日本"]},"n":{"type":"integer"}},"required":["é…😀","n"]}'
GRAMMAR = 'root ::= ("Llambo… " | "é" | "😀 " | "no"){8,} "."'


@dataclass
class Life:
    """A node that dies by SIGKILL as soon as it has given `events` events to us."""

    upstream: Upstream
    ctx: int
    pid: int
    events: int = 10**9


@dataclass
class Result:
    """What a caller saw."""

    events: list[TokenEvent] = field(default_factory=list)
    end: StreamEnd | None = None
    gaps_s: list[float] = field(default_factory=list)  # from a death to the next token

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)


async def drive(request: GenerateRequest, lives: list[Life]) -> Result:
    """Asks each node in turn as a runtime does."""
    result = Result()
    answer = Answer(request, await lives[0].upstream.prompt_text(request), seed=99)
    attempt: Attempt | StreamEnd = answer.first(lives[0].ctx)
    died = 0.0
    for number, life in enumerate(lives):
        try:
            if number:
                attempt = await again(answer, life, request)
            if isinstance(attempt, StreamEnd):
                result.end = attempt
                return result
            async with aclosing(life.upstream.stream(attempt)) as events:
                count = 0
                async for event in events:
                    if isinstance(event, StreamEnd):
                        result.end = answer.end(event)
                        return result
                    fresh = answer.take(event)
                    if fresh and died:
                        result.gaps_s.append(time.monotonic() - died)
                        died = 0.0
                    result.events += fresh
                    count += len(fresh)
                    if count >= life.events:
                        os.kill(life.pid, signal.SIGKILL)
                        died = time.monotonic()
                        break  # what is still in the pipe would only make the death later than it was asked for
        except NodeLost:
            died = died or time.monotonic()
    return result


async def again(answer: Answer, life: Life, request: GenerateRequest) -> Attempt | StreamEnd:
    node, prompt_ids, tail_ids, prompt = life.upstream, None, None, None
    if node.has_ids and answer.needs_prompt_ids:
        prompt_ids = await node.tokenize(answer.prompt, add_special=True)
        tail_ids = await node.tokenize(answer.tail) if answer.tail else None
    elif node.has_ids:  # from the start: the first node may have had no template
        prompt = await node.prompt_text(request)
    return answer.again(has_ids=node.has_ids, prompt_ids=prompt_ids, tail_ids=tail_ids, ctx=life.ctx, prompt=prompt)


class Nodes:
    """Nodes of one model, made on demand."""

    def __init__(self, launcher: LocalLauncher, model: Path) -> None:
        self.launcher = launcher
        self.model = model
        self.made = 0
        self.clients: list[Upstream] = []

    async def life(self, events: int = 10**9, *, options: LoadOptions = OPTIONS) -> Life:
        self.made += 1
        name = f"n{self.made}"
        handle = await self.launcher.spawn(NodeRequest(name, str(self.model), options), timeout_s=30)
        return Life(self.open(handle), handle.ctx, handle.pid, events)

    def open(self, handle: NodeHandle) -> Upstream:
        self.clients.append(open_upstream(handle))
        return self.clients[-1]

    async def undisturbed(self, request: GenerateRequest) -> Result:
        return await drive(request, [await self.life()])


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path / "run")
    yield launcher
    await launcher.close()


@pytest.fixture
async def nodes(launcher: LocalLauncher) -> AsyncIterator[Nodes]:
    nodes = Nodes(launcher, BUILT_IN)
    yield nodes
    for client in nodes.clients:
        await client.close()


class _ByteWalk(Writer):
    """A walk whose words are parted by characters that span two, three and four tokens."""

    def output(self, embedding: Matrix) -> Matrix:
        first_word = len(SPECIALS) + 256
        order = [int(i) for i in self.random.permutation(np.arange(first_word, self.shape.vocab))]
        for place, character in ((150, "😁"), (130, "…"), (110, "é")):  # no byte twice
            order[place:place] = [len(SPECIALS) + byte for byte in character.encode()]
        output = np.zeros((self.shape.vocab, self.shape.width), np.float32)
        output[np.roll(order, -1)] = embedding[order] * np.float32(4 / np.sqrt(self.shape.width))
        start = [i for i in range(first_word) if i not in order]
        output[order[0]] += embedding[start].sum(0) * np.float32(4 / self.shape.width)
        return output


@pytest.fixture(scope="session")
def byte_walk_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "byte-walk.gguf"
    return _ByteWalk(path, PRESETS["tiny"], walk=True).write("byte-walk")


def ask(text: str = QUESTION, **kinds: object) -> GenerateRequest:
    return replace(GenerateRequest.from_prompt(text), **kinds)  # type: ignore[arg-type]


GREEDY = Sampling(max_tokens=60, temperature=0)
SEEDED = Sampling(max_tokens=60, temperature=1.0, seed=11)

REQUESTS = {
    "greedy": ask(sampling=GREEDY),
    "greedy until the model ends": ask(sampling=Sampling(temperature=0)),
    "greedy with log-probabilities": ask(sampling=GREEDY, logprobs=True),
    "greedy with a stop text that comes": ask(sampling=GREEDY, stop=("one machine or many, behind",)),
    "greedy with a stop text that only begins": ask(sampling=GREEDY, stop=("language models on two",)),
    "seeded": ask(sampling=SEEDED),
    "grammar, greedy": ask(sampling=GREEDY, grammar=GRAMMAR),
    "grammar, seeded": ask(sampling=SEEDED, grammar=GRAMMAR),
    "grammar, no seed": ask(sampling=Sampling(max_tokens=60, temperature=1.0), grammar=GRAMMAR),
    "JSON schema": ask(sampling=Sampling(max_tokens=90, temperature=0), json_schema=SCHEMA),
    "JSON schema, seeded": ask(sampling=replace(SEEDED, max_tokens=90), json_schema=SCHEMA),
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_an_answer_whose_nodes_are_killed_is_that_of_an_undisturbed_run(nodes: Nodes, kind: str) -> None:
    request = REQUESTS[kind]
    whole = await nodes.undisturbed(request)
    assert whole.end is not None
    assert len(whole.events) > 5
    for lives in ((1,), (7,), (len(whole.events),), (3, 1, 9)):
        result = await drive(request, [*[await nodes.life(k) for k in lives], await nodes.life()])
        assert result.text.encode() == whole.text.encode()
        assert result.end is not None
        assert replace(result.end, cached_tokens=0) == replace(whole.end, cached_tokens=0)
        if request.logprobs:
            assert [e.logprob for e in result.events] == pytest.approx([e.logprob for e in whole.events], abs=1e-3)


async def test_greedy_walks_go_on_from_ids_with_their_very_ids_and_at_once(nodes: Nodes, walk_model: Path) -> None:
    nodes.model = walk_model
    request = ask("once", sampling=Sampling(max_tokens=120, temperature=0))
    whole = await nodes.undisturbed(request)
    gaps_s: list[float] = []
    for k in (1, 50, 119, 120):
        result = await drive(request, [await nodes.life(k), await nodes.life()])
        assert result.events == whole.events
        gaps_s += result.gaps_s
    assert all(gap < 1 for gap in gaps_s)


@pytest.mark.parametrize("temperature", [0.0, 0.01])
async def test_characters_that_span_tokens_survive_a_death_before_in_and_after_them(
    nodes: Nodes, byte_walk_model: Path, temperature: float
) -> None:
    """At a temperature that low the walk has one way to go, and yet it is sampling without a seed."""
    nodes.model = byte_walk_model
    request = ask("once", sampling=Sampling(max_tokens=270, temperature=temperature))  # once around
    whole = await nodes.undisturbed(request)
    assert {"é", "…", "😁"} <= {event.text for event in whole.events}
    assert all(len(event.ids) == event.text.isascii() for event in whole.events)
    at = {event.text: i for i, event in enumerate(whole.events)}
    for k in (at["é"], at["é"] + 1, at["…"] + 1, at["😁"] + 5):
        result = await drive(request, [await nodes.life(k), await nodes.life(3), await nodes.life()])
        assert result.text == whole.text
        assert result.end is not None
        assert result.end.tokens == 270


async def test_sampling_without_a_seed_keeps_what_was_delivered_and_goes_on_to_the_same_length(nodes: Nodes) -> None:
    request = ask("Tell me of nodes", sampling=Sampling(max_tokens=40, temperature=2.0))
    for k in (1, 9, 20):
        result = await drive(request, [await nodes.life(k), await nodes.life()])
        assert result.end is not None
        assert result.end.tokens <= 40
        if result.end.finish_reason == "length":
            assert result.end.tokens == 40


async def test_a_death_when_the_context_is_full_ends_as_the_undisturbed_run_does(nodes: Nodes) -> None:
    small = replace(OPTIONS, ctx=256)
    request = GenerateRequest(raw_prompt="word " * 200, sampling=Sampling(temperature=0), stop=("no such text",))
    whole = await drive(request, [await nodes.life(options=small)])
    assert whole.end is not None
    for k in (1, len(whole.events) - 1, len(whole.events)):
        if k > 0:
            result = await drive(request, [await nodes.life(k, options=small), await nodes.life(options=small)])
            assert result.text == whole.text
            assert result.end is not None
            assert (result.end.finish_reason, result.end.tokens) == (whole.end.finish_reason, whole.end.tokens)


async def test_another_model_cannot_replay_an_answer(nodes: Nodes, walk_model: Path) -> None:
    assert len((await nodes.undisturbed(REQUESTS["seeded"])).events) > 5
    first = await nodes.life(5)
    nodes.model = walk_model
    with pytest.raises(Diverged):
        await drive(REQUESTS["seeded"], [first, await nodes.life()])


async def attached(url: str, *, only_openai: bool) -> NodeHandle:
    handle = await AttachLauncher().spawn(NodeRequest("a1", url=url), timeout_s=30)
    return replace(handle, features=frozenset({"generate"})) if only_openai else handle


@pytest.mark.parametrize("kind", ["greedy", "greedy until the model ends", "seeded"])
async def test_a_server_with_the_openai_api_alone_takes_over_and_is_taken_over_from(nodes: Nodes, kind: str) -> None:
    request = REQUESTS[kind]
    whole = await nodes.undisturbed(request)
    assert whole.end is not None
    async with llama_server(BUILT_IN, ctx=512) as server:
        bare = await attached(server.url, only_openai=True)
        client = nodes.open(bare)
        assert not client.has_ids
        taken = await drive(request, [await nodes.life(6), Life(client, bare.ctx, server.pid)])
        given = await drive(request, [Life(client, bare.ctx, server.pid, 6), await nodes.life()])
    for result in (taken, given):
        assert result.text == whole.text
        assert result.end is not None
        assert result.end.finish_reason == whole.end.finish_reason


async def test_a_grammar_is_refused_by_a_server_with_the_openai_api_alone(nodes: Nodes) -> None:
    async with llama_server(BUILT_IN, ctx=512) as server:
        bare = await attached(server.url, only_openai=True)
        client = nodes.open(bare)
        with pytest.raises(EngineFailed, match="no grammar"):
            await drive(REQUESTS["grammar, greedy"], [await nodes.life(4), Life(client, bare.ctx, server.pid)])
