"""Nodes as processes: what the launcher promises, with real nodes."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from gguf import GGUFWriter

import llambo
from bench import make_model
from llambo.cluster.launch.base import (
    EMBEDDING,
    GENERATE,
    SLOT_FILES,
    TEMPLATE,
    TOKEN_IDS,
    NodeHandle,
    NodeRequest,
)
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.launch.rundir import LOGS_KEPT, RUN_PREFIX, NodeLogs, RunDir, prune_logs, sweep
from llambo.core import paths
from llambo.core.errors import BadModel, Cancelled, LlamboError, NameInUse, TimedOut
from llambo.core.types import LoadOptions
from llambo.engine import gguf, memory, policy
from llambo.node import sandbox
from llambo.node.spec import NodeSpec
from tests.cluster.clusters import until

SMALL = LoadOptions(ctx=128, slots=1, threads=1)
MIB = 2**20
BUILT_IN = Path(llambo.__file__).parent / "data" / "built-in.gguf"


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path / "run")
    yield launcher
    await launcher.close()
    assert not list((tmp_path / "run").glob("*")), "the run directory stays clean"


def request_for(model: Path, name: str = "n1") -> NodeRequest:
    return NodeRequest(name, str(model), SMALL)


async def test_a_spawned_node_serves_on_a_socket_in_a_directory_of_its_own(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    assert Path(node.socket_path).is_socket()
    assert Path(node.socket_path).parent.stat().st_mode & 0o777 == 0o700
    assert os.getpgid(node.pid) == node.pid  # a process group per node
    zygote = psutil.Process(node.pid).ppid()
    assert os.getpgid(zygote) == zygote, "a terminal's signals do not reach it"
    assert os.getsid(zygote) == os.getsid(0), "and it shares our scheduling group, in which niceness counts"


async def post(node: NodeHandle, path: str, **body: Any) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(node.socket_path)) as session,
        session.post(f"http://node{path}", json=body) as response,
    ):
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


async def test_a_node_that_is_one_of_many_is_nicer_than_who_started_it(
    launcher: LocalLauncher, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "usable_cores", lambda: 1)
    for number in range(1, 5):
        node = await launcher.spawn(request_for(tiny_model, f"n{number}"), timeout_s=30)
        added = policy.niceness_of(nodes=number, cores=1)
        assert (added > 0) == (number > 2)
        expected = os.nice(0) + added
        threads = [os.getpriority(os.PRIO_PROCESS, thread.id) for thread in psutil.Process(node.pid).threads()]
        assert threads == [expected] * len(threads)
        assert len(threads) > 1


async def test_a_node_says_what_it_is(launcher: LocalLauncher, tiny_model: Path) -> None:
    node = await launcher.spawn(NodeRequest("n3.2", str(tiny_model), LoadOptions(ctx=256, slots=2)), timeout_s=30)
    assert (node.name, node.address) == ("n3.2", f"unix://{node.socket_path}")
    assert (node.slots, node.ctx, node.model, node.machine) == (2, 256, "tiny", socket.gethostname())
    assert node.features == {GENERATE, TOKEN_IDS, TEMPLATE, SLOT_FILES}
    assert psutil.Process(node.pid).cwd() == str(Path(node.socket_path).parent)
    embedding = await launcher.spawn(NodeRequest("n4.1", str(tiny_model), SMALL, embedding=True), timeout_s=30)
    assert embedding.features == {EMBEDDING}


async def test_a_node_does_all_its_work_within_its_sandbox(launcher: LocalLauncher, tiny_model: Path) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    assert ("landlock-fs" in node.sandbox) == (sandbox.landlock_version() > 0)
    assert "no-new-privs" in node.sandbox
    answer = await post(node, "/completion", prompt="hello", n_predict=5, return_tokens=True)
    assert len(answer["tokens"]) == 5
    assert "hello" in (await post(node, "/apply-template", messages=[{"role": "user", "content": "hello"}]))["prompt"]
    embedding = await launcher.spawn(NodeRequest("n2", str(tiny_model), SMALL, embedding=True), timeout_s=30)
    assert (await post(embedding, "/v1/embeddings", input="hello"))["data"][0]["embedding"]
    status = Path(f"/proc/{node.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status


async def test_a_node_answers_while_all_its_slots_and_some_connections_are_taken(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(NodeRequest("n1", str(tiny_model), LoadOptions(ctx=128, slots=8)), timeout_s=30)
    held = [await asyncio.open_unix_connection(node.socket_path) for _ in range(8 + 3)]
    for _, writer in held:
        writer.write(b"POST /completion HTTP/1.1\r\nHost: node\r\n")  # a request that never ends
        await writer.drain()
    async with asyncio.timeout(10):
        assert (await post(node, "/tokenize", content="hello"))["tokens"]
    for _, writer in held:
        writer.close()
        await writer.wait_closed()


async def test_slots_are_saved_in_the_nodes_own_directory_and_restored_by_another(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    first = await launcher.spawn(request_for(tiny_model, "n1"), timeout_s=30)
    second = await launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30)
    here, there = launcher.slot_dir("n1"), launcher.slot_dir("n2")
    assert here is not None
    assert there is not None
    assert here.parent == Path(first.socket_path).parent
    assert here.stat().st_mode & 0o777 == 0o700
    prompt = "one two three four five six"
    await post(first, "/completion", prompt=prompt, n_predict=1)
    saved = await post(first, "/slots/0?action=save", filename="chat")
    (here / "chat").rename(there / "chat")
    restored = await post(second, "/slots/0?action=restore", filename="chat")
    assert restored["n_restored"] == saved["n_saved"] > 0
    answer = await post(second, "/completion", prompt=prompt, n_predict=1)
    assert answer["timings"]["cache_n"] > 0
    assert launcher.slot_dir("n9") is None


async def test_a_model_is_found_by_a_relative_path_and_through_a_link(
    launcher: LocalLauncher, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    assert (await launcher.spawn(NodeRequest("n1", "m.gguf", SMALL), timeout_s=30)).model == "m"


async def test_a_split_model_is_read_in_all_its_parts(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf.GGUFWriter", functools.partial(GGUFWriter, split_max_tensors=15))
    make_model.write(tmp_path / "m.gguf", make_model.PRESETS["tiny"])
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 1
    node = await launcher.spawn(request_for(parts[0]), timeout_s=30)
    assert (await post(node, "/completion", prompt="hello", n_predict=3))["tokens_predicted"] == 3


async def test_a_name_is_used_once(launcher: LocalLauncher, tiny_model: Path) -> None:
    await launcher.spawn(request_for(tiny_model), timeout_s=30)
    with pytest.raises(NameInUse, match="there is a node n1 already"):
        await launcher.spawn(request_for(tiny_model), timeout_s=30)
    await launcher.terminate("n1")
    await launcher.spawn(request_for(tiny_model), timeout_s=30)


async def test_a_stopped_node_can_be_terminated(launcher: LocalLauncher, tiny_model: Path) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    os.kill(node.pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        await launcher.terminate("n1")
    assert not psutil.pid_exists(node.pid)


async def test_terminate_returns_when_the_process_and_its_directory_are_gone(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    await launcher.terminate("n1")
    assert not psutil.pid_exists(node.pid)
    assert not Path(node.socket_path).parent.exists()
    await launcher.terminate("n1")  # once more is no error


async def test_a_killed_node_is_reported_with_its_signal(launcher: LocalLauncher, tiny_model: Path) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    os.kill(node.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        exited = await anext(launcher.watch())
    assert (exited.name, exited.pid) == ("n1", node.pid)
    assert exited.reason == "it was killed by signal 9 (SIGKILL)"


async def test_a_killed_zygote_takes_its_nodes_along_and_the_next_spawn_has_another(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    zygote = psutil.Process(node.pid).parent()
    assert zygote is not None
    zygote.kill()
    async with asyncio.timeout(10):
        assert (await anext(launcher.watch())).name == "n1"
    again = await launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30)
    assert psutil.pid_exists(again.pid)


async def test_all_nodes_of_a_killed_zygote_are_reported_and_the_next_spawn_need_not_wait_for_that(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    nodes = [await launcher.spawn(request_for(tiny_model, f"n{i}"), timeout_s=30) for i in range(3)]
    zygote = psutil.Process(nodes[0].pid).parent()
    assert zygote is not None
    zygote.kill()
    again = await launcher.spawn(request_for(tiny_model, "n3"), timeout_s=30)
    watch = launcher.watch()
    async with asyncio.timeout(10):
        exits = [await anext(watch) for _ in nodes]
    assert {exit.name for exit in exits} == {"n0", "n1", "n2"}
    assert {exit.pid for exit in exits} == {node.pid for node in nodes}
    assert psutil.pid_exists(again.pid)


async def test_a_stopped_zygote_does_not_keep_a_launcher_from_closing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llambo.cluster.launch.zygote.END_S", 0.5)
    launcher = LocalLauncher(tmp_path / "run")
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    process = psutil.Process(node.pid)
    zygote = process.parent()
    assert zygote is not None
    zygote.suspend()
    async with asyncio.timeout(10):
        await launcher.close()
    assert not psutil.wait_procs([process, zygote], timeout=5)[1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers that wait half a second for a zygote that does not answer."""
    monkeypatch.setattr("llambo.cluster.launch.local.ANSWER_S", 0.5)
    monkeypatch.setattr("llambo.cluster.launch.zygote.END_S", 0.5)


