"""The source of tokens that the gateway's benchmarks relay from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from bench import source
from bench.load import Span, Target, Workload, run
from bench.source import MODEL, source_process
from llambo.cluster.launch.attach import AttachLauncher
from llambo.cluster.launch.base import GENERATE, NodeRequest
from llambo.core.types import LoadOptions


async def test_it_gives_so_many_tokens_at_the_pace_asked_for(tmp_path: Path) -> None:
    with source_process(f"{tmp_path}/s.sock", 2) as url:
        target = Target.parse(url)
        full = await run(target, Workload(max_tokens=Span(2000, 2000)), requests=4, streams=2)
        assert [(outcome.reason, outcome.tokens) for outcome in full] == [("", 2000)] * 4
        paced = await run(target, Workload(max_tokens=Span(11, 11), extra={"pace_ms": 10}), requests=2, streams=2)
        assert all(outcome.tokens == 11 and outcome.last_s - outcome.first_s > 0.09 for outcome in paced)
        whole = await run(target, Workload(max_tokens=Span(7, 7), streams=False), requests=1)
        assert (whole[0].reason, whole[0].tokens) == ("", 7)


async def test_it_can_be_attached_as_a_llama_server(tmp_path: Path) -> None:
    launcher = AttachLauncher()
    with source_process(f"{tmp_path}/s.sock", 5) as url:
        handle = await launcher.spawn(NodeRequest("n1", "", LoadOptions(), url=url), timeout_s=10)
        await launcher.close()
    assert (handle.model, handle.slots, GENERATE in handle.features) == (MODEL, 5, True)


async def test_a_reader_that_is_behind_at_the_last_token_still_gets_the_end() -> None:
    written: list[bytes] = []
    connection = source._Connection(1)

    class Reader(asyncio.Transport):
        def write(self, data: Any) -> None:
            written.append(data)
            if data == source._TOKEN:
                connection.pause_writing()

    connection.connection_made(Reader())
    body = b'{"stream": true, "max_tokens": 1}'
    head = b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.data_received(head + body)
    await asyncio.sleep(0)
    assert written[-1] == source._TOKEN
    connection.resume_writing()
    assert written[-1] == source._END
