"""The bridge in front of a real cluster with real nodes."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from bridge_fakes import PATIENCE_S, RawClient

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.remote import BridgeDoor
from llambo.bridge.server import BridgeServer
from llambo.cluster.api import Cluster
from llambo.core.errors import TimedOut
from llambo.core.types import Done, GenerateRequest, Sampling, TokenEvent

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # what differs between loops is tested without models


@dataclass(frozen=True)
class Real:
    cluster: Cluster
    server: BridgeServer
    path: Path

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RawClient]:
        client = await RawClient.open(self.path)
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
async def empty(path: Path) -> AsyncIterator[Real]:
    async with Cluster() as cluster:
        server = BridgeServer(cluster, path)
        await server.start()
        yield Real(cluster, server, path)
        await server.stop(0)


@pytest.fixture
async def real(empty: Real, walk_model: Path) -> Real:
    async with empty.client() as client:
        answer = await client.ask(f"LOAD as=walk ctx=2048 slots=1 threads=1 {walk_model}")
        assert answer["data"] == {"name": "walk", "path": str(walk_model), "ctx": 2048, "slots": 1}
    return empty


async def begin(client: RawClient, line: str = "INFER_STREAM hello") -> None:
    """Returns once tokens come."""
    assert (await client.ask(line))["message"] == "Starting token generation"
    assert (await client.line())["token"]


async def last_of(client: RawClient) -> dict[str, object]:
    while not (line := await client.line()).get("final"):
        pass
    return line


def processes() -> set[int]:
    """What runs below this process."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def until(condition: Callable[[], bool]) -> None:
    """Returns once it holds of something that nobody tells of."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def assert_no_session_is_open(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()
    assert "Unclosed" not in caplog.text


async def test_a_stream_is_the_same_text_as_the_whole_answer(real: Real) -> None:
    async with real.client() as client:
        options = "max_tokens=20 temperature=0"
        whole = await client.ask(f"INFER {options} hello")
        assert (whole["tokens"], whole["finish_reason"], whole["model"]) == (20, "length", "walk")
        assert (await client.ask(f"INFER_STREAM {options} hello"))["status"] == "ok"
        text = ""
        while not (line := await client.line()).get("final"):
            text += line["token"]
        assert text == whole["data"]
        assert line["tokens"] == 20
        assert line["prompt_tokens"] == whole["prompt_tokens"] > line["cached_tokens"] > 0
        status = await client.ask("STATUS")
        assert status["data"]["requests"] == 2
        assert status["data"]["tokens"] == 40


async def test_several_prompts_tokens_and_embeddings(real: Real) -> None:
    async with real.client() as client:
        multi = await client.ask("INFER_MULTI raw=true max_tokens=5 temperature=0 hello||there||hello")
        assert multi["tokens"] == 15
        assert multi["data"][0] == multi["data"][2] != multi["data"][1]
        ids = (await client.ask("TOKENIZE hello"))["data"]
        assert ids
        assert all(isinstance(one, int) for one in ids)
        vector = (await client.ask("EMBED hello"))["data"]
        assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-3)


async def test_a_door_through_the_bridge_gives_the_events_of_the_cluster(real: Real) -> None:
    request = GenerateRequest.from_prompt("hello", sampling=Sampling(10, 0.0), model="walk")
    near = [event async for event in real.cluster.generate(request)]
    async with AsyncBridge.connect(str(real.path)) as client:
        far = [event async for event in BridgeDoor(client).generate(request)]
    assert [event for event in far if isinstance(event, TokenEvent)] == near[:-1]
    assert isinstance(far[-1], Done)
    assert far[-1].tokens == 10


async def test_hanging_up_gives_the_only_slot_back(real: Real) -> None:
    for line in ("INFER_STREAM hello", "INFER hello"):
        async with real.client() as client:
            if line.startswith("INFER_STREAM"):
                await begin(client, line)
            else:
                client.send(f"{line}\n")
        async with real.client() as client:
            assert (await client.ask("INFER max_tokens=2 hello"))["tokens"] == 2


async def test_cancel_stops_the_engine(real: Real) -> None:
    async with real.client() as client:
        await begin(client)
        client.send("CANCEL\n")
        last = await last_of(client)
        assert last["finish_reason"] == "cancelled"
        assert 0 < int(str(last["tokens"])) < 2000
        assert (await client.line())["message"] == "Cancelled"
        assert (await client.ask("INFER max_tokens=2 hello"))["tokens"] == 2


async def test_free_during_a_stream_ends_it_and_the_node(real: Real) -> None:
    async with real.client() as client, real.client() as other:
        pid = (await other.ask("MODELS"))["data"][0]["pid"]
        await begin(client)
        assert (await other.ask("FREE walk"))["status"] == "ok"
        last = await last_of(client)
        assert (last["status"], last["code"]) == ("error", "node_lost")
        assert not psutil.pid_exists(pid)
        assert (await other.ask("STATUS"))["message"] == "No model loaded"
        assert (await client.ask("INFER x"))["code"] == "no_model"


async def test_a_stream_goes_on_over_the_death_of_its_node(empty: Real, walk_model: Path) -> None:
    async with empty.client() as client, empty.client() as other:
        await client.ask(f"LOAD as=walk ctx=4096 slots=1 threads=1 {walk_model}")
        before = (await other.ask("MODELS"))["data"][0]
        client.send("INFER_STREAM max_tokens=1500 temperature=0 hello\n")
        assert (await client.line())["status"] == "ok"
        assert (await client.line())["type"] == "token"
        client.send("PING\n")
        os.kill(before["pid"], signal.SIGKILL)
        last = await last_of(client)
        assert (last["tokens"], last["failovers"], last["finish_reason"]) == (1500, 1, "length")
        assert (await client.line())["data"] == "pong"
        assert (await other.ask("MODELS"))["data"][0]["pid"] != before["pid"]


async def test_two_loads_at_once(empty: Real, walk_model: Path, tiny_model: Path) -> None:
    async with empty.client() as first, empty.client() as second:
        for client in (first, second):
            client.send(f"LOAD as=same ctx=256 threads=1 {walk_model}\n")
        assert [(await client.line())["status"] for client in (first, second)] == ["ok", "ok"]
        assert len((await first.ask("MODELS"))["data"]) == 1
        assert (await first.ask(f"LOAD as=same {tiny_model}"))["code"] == "name_in_use"


async def test_ping_is_answered_while_a_model_loads(empty: Real, walk_model: Path) -> None:
    async with empty.client() as loading, empty.client() as other:
        loading.send(f"LOAD ctx=256 threads=1 {walk_model}\n")
        loaded = asyncio.create_task(loading.line())
        pings = 0
        while not loaded.done():
            assert (await other.ask("PING"))["data"] == "pong"
            pings += 1
        assert (await loaded)["status"] == "ok"
        assert pings > 20, "a bridge that stands still while it loads answers one, or one at each step"


async def test_a_client_that_hangs_up_during_a_load_gives_it_up(empty: Real, walk_model: Path) -> None:
    line = f"LOAD as=walk ctx=256 threads=1 {walk_model}\n"
    async with empty.client() as other:
        await other.ask(line.strip())
        await other.ask("FREE")
        before = processes()
        async with empty.client() as client:
            client.send(line)
            await until(lambda: bool(empty.cluster._loads._loading))
        while empty.cluster._loads._loading:
            assert (await other.ask("MODELS"))["data"] == []
        assert (await other.ask("MODELS"))["data"] == []
        await until(lambda: processes() == before)
        assert (await other.ask(line.strip()))["status"] == "ok", "its name is free again"


async def test_a_load_that_times_out_is_given_up(empty: Real, walk_model: Path) -> None:
    async with AsyncBridge.connect(str(empty.path)) as client:
        with pytest.raises(TimedOut):
            await client.load_model(str(walk_model), "walk", ctx=256, threads=1, timeout_s=0.01)
        await until(lambda: not empty.cluster._loads._loading)
        assert await client.models() == []


async def test_a_load_goes_on_while_somebody_waits_for_it(empty: Real, walk_model: Path) -> None:
    async with empty.client() as stays:
        async with empty.client() as goes:
            for client in (goes, stays):
                client.send(f"LOAD as=walk ctx=256 threads=1 {walk_model}\n")
            await until(lambda: any(loading.waiters == 2 for loading in empty.cluster._loads._loading.values()))
        assert (await stays.line())["data"]["name"] == "walk"
        assert (await stays.ask("INFER max_tokens=2 hello"))["tokens"] == 2


async def test_free_while_an_embedding_is_made_leaves_nothing(real: Real, caplog: pytest.LogCaptureFixture) -> None:
    async with real.client() as client, real.client() as other:
        node = (await other.ask("MODELS"))["data"][0]["pid"]
        without_node = processes() - {node}
        client.send("EMBED hello\n")  # the first one starts a node for it
        await until(lambda: len(processes() - without_node) > 1)
        assert (await other.ask("FREE walk"))["status"] == "ok"
        assert (await client.line())["code"] in ("no_model", "node_lost")
        await until(lambda: processes() == without_node)
        assert (await other.ask("MODELS"))["data"] == []
    assert_no_session_is_open(caplog)


async def test_hanging_up_during_free_frees_all_the_same(
    real: Real, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with real.client() as other:
        node = (await other.ask("MODELS"))["data"][0]["pid"]
        without_node = processes() - {node}
        await other.ask("EMBED hello")
        begun, gate = asyncio.Event(), asyncio.Event()
        launcher = real.cluster._runtime._launchers["local"]
        terminate = launcher.terminate

        async def terminate_later(name: str) -> None:
            begun.set()
            await gate.wait()
            await terminate(name)

        monkeypatch.setattr(launcher, "terminate", terminate_later)
        async with real.client() as client:
            client.send("FREE walk\n")
            await begun.wait()
        await until(lambda: len(real.server._house.sessions) == 1)
        gate.set()
        await until(lambda: processes() == without_node)
        assert (await other.ask("STATUS"))["message"] == "No model loaded"
    assert_no_session_is_open(caplog)


async def test_what_is_no_model_is_told_and_what_runs_goes_on(real: Real, tmp_path: Path, walk_model: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("no model at all")
    (tmp_path / "half.gguf").write_bytes(walk_model.read_bytes()[:200_000])
    async with real.client() as client:
        for name in ("missing.gguf", "empty.gguf", "text.gguf", "half.gguf", "."):
            answer = await client.ask(f"LOAD {tmp_path / name}")
            assert answer["code"] == "bad_model", name
            assert str(tmp_path) in answer["message"]
        assert (await client.ask("INFER max_tokens=2 hello"))["tokens"] == 2


async def test_a_prompt_longer_than_the_context_is_told_with_both_numbers(real: Real) -> None:
    async with real.client() as client:
        answer = await client.ask("INFER " + "hello " * 3000)
        assert answer["code"] == "prompt_too_long"
        assert "2048" in answer["message"]
        assert (await client.ask("INFER model=other hello"))["code"] == "not_found"


async def test_several_nodes_vote_over_a_line_and_a_client_that_hangs_up_frees_them_all(empty: Real) -> None:
    await empty.cluster.spawn(3, model="built-in", slots=1)
    asked = "fusion=majority-vote nodes=3 temperature=0 max_tokens=8 What is a node?"
    async with empty.client() as client:
        client.send(f"INFER_STREAM {asked}\n")
        started, *lines = [await client.line()]
        assert started["status"] == "ok"
        while not (lines and lines[-1].get("final")):
            lines.append(await client.line())
        kinds = [line["type"] for line in lines]
        votes = kinds.count("vote")
        assert votes >= 2
        assert kinds == ["vote"] * votes + ["token"] * (len(kinds) - votes)
        outcome = lines[-1]["fusion"]
        assert (outcome["strategy"], outcome["asked"], outcome["agreement"]) == ("majority-vote", 3, 1.0)
        assert "".join(line["token"] for line in lines[votes:]) == outcome["votes"][0]["text"]
        client.send("INFER_STREAM fusion=quorum nodes=3 max_tokens=1000 raw=true A node\n")
        assert (await client.line())["status"] == "ok"
        while not empty.cluster.status().busy:
            await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        while empty.cluster.status().busy:
            await asyncio.sleep(0.01)
    async with AsyncBridge.connect(str(empty.path)) as client:
        whole = await client.complete("What is a node?", fusion="token-average", nodes=2, temperature=0, max_tokens=8)
        assert whole.fusion is not None
        assert whole.text == outcome["votes"][0]["text"]