async def stop_zygote(launcher: LocalLauncher, model: Path) -> tuple[NodeHandle, psutil.Process]:
    """Stops the zygote of a node n0; both."""
    node = await launcher.spawn(request_for(model, "n0"), timeout_s=30)
    zygote = psutil.Process(node.pid).parent()
    assert zygote is not None
    zygote.suspend()
    return node, zygote


@pytest.mark.usefixtures("impatient")
async def test_a_node_of_a_stopped_zygote_can_be_terminated_and_the_others_live_on(
    launcher: LocalLauncher, tiny_model: Path
) -> None:
    other = await launcher.spawn(request_for(tiny_model, "n1"), timeout_s=30)
    node, zygote = await stop_zygote(launcher, tiny_model)
    async with asyncio.timeout(5):
        await launcher.terminate("n0")
    assert psutil.Process(node.pid).status() == psutil.STATUS_ZOMBIE, "it is dead, and its zygote cannot bury it"
    assert (await post(other, "/completion", prompt="hello", n_predict=1))["tokens_predicted"] == 1
    zygote.resume()
    again = await launcher.spawn(request_for(tiny_model, "n0"), timeout_s=30)
    assert again.pid != node.pid
    assert (await post(again, "/completion", prompt="hello", n_predict=1))["tokens_predicted"] == 1, (
        "the old one's end is not its own"
    )
    await launcher.terminate("n0")
    assert not psutil.pid_exists(node.pid)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("end", ["cancelled", "too late", "terminated"])
