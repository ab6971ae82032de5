"""The load generator against servers: good ones, and such as refuse, hang, talk nonsense or break off."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load import Span, Target, Workload, run, summarise, wire
from bench.load.__main__ import main
from llambo.cluster.launch.base import UNIX, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core.types import LoadOptions
from tests.bench.servers import STREAM, says, server

ROOT = Path(__file__).parent.parent.parent


async def program(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """What `python -m bench.load` says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", *arguments, cwd=ROOT, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def refusing() -> Iterator[Target]:
    """A port where nobody listens, and which nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield Target("127.0.0.1", taken.getsockname()[1])


async def test_a_node_answers_every_kind_of_request(tmp_path: Path, walk_model: Path) -> None:
    launcher = LocalLauncher(tmp_path)
    try:
        request = NodeRequest("n1", str(walk_model), LoadOptions(ctx=256, slots=4, threads=1))
        target = Target("localhost", 0, (await launcher.spawn(request, timeout_s=60)).address.removeprefix(UNIX))
        for endpoint in ("chat", "completions"):
            workload = Workload(endpoint=endpoint, max_tokens=Span(5, 5), extra={"ignore_eos": True})
            outcomes = await run(target, workload, requests=9, streams=4)
            assert [outcome.reason for outcome in outcomes] == [""] * 9
            assert all(0 < outcome.tokens <= 5 for outcome in outcomes)
            assert all(outcome.sent_s < outcome.first_s <= outcome.last_s for outcome in outcomes)
        whole = Workload(streams=False, max_tokens=Span(5, 5), extra={"ignore_eos": True})
        assert [outcome.tokens for outcome in await run(target, whole, requests=3)] == [5, 5, 5]
        paced = await run(target, whole, requests=3, arrivals_s=[0, 0.01, 0.02])
        assert [outcome.tokens for outcome in paced] == [5, 5, 5]
    finally:
        await launcher.close()


async def test_the_closed_loop_has_so_many_requests_at_once_and_keeps_its_connections() -> None:
    async with server(says(STREAM)) as seen:
        three = asyncio.Barrier(3)

        async def answer(writer: asyncio.StreamWriter) -> None:
            async with three:  # three at a time, or the test hangs
                writer.write(STREAM)

        seen.answer = answer
        outcomes = await run(seen.target, Workload(), requests=12, streams=3, timeout_s=20)
    assert [outcome.reason for outcome in outcomes] == [""] * 12
    assert (seen.most_in_flight, seen.connections) == (3, 3)


async def test_the_open_loop_sends_on_time_whatever_became_of_earlier_requests() -> None:
    all_there = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        if len(seen.bodies) == 20:
            all_there.set()
        await all_there.wait()
        writer.write(STREAM)

    async with server(answer) as seen:
        outcomes = await run(seen.target, Workload(), requests=20, arrivals_s=[0.001 * n for n in range(20)])
    assert [outcome.reason for outcome in outcomes] == [""] * 20
    assert seen.most_in_flight == 20
    assert sorted(seen.bodies) == sorted(Workload().body(number) for number in range(20))


async def test_latencies_count_from_the_planned_moment_also_when_the_generator_was_late() -> None:
    async with server(says(STREAM)) as seen:
        outcomes = await run(seen.target, Workload(), requests=2, arrivals_s=[-60, -30])
    summary = summarise(outcomes)
    assert (summary.ttft["p50"] or 0) >= 30_000 and (summary.ttft["max"] or 0) >= 60_000
    assert (summary.client_late["max"] or 0) >= 60_000


async def test_a_kept_connection_that_has_ended_is_replaced_and_nothing_fails() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)  # which promises to keep it
        writer.close()

    async with server(answer) as seen:
        outcomes = await run(seen.target, Workload(), requests=6, streams=1)
    assert [outcome.reason for outcome in outcomes] == [""] * 6
    assert seen.connections >= 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", wire.NOT_HTTP),
        (b"\x00\xff" * 5000, wire.NOT_HTTP),
        (STREAM[:120], wire.BROKEN_OFF),
        (b"", wire.BROKEN_OFF),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "status 503"),
    ],
)
async def test_a_bad_server_is_counted_and_named(data: bytes, reason: str) -> None:
    async with server(says(data, close=True)) as seen:
        summary = summarise(await run(seen.target, Workload(), requests=5, streams=2))
    assert (summary.ok, summary.by_reason) == (0, {reason: 5})


async def test_a_server_that_hangs_is_given_up(refusing: Target) -> None:
    async def hang(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM[:130])
        await asyncio.Event().wait()

    async with server(hang) as seen:
        summary = summarise(await run(seen.target, Workload(), requests=3, streams=3, timeout_s=0.5))
    assert summary.by_reason == {wire.TIMEOUT: 3}
    assert summary.by_status == {"200": 3}
    summary = summarise(await run(refusing, Workload(), requests=3))
    assert (summary.by_reason, summary.by_status) == ({wire.UNREACHABLE: 3}, {"none": 3})


async def test_the_program_tells_in_json_and_by_its_status_what_failed(refusing: Target) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        late = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
        writer.write(STREAM if len(seen.bodies) != 2 else late)

    async with server(answer) as seen:
        arguments = [str(seen.target), "--requests", "4", "--streams", "1", "--json", "--api-key-env", "SOME_KEY"]
        status, out, err = await program(*arguments, SOME_KEY="hush-1")
        document = json.loads(out)
        assert (status, err, document["by_reason"], document["tokens"]) == (1, "", {"status 429": 1}, 3)
        assert document["client_cpu_us_per_token"] > 0
        assert all(b"Authorization: Bearer hush-1\r\n" in head for head in seen.heads)
        assert "hush-1" not in out
        assert (await program(str(seen.target), "--requests", "2"))[0] == 0
    status, out, err = await program(str(refusing), "--requests", "2")
    assert (status, err) == (1, "") and "unreachable: 2" in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ftp://host"],
        ["http://h", "--mode", "open"],
        ["http://h", "--rate", "3"],
        ["http://h", "--requests", "0"],
        ["http://h", "--max-tokens", "9-3"],
        ["http://h", "--extra", "[1]"],
        ["http://h:99999"],
        ["http://h", "--api-key-env", "NOT_SET_ANYWHERE"],
    ],
)
def test_bad_usage_is_status_2_and_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_url_may_be_written_in_every_usual_way() -> None:
    assert Target.parse("http://h:80/v1") == Target.parse("http://h") == Target("h", 80)
    assert str(Target.parse("https://h/api/v1/")) == "https://h:443/api"
    assert str(Target.parse("http://[::1]:8080")) == "http://[::1]:8080"
    assert Target.parse("unix:///run/x.sock").socket_path == "/run/x.sock"
