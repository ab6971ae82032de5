"""Headers go out with what follows them, in order, and nothing is held back for longer than a turn of the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from http_servers import connect, ends, header, serving

from llambo.gateway.cork import MOST_BYTES, Cork


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.written.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


@pytest.fixture
async def corked() -> tuple[Cork, list[bytes], _Transport]:
    transport = _Transport()
    return Cork(transport, asyncio.get_running_loop()), transport.written, transport


Corked = tuple[Cork, list[bytes], _Transport]


async def test_pieces_of_one_turn_go_out_together_and_those_of_the_next_by_themselves(corked: Corked) -> None:
    cork, written, _ = corked
    cork.write(b"head")
    cork.write(b"first")
    assert written == []
    await asyncio.sleep(0)
    assert written == [b"headfirst"]
    cork.write(b"second")
    await asyncio.sleep(0)
    assert written == [b"headfirst", b"second"]


async def test_what_is_sent_goes_out_at_once_behind_what_is_held(corked: Corked) -> None:
    cork, written, _ = corked
    cork.write(b"head")
    cork.send(b"first")
    assert written == [b"headfirst"]
    cork.send(b"second")
    assert written == [b"headfirst", b"second"]
    await asyncio.sleep(0)
    assert written == [b"headfirst", b"second"]


async def test_much_is_not_held(corked: Corked) -> None:
    cork, written, _ = corked
    cork.write(b"a" * (MOST_BYTES - 1))
    assert written == []
    cork.write(b"b")
    assert list(map(len, written)) == [MOST_BYTES]
    cork.write(b"c")
    await asyncio.sleep(0)
    assert written[1:] == [b"c"]


async def test_a_close_sends_what_is_held_first(corked: Corked) -> None:
    cork, written, transport = corked
    cork.write(b"all")
    cork.close()
    assert written == [b"all"] and transport.is_closed and cork.is_closing()
    await asyncio.sleep(0)
    assert written == [b"all"]


async def test_a_connection_that_is_gone_is_told_nothing(corked: Corked) -> None:
    cork, written, transport = corked
    cork.write(b"too late")
    transport.is_closed = True
    await asyncio.sleep(0)
    assert written == []


@pytest.mark.parametrize("what", ["refusal", "stop"])
async def test_an_answer_comes_whole_and_before_what_happens_in_the_same_turn(tmp_path: Path, what: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"all"})
        (connection,) = server._state.connections
        if what == "refusal":
            connection.data_received(b"this is no HTTP\r\n\r\n")  # type: ignore[union-attr]
        else:
            connection.shutdown()

    async with serving(tmp_path, app) as server:
        reader, writer = await connect(server)
        writer.write(header())
        answer = await ends(reader)
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\nall")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert rest[:12] == (b"HTTP/1.1 400" if what == "refusal" else b"")