async def test_a_spawn_from_a_stopped_zygote_ends_in_time(launcher: LocalLauncher, tiny_model: Path, end: str) -> None:
    _, zygote = await stop_zygote(launcher, tiny_model)
    timeout_s = 0.2 if end == "too late" else 30
    spawning = asyncio.create_task(launcher.spawn(request_for(tiny_model), timeout_s=timeout_s))
    await until(lambda: launcher.slot_dir("n1"))
    async with asyncio.timeout(5):
        match end:
            case "cancelled":
                spawning.cancel()
            case "terminated":
                await launcher.terminate("n1")
        with pytest.raises((asyncio.CancelledError, TimedOut, Cancelled)):
            await spawning
        assert (await anext(launcher.watch())).name == "n0", "a zygote that might fork it yet is killed with its nodes"
    assert not psutil.wait_procs([zygote], timeout=5)[1]
    assert (await launcher.spawn(request_for(tiny_model), timeout_s=30)).name == "n1"


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_loads_is_ended_also_when_its_zygote_is_stopped(
    launcher: LocalLauncher, tiny_model: Path, stuck_model: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model, "n0"), timeout_s=30)
    zygote = psutil.Process(node.pid).parent()
    assert zygote is not None
    spawning = asyncio.create_task(launcher.spawn(request_for(stuck_model), timeout_s=30))
    await until(lambda: "n1" in launcher._nodes and launcher._nodes["n1"].pid)
    zygote.suspend()
    spawning.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await spawning
    zygote.resume()
    assert psutil.pid_exists(node.pid)


@pytest.mark.usefixtures("impatient")
async def test_closing_with_a_stopped_zygote_and_a_spawn_in_progress_does_not_hang(
    tiny_model: Path, tmp_path: Path
) -> None:
    launcher = LocalLauncher(tmp_path / "run")
    node, zygote = await stop_zygote(launcher, tiny_model)
    process = psutil.Process(node.pid)
    spawning = asyncio.create_task(launcher.spawn(request_for(tiny_model), timeout_s=30))
    await until(lambda: launcher.slot_dir("n1"))
    async with asyncio.timeout(5):
        await launcher.close()
        with pytest.raises(Cancelled):
            await spawning
    assert not psutil.wait_procs([process, zygote], timeout=5)[1]


@pytest.mark.usefixtures("impatient")
async def test_closing_while_a_zygote_that_is_stopped_starts_does_not_hang(tiny_model: Path, tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "run")
    spawning = asyncio.create_task(launcher.spawn(request_for(tiny_model), timeout_s=30))
    while launcher._zygote is None:
        await asyncio.sleep(0)
    for child in psutil.Process().children():
        child.suspend()
    async with asyncio.timeout(5):
        await launcher.close()
        with pytest.raises(LlamboError, match="the launcher is closed"):
            await spawning


async def test_an_order_that_every_zygote_dies_of_is_refused(
    launcher: LocalLauncher, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import os, signal
            def fork():
                with open({str(count)!r}, "a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            os.fork = fork
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LlamboError, match=r"3 zygotes ended before it was forked: .* killed by signal 9 \(SIGKILL\)"):
        await launcher.spawn(request_for(tiny_model), timeout_s=30)
    assert count.read_text() == "xxx"
    monkeypatch.delenv("PYTHONPATH")
    assert (await launcher.spawn(request_for(tiny_model), timeout_s=30)).name == "n1"


async def test_a_node_gets_no_secret_of_the_environment(
    launcher: LocalLauncher, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "LLAMA_API_KEY", "LLAMBO_HOME_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, "open-sesame")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    zygote = psutil.Process(node.pid).parent()
    assert zygote is not None
    for pid in (node.pid, zygote.pid):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"open-sesame" not in environment
        assert b"OMP_NUM_THREADS=1" in environment
        assert f"PATH={os.environ['PATH']}".encode() in environment


@pytest.mark.parametrize(
    ("ctx", "slots"), [(16, 1), (100, 3), (256, 1), (257, 2), (700, 3), (2000, 2), (2048, 1), (2100, 1), (5000, 3)]
)
async def test_a_node_says_the_context_that_its_engine_really_has(
    launcher: LocalLauncher, tiny_model: Path, ctx: int, slots: int
) -> None:
    node = await launcher.spawn(NodeRequest("n1", str(tiny_model), LoadOptions(ctx=ctx, slots=slots)), timeout_s=30)
    request = NodeRequest("n2", str(tiny_model), LoadOptions(ctx=ctx, slots=1), embedding=True)
    for each in (node, await launcher.spawn(request, timeout_s=30)):
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(each.socket_path)) as session,
            session.get("http://node/props") as response,
        ):
            props = await response.json()
        assert each.ctx == props["default_generation_settings"]["n_ctx"]
        assert each.slots == props["total_slots"]


@pytest.fixture
def stuck_model(tmp_path: Path) -> Path:
    """A model that never loads: its reader waits for a writer."""
    os.mkfifo(tmp_path / "stuck.gguf")
    return tmp_path / "stuck.gguf"


async def test_waiting_for_a_turn_is_no_part_of_the_time_to_load(
    tiny_model: Path, stuck_model: Path, tmp_path: Path
) -> None:
    launcher = LocalLauncher(tmp_path / "run", loads_at_once=1)
    try:
        await launcher.spawn(request_for(tiny_model, "n0"), timeout_s=30)
        stuck = asyncio.create_task(launcher.spawn(request_for(stuck_model, "n1"), timeout_s=3))
        await until(lambda: launcher.slot_dir("n1"))  # it has the one turn
        waiting = asyncio.create_task(launcher.spawn(request_for(tiny_model, "n2"), timeout_s=2.5))
        with pytest.raises(TimedOut, match=r"stuck\.gguf was not loaded within 3 s"):
            await stuck
        assert (await waiting).name == "n2"
    finally:
        await launcher.close()


async def test_a_node_that_waits_for_its_turn_can_be_cancelled(
    tiny_model: Path, stuck_model: Path, tmp_path: Path
) -> None:
    launcher = LocalLauncher(tmp_path / "run", loads_at_once=1)
    try:
        stuck = asyncio.create_task(launcher.spawn(request_for(stuck_model, "n1"), timeout_s=30))
        await until(lambda: launcher.slot_dir("n1"))  # it has the one turn
        waiting = asyncio.create_task(launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30))
        await until(lambda: "n2" in launcher._admission._claims)  # what is left is to wait for its turn
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await launcher.terminate("n1")
        with pytest.raises(Cancelled, match="node n1 was ended while it loaded"):
            await stuck
        assert (await launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30)).name == "n2"
    finally:
        await launcher.close()


async def test_a_spawn_that_is_cancelled_before_its_order_leaves_nothing_in_the_way_of_the_next(
    launcher: LocalLauncher, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = launcher._engines.complete
    asked = asyncio.Event()

    async def never(spec: NodeSpec, *, nodes: int) -> NodeSpec:
        asked.set()
        await asyncio.Event().wait()
        return spec

    monkeypatch.setattr(launcher._engines, "complete", never)
    spawning = asyncio.create_task(launcher.spawn(request_for(tiny_model), timeout_s=30))
    await asked.wait()
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    monkeypatch.setattr(launcher._engines, "complete", complete)
    assert (await launcher.spawn(request_for(tiny_model), timeout_s=30)).name == "n1"


async def test_closing_fails_the_spawns_that_wait_and_those_that_come(
    tiny_model: Path, stuck_model: Path, tmp_path: Path
) -> None:
    launcher = LocalLauncher(tmp_path / "run", loads_at_once=1)
    stuck = asyncio.create_task(launcher.spawn(request_for(stuck_model, "n1"), timeout_s=30))
    await until(lambda: launcher.slot_dir("n1"))  # it has the one turn
    waiting = asyncio.create_task(launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30))
    await until(lambda: "n2" in launcher._admission._claims)  # what is left is to wait for its turn
    await launcher.close()
    outcome = await asyncio.gather(stuck, waiting, return_exceptions=True)
    assert isinstance(outcome[0], Cancelled)
    assert str(outcome[1]) == "cannot start a node: the launcher is closed"
    with pytest.raises(LlamboError, match="the launcher is closed"):
        await launcher.spawn(request_for(tiny_model), timeout_s=30)
    assert not list((tmp_path / "run").glob("*"))


async def test_a_model_that_llama_cpp_refuses_is_an_error_with_its_last_words(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(BadModel, match=r"llama.cpp refused it; its log ends with: .*failed to load model"):
        await launcher.spawn(request_for(broken), timeout_s=30)
    assert not psutil.Process().children(recursive=True)[1:], "only the zygote lives"


async def test_a_node_that_is_not_ready_in_time_is_ended(launcher: LocalLauncher, tiny_model: Path) -> None:
    with pytest.raises(TimedOut, match="was not loaded within 0 s"):
        await launcher.spawn(request_for(tiny_model), timeout_s=0)
    assert not psutil.Process().children(recursive=True)[1:]


async def test_a_cancelled_spawn_leaves_no_node(launcher: LocalLauncher, tiny_model: Path) -> None:
    await launcher.spawn(request_for(tiny_model, "n0"), timeout_s=30)
    before = set(psutil.Process().children(recursive=True))
    spawning = asyncio.create_task(launcher.spawn(request_for(tiny_model), timeout_s=30))
    while set(psutil.Process().children(recursive=True)) == before:
        await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert set(psutil.Process().children(recursive=True)) == before


async def test_many_tiny_nodes_start_at_once_and_each_is_small(launcher: LocalLauncher) -> None:
    options = LoadOptions(ctx=512, slots=1, threads=1)
    requests = [NodeRequest(f"n{i}.1", str(BUILT_IN), options) for i in range(30)]
    nodes = await asyncio.gather(*(launcher.spawn(request, timeout_s=60) for request in requests))
    assert len({node.pid for node in nodes}) == 30
    await asyncio.gather(*(post(node, "/completion", prompt="What is a node?", n_predict=4) for node in nodes))
    processes = [psutil.Process(node.pid) for node in nodes]
    uss = max(process.memory_full_info().uss for process in processes)
    assert uss <= 12 * MIB
    estimate = memory.needed(gguf.read(BUILT_IN), ctx=512, slots=1).private_bytes
    assert uss <= estimate <= 12 * MIB, "what is admitted is what is used"
    # A connection adds one for as long as it is open.
    assert max(process.num_threads() for process in processes) <= 12
    async with asyncio.timeout(5):
        await asyncio.gather(*(launcher.terminate(node.name) for node in nodes))
    assert not any(psutil.pid_exists(node.pid) for node in nodes)


async def test_nodes_log_to_files_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "run", log_dir=tmp_path / "logs")
    try:
        node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
        assert node.log_path == str(tmp_path / "logs" / f"{os.getpid()}-n1.log")
        assert Path(node.log_path).exists()
    finally:
        await launcher.close()


async def test_a_node_that_is_killed_while_it_loads_is_an_error_that_says_so(
    launcher: LocalLauncher, stuck_model: Path
) -> None:
    spawning = asyncio.create_task(launcher.spawn(request_for(stuck_model), timeout_s=30))
    await until(lambda: "n1" in launcher._nodes and launcher._nodes["n1"].pid)
    os.kill(launcher._nodes["n1"].pid, signal.SIGKILL)
    with pytest.raises(BadModel, match=r"stuck.gguf cannot be loaded: the node ended: it was killed by signal 9"):
        await spawning


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_node_outlives_the_process_that_launched_it(number: int, tiny_model: Path, tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import asyncio, pathlib
        from llambo.cluster.launch.base import NodeRequest
        from llambo.cluster.launch.local import LocalLauncher
        from llambo.core.types import LoadOptions
        async def main():
            launcher = LocalLauncher(pathlib.Path({str(tmp_path / "run")!r}))
            node = await launcher.spawn(
                NodeRequest("n1", {str(tiny_model)!r}, LoadOptions(ctx=128, slots=1)), timeout_s=60)
            print(node.pid, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        node = psutil.Process(int(parent.stdout.readline()))
        zygote = node.parent()
        assert zygote is not None
        parent.send_signal(number)
    _, alive = psutil.wait_procs([node, zygote], timeout=10)
    assert not alive
    sweep(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*")), "the next start removes what a killed one had to leave"


def test_a_run_directory_that_is_swept_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make = paths.make_short_private_dir

    def make_and_lose(parent: Path, prefix: str, longest_name: str) -> Path:
        made.append(make(parent, prefix, longest_name))
        if len(made) == 1:
            sweep(made[0].parent)
        return made[-1]

    monkeypatch.setattr(paths, "make_short_private_dir", make_and_lose)
    run_dir = RunDir(tmp_path)
    try:
        assert (run_dir.path, made[0].exists()) == (made[1], False)
        assert run_dir.make_node_dir("n1").is_dir()
    finally:
        run_dir.remove()


async def test_sweeping_spares_the_directories_of_living_launchers(
    launcher: LocalLauncher, tiny_model: Path, tmp_path: Path
) -> None:
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    left = tmp_path / "run" / f"{RUN_PREFIX}left"
    left.mkdir()
    sweep(tmp_path / "run")
    assert Path(node.socket_path).exists()
    assert not left.exists()


async def test_a_process_that_cannot_be_made_is_told_and_the_others_go_on(
    launcher: LocalLauncher, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The system refuses the second fork; Python reads this module at the zygote's start.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import errno, itertools, os
            real, calls = os.fork, itertools.count(1)
            def fork():
                if next(calls) == 2:
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                return real()
            os.fork = fork
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = await launcher.spawn(request_for(tiny_model), timeout_s=30)
    with pytest.raises(LlamboError, match="the system makes no process for it: Resource temporarily unavailable"):
        await launcher.spawn(request_for(tiny_model, "n2"), timeout_s=30)
    await launcher.spawn(request_for(tiny_model, "n3"), timeout_s=30)
    assert psutil.pid_exists(node.pid)


async def test_a_place_for_logs_that_is_none_is_told(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    launcher = LocalLauncher(tmp_path / "run", log_dir=tmp_path / "logs")
    with pytest.raises(LlamboError, match="logs is in the way"):
        await launcher.spawn(request_for(tiny_model), timeout_s=30)
    await launcher.close()


def nobody() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_of_launchers_that_are_gone_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    gone = nobody()
    for number in range(LOGS_KEPT + 10):
        path = tmp_path / f"{gone}-n{number}.log"
        path.touch()
        os.utime(path, (number, number))
    prune_logs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{gone}-n{i}.log" for i in range(10, LOGS_KEPT + 10)}


def test_the_logs_of_living_launchers_are_never_pruned(tmp_path: Path) -> None:
    for number in range(LOGS_KEPT + 10):
        (tmp_path / f"{os.getpid()}-n{number}.log").touch()
    (tmp_path / "notes.log").touch()
    prune_logs(tmp_path)
    assert len(list(tmp_path.iterdir())) == LOGS_KEPT + 11


def test_the_logs_of_all_living_nodes_and_of_the_last_that_ended_are_kept(tmp_path: Path) -> None:
    logs = NodeLogs(tmp_path / "logs")
    paths = [logs.path_of(f"n{number}.1") for number in range(LOGS_KEPT + 20)]
    for path in paths:
        path.touch()
    for number in range(LOGS_KEPT + 5):
        logs.node_ended(f"n{number}.1")
    assert [path.exists() for path in paths] == [False] * 5 + [True] * (LOGS_KEPT + 15)
