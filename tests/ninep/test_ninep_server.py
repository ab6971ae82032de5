"""The server under what clients do: waiting, flushing, hanging up, sending nonsense, asking for too much."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ninep_world import WAIT_S, World, dialled, serving

from llambo.core.errors import BadConfig, NameInUse, Refused
from llambo.ninep import connection
from llambo.ninep import messages as m
from llambo.ninep.files import StaticDirectory, TextFile
from llambo.ninep.requests import Limits
from llambo.ninep.server import FileServer, ServerSettings
from llambo.ninep.tree import Handle, Node, Peer
from llambo.ninep.wire import decode_directory, encode


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def address(world: World, tmp_path: Path) -> AsyncIterator[str]:
    async with serving(world, tmp_path) as (_, address):
        yield address


async def until(world: World, *entries: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while world.log[-len(entries) :] != list(entries):
            await asyncio.sleep(0)


async def test_a_blocked_read_holds_up_nothing(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        wire.send(m.Tread(1, 1, 0, 100), m.Tread(2, 1, 0, 100), m.Tstat(3, 0))
        assert isinstance(await wire.receive(), m.Rstat)
        world.gate.set()
        assert [await wire.receive(), await wire.receive()] == [m.Rread(1, b"through"), m.Rread(2, b"through")]


async def test_coroutines_and_plain_handlers_start_in_the_order_of_their_requests(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("ctl", mode=m.OWRITE)
        assert isinstance(await wire.ask(m.Twalk(0, 0, 2, ("notes",))), m.Rwalk)
        assert isinstance(await wire.ask(m.Topen(0, 2, m.OWRITE)), m.Ropen)
        wire.send(
            m.Twrite(1, 1, 0, b"say a"), m.Twrite(2, 2, 0, b"b"), m.Twrite(3, 1, 0, b"say c"), m.Twrite(4, 2, 1, b"d")
        )
        assert [(await wire.receive()).tag for _ in range(4)] == [1, 2, 3, 4]
        assert world.log == ["a", "0:b", "c", "1:d"]


async def test_a_flush_cancels_the_handler_and_is_answered_alone(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        wire.send(m.Tread(1, 1, 0, 100), m.Tflush(2, 1))
        assert await wire.receive() == m.Rflush(2)
        assert world.log == ["read", "cancelled"]
        world.gate.set()
        assert await wire.ask(m.Tread(1, 1, 0, 100)) == m.Rread(1, b"through")


async def test_an_answer_that_was_quicker_than_its_flush_comes_first(world: World, address: str) -> None:
    world.gate.set()
    async with dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        assert await wire.ask(m.Tread(1, 1, 0, 100)) == m.Rread(1, b"through")
        assert await wire.ask(m.Tflush(2, 1)) == m.Rflush(2)


async def test_a_clunk_ends_reads_then_closes_then_is_answered(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        wire.send(m.Tread(1, 1, 0, 100), m.Tread(2, 1, 0, 100), m.Tclunk(3, 1))
        answers = [await wire.receive() for _ in range(3)]
        assert answers == [m.Rerror(1, "interrupted"), m.Rerror(2, "interrupted"), m.Rclunk(3)]
        assert world.log == ["read", "read", "cancelled", "cancelled", "close"]


async def test_requests_wait_for_an_opening_under_way_and_others_do_not(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("slow")
        wire.send(
            m.Topen(1, 1, m.ORDWR), m.Twrite(2, 1, 0, b"x"), m.Tread(3, 1, 0, 9), m.Tread(4, 1, 0, 9), m.Tstat(5, 0)
        )
        assert isinstance(await wire.receive(), m.Rstat)
        assert await wire.ask(m.Tflush(6, 3)) == m.Rflush(6)
        assert world.log == ["open"]
        world.gate.set()
        assert isinstance(await wire.receive(), m.Ropen)
        assert [await wire.receive(), await wire.receive()] == [m.Rwrite(2, 1), m.Rread(4, b"through")]
        assert world.log == ["open", "write x", "read"]


async def test_a_clunk_ends_an_opening_under_way(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("slow")
        wire.send(m.Topen(1, 1, m.OREAD), m.Tread(2, 1, 0, 9), m.Tclunk(3, 1))
        answers = [await wire.receive() for _ in range(3)]
        assert answers == [m.Rerror(2, "interrupted"), m.Rerror(1, "interrupted"), m.Rclunk(3)]


async def test_a_flushed_opening_leaves_the_fid_as_it_was(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("slow")
        wire.send(m.Topen(1, 1, m.OREAD), m.Tflush(2, 1))
        assert await wire.receive() == m.Rflush(2)
        world.gate.set()
        assert isinstance(await wire.ask(m.Topen(1, 1, m.OREAD)), m.Ropen)


async def test_a_hang_up_cancels_and_closes_everything(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        wire.send(m.Tread(1, 1, 0, 100))
        await until(world, "read")
    await until(world, "read", "cancelled", "close")


async def test_a_new_version_cancels_and_closes_everything(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        wire.send(m.Tread(1, 1, 0, 100))
        await wire.ask(m.Tversion(m.NOTAG, 8192, m.VERSION))
        await until(world, "read", "cancelled", "close")


async def test_a_hang_up_in_the_middle_of_any_message_is_a_hang_up(world: World, tmp_path: Path) -> None:
    whole = [encode(m.Twrite(1, 1, 0, b"abc")), encode(m.Twalk(1, 0, 2, ("status",))), encode(m.Tflush(1, 2))]
    async with serving(world, tmp_path) as (server, address):
        for message in whole:
            for length in range(1, len(message)):
                async with dialled(address) as wire:
                    await wire.hello("notes", mode=m.OWRITE)
                    wire.writer.write(message[:length])
        async with asyncio.timeout(WAIT_S):
            while server.connection_count:
                await asyncio.sleep(0)
    assert world.log == []


GOOD = encode(m.Tread(1, 1, 0, 10))
NONSENSE = {
    "too short": struct.pack("<IBH", 6, 116, 1),
    "too long": struct.pack("<IBH", 8193, 116, 1),
    "an unknown type": struct.pack("<IBH", 7, 200, 1),
    "Terror": struct.pack("<IBHH", 9, 106, 1, 0),
    "an answer": encode(m.Rclunk(1)),
    "a body that ends early": struct.pack("<IBH", 7, 116, 1),
    "a body with more behind it": struct.pack("<I", len(GOOD) + 1) + GOOD[4:] + b"x",
    "a text longer than its message": struct.pack("<IBHIIHHs", 20, 110, 1, 0, 2, 1, 500, b"x"),
    "a write of more than there is": struct.pack("<IBHIQI", 23, 118, 1, 1, 0, 100),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_ends_its_own_connection_after_what_came_before_it(
    what: str, world: World, address: str
) -> None:
    async with dialled(address) as wire, dialled(address) as other:
        await other.hello("gate", mode=m.OREAD)
        other.send(m.Tread(1, 1, 0, 100))
        await until(world, "read")
        await wire.hello("gate", mode=m.OREAD)
        wire.writer.write(encode(m.Tread(9, 1, 0, 5)) + encode(m.Tstat(1, 0)) + NONSENSE[what])
        assert isinstance(await wire.receive(), m.Rstat)
        assert await wire.is_hung_up()
        await until(world, "cancelled", "close")
        world.gate.set()
        assert await other.receive() == m.Rread(1, b"through")


async def test_a_name_that_is_no_text_is_refused_and_ends_nothing(address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello()
        assert await wire.ask(m.Twalk(1, 0, 1, ("\udcff",))) == m.Rerror(1, "illegal name")
        assert await wire.ask(m.Tattach(1, 1, m.NOFID, "\udcff", "")) == m.Rerror(1, "illegal name")
        assert isinstance(await wire.ask(m.Tstat(1, 0)), m.Rstat)


async def test_a_read_of_more_than_a_message_gives_what_fits(tmp_path: Path) -> None:
    text = b"0123456789" * 30_000
    async with (
        FileServer(lambda *who: StaticDirectory("/", [TextFile("f", lambda: text)])) as server,
        dialled(await server.listen(f"unix!{tmp_path}/s")) as wire,
    ):
        await wire.hello("f", mode=m.OREAD, msize=4096)
        assert await wire.ask(m.Tread(1, 1, 0, 0xFFFFFFFF)) == m.Rread(1, text[: 4096 - 11])


async def test_a_text_is_of_the_moment_of_its_opening(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("status", mode=m.OREAD)
        world.status = "state degraded\n"
        assert await wire.ask(m.Tread(1, 1, 6, 100)) == m.Rread(1, b"ready\n")


async def test_a_directory_is_read_in_whole_entries_from_its_beginning_or_where_it_was_left(address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("many", mode=m.OREAD)
        for _ in range(2):  # the second time from the beginning again
            names: list[str] = []
            offset = 0
            while True:
                answer = await wire.ask(m.Tread(1, 1, offset, 1000))
                assert isinstance(answer, m.Rread)
                if not answer.data:
                    break
                names += [entry.name for entry in decode_directory(answer.data)]
                offset += len(answer.data)
            assert names == [f"n{number:03}" for number in range(300)]
        assert await wire.ask(m.Tread(1, 1, 7, 1000)) == m.Rerror(1, "bad offset in directory read")
        answer = await wire.ask(m.Tread(1, 1, 0, 10))
        assert isinstance(answer, m.Rerror)
        assert "the next entry has" in answer.ename


async def test_a_clone_is_one_thing_a_fid_until_it_is_given_back(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("clone", mode=m.ORDWR)
        assert await wire.ask(m.Tread(1, 1, 0, 100)) == m.Rread(1, b"0\n")
        answer = await wire.ask(m.Tstat(1, 1))
        walked = await wire.ask(m.Twalk(1, 0, 2, ("sessions", "0", "ctl")))
        assert isinstance(answer, m.Rstat)
        assert isinstance(walked, m.Rwalk)
        assert answer.stat.qid == walked.qids[-1]
        assert await wire.ask(m.Twrite(1, 1, 0, b"hi")) == m.Rwrite(1, 2)
        assert await wire.ask(m.Tclunk(1, 1)) == m.Rclunk(1)
        assert world.log == ["0:hi", "session closed"]
        assert await wire.ask(m.Twalk(1, 0, 3, ("sessions", "0"))) != walked


async def test_fids_end_at_the_limit_and_the_connection_goes_on(world: World, tmp_path: Path) -> None:
    settings = ServerSettings(limits=Limits(max_fids=1000))
    async with serving(world, tmp_path, settings) as (_, address), dialled(address) as wire:
        await wire.hello()
        refused = 0
        for start in range(1, 100_001, 1000):
            wire.send(*(m.Twalk(tag % 1000, 0, tag, ()) for tag in range(start, start + 1000)))
            for _ in range(1000):
                answer = await wire.receive()
                refused += answer == m.Rerror(answer.tag, "overloaded: this connection has 1000 fids already")
        assert refused == 100_000 - 999
        assert await wire.ask(m.Tclunk(1, 999)) == m.Rclunk(1)
        assert isinstance(await wire.ask(m.Twalk(1, 0, 999, ("status",))), m.Rwalk)


async def test_requests_under_way_end_at_the_limit_and_can_be_flushed(world: World, tmp_path: Path) -> None:
    settings = ServerSettings(limits=Limits(max_requests=10))
    async with serving(world, tmp_path, settings) as (_, address), dialled(address) as wire:
        await wire.hello("gate", mode=m.OREAD)
        wire.send(*(m.Tread(tag, 1, 0, 100) for tag in range(11)))
        answer = await wire.receive()
        assert answer == m.Rerror(10, "overloaded: 10 requests of this connection are under way")
        assert await wire.ask(m.Tflush(11, 0)) == m.Rflush(11)


async def test_writes_under_way_end_at_the_limit(world: World, tmp_path: Path) -> None:
    settings = ServerSettings(limits=Limits(max_write_bytes=10_000))
    async with serving(world, tmp_path, settings) as (_, address), dialled(address) as wire:
        await wire.hello("gate", mode=m.OWRITE)
        wire.send(m.Twrite(1, 1, 0, b"x" * 6000), m.Twrite(2, 1, 0, b"y" * 6000))
        assert await wire.receive() == m.Rerror(2, "overloaded: too much is being written by this connection")
        assert await wire.ask(m.Tflush(3, 1)) == m.Rflush(3)
        world.gate.set()
        assert await wire.ask(m.Twrite(2, 1, 0, b"y" * 6000)) == m.Rwrite(2, 6000)


async def test_connections_end_at_the_limit(world: World, tmp_path: Path) -> None:
    settings = ServerSettings(max_connections=1)
    async with serving(world, tmp_path, settings) as (_, address), dialled(address) as first:
        await first.hello()
        async with dialled(address) as second:
            assert await second.is_hung_up()
        assert isinstance(await first.ask(m.Tstat(1, 0)), m.Rstat)


async def test_who_says_no_version_is_hung_up_on(world: World, tmp_path: Path) -> None:
    settings = ServerSettings(hello_timeout_s=0.5)
    async with serving(world, tmp_path, settings) as (_, address), dialled(address) as wire, dialled(address) as other:
        await other.hello()
        assert await wire.is_hung_up()
        assert isinstance(await other.ask(m.Tstat(1, 0)), m.Rstat)


async def test_who_reads_no_answers_is_not_served_further_and_then_hung_up_on(tmp_path: Path) -> None:
    reads = 0

    class Counting(TextFile):
        def open(self, mode: int) -> object:  # type: ignore[override]
            handle = super().open(mode)
            original = handle.read  # type: ignore[union-attr]

            class Counted(type(handle)):  # type: ignore[misc]
                def read(self, offset: int, count: int) -> object:
                    nonlocal reads
                    reads += 1
                    return original(offset, count)

            return Counted(bytes(1 << 20))

    settings = ServerSettings(write_timeout_s=0.3)
    async with FileServer(
        lambda *who: StaticDirectory("/", [Counting("f", lambda: bytes(1 << 20))]), settings
    ) as server:
        path = (await server.listen(f"unix!{tmp_path}/s")).removeprefix("unix!")
        async with dialled(f"unix!{path}") as wire:
            await wire.hello("f", mode=m.OREAD, msize=m.MAX_MSIZE)
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            wire.send(*(m.Tread(tag, 1, 0, 1 << 20) for tag in range(1000)))
            async with asyncio.timeout(WAIT_S):
                while server.connection_count:
                    await asyncio.sleep(0.01)
            assert 1 <= reads <= 5


async def test_a_reader_of_events_that_is_too_slow_loses_the_oldest_and_is_told(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("events", mode=m.OREAD)
        for number in range(7):
            world.events.send(f"event {number}")
        answer = await wire.ask(m.Tread(1, 1, 0, 1000))
        assert answer == m.Rread(1, b"lost 3\nevent 3\nevent 4\nevent 5\nevent 6\n")


async def test_a_flushed_read_of_events_loses_none(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("events", mode=m.OREAD)
        wire.send(m.Tread(1, 1, 0, 1000), m.Tflush(2, 1))
        assert await wire.receive() == m.Rflush(2)
        world.events.send("one")
        assert await wire.ask(m.Tread(1, 1, 0, 1000)) == m.Rread(1, b"one\n")
        world.events.end()
        assert await wire.ask(m.Tread(1, 1, 4, 1000)) == m.Rread(1, b"")


async def test_a_thousand_blocked_readers_on_one_connection_and_many_connections(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("events", mode=m.OREAD)
        await wire.ask(m.Tclunk(1, 1))
        wire.send(*(m.Twalk(fid, 0, fid, ("events",)) for fid in range(1, 1001)))
        wire.send(*(m.Topen(1000 + fid, fid, m.OREAD) for fid in range(1, 1001)))
        assert len([await wire.receive() for _ in range(2000)]) == 2000
        wire.send(*(m.Tread(fid, fid, 0, 100) for fid in range(1, 1001)), m.Tstat(2000, 0))
        assert isinstance(await wire.receive(), m.Rstat)
        world.events.send("now")
        assert sorted([(await wire.receive()).tag for _ in range(1000)]) == list(range(1, 1001))


async def test_a_stream_that_is_flushed_or_given_back_ends_its_generator(world: World, address: str) -> None:
    async with dialled(address) as wire:
        await wire.hello("count", mode=m.OREAD)
        assert await wire.ask(m.Tread(1, 1, 0, 100)) == m.Rread(1, b"one ")
        assert await wire.ask(m.Tclunk(1, 1)) == m.Rclunk(1)
        assert world.log == ["stream closed"]


async def test_the_attach_callback_is_told_who_is_there(world: World, address: str, tmp_path: Path) -> None:
    async with dialled(address) as wire:
        await wire.hello()
    uname, aname, peer = world.peers[0]
    assert (uname, aname) == ("glenda", "")
    if os.uname().sysname == "Linux":
        assert (peer.uid, peer.gid, peer.pid) == (os.getuid(), os.getgid(), os.getpid())
    async with serving(world, tmp_path, address="tcp!127.0.0.1!0") as (_, tcp), dialled(tcp) as wire:
        await wire.hello()
        assert world.peers[1][2] == Peer(f"tcp!127.0.0.1!{wire.writer.get_extra_info('sockname')[1]}")


async def test_closing_the_server_closes_files_and_removes_the_socket(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (server, address):
        path = Path(address.removeprefix("unix!"))
        assert path.stat().st_mode & 0o777 == 0o600
        async with dialled(address) as wire:
            await wire.hello("gate", mode=m.OREAD)
            wire.send(m.Tread(1, 1, 0, 100))
            await until(world, "read")
            await server.close()
            assert world.log == ["read", "cancelled", "close"]
            assert await wire.is_hung_up()
        assert not path.exists()


@pytest.mark.parametrize("reads_on", [True, False])
async def test_closing_the_server_waits_for_answers_to_be_taken_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_on: bool
) -> None:
    monkeypatch.setattr(connection, "_FLUSH_TIMEOUT_S", WAIT_S if reads_on else 0.01)
    content = bytes(range(256)) * 4096
    async with FileServer(lambda *who: StaticDirectory("/", [TextFile("f", lambda: content)])) as server:
        path = (await server.listen(f"unix!{tmp_path}/s")).removeprefix("unix!")
        async with dialled(f"unix!{path}") as wire:
            await wire.hello("f", mode=m.OREAD, msize=m.MAX_MSIZE)
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            wire.send(m.Tread(1, 1, 0, len(content) // 2))
            async with asyncio.timeout(WAIT_S):
                while not any(one._is_full for one in server._house.connections):
                    await asyncio.sleep(0.001)
                closing = asyncio.create_task(server.close())
                await asyncio.sleep(0)
                if not reads_on:
                    await closing
                wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
                if reads_on:
                    assert await wire.receive() == m.Rread(1, content[: len(content) // 2])
                    await closing
                assert server.connection_count == 0


async def test_what_cannot_be_listened_on_is_named(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (server, address):
        for wrong, error in (
            (address, NameInUse),
            (f"unix!{tmp_path}/no/such", BadConfig),
            ("tcp!127.0.0.1!99999", BadConfig),
            ("udp!127.0.0.1!1", BadConfig),
            ("", BadConfig),
        ):
            with pytest.raises(error) as refusal:
                await server.listen(wrong)
            assert wrong in refusal.value.message
        assert len(server.addresses) == 1


async def test_a_handler_that_breaks_its_promise_is_a_fault_that_ends_nothing(tmp_path: Path) -> None:
    class Liar(Handle):
        def read(self, offset: int, count: int) -> bytes:
            return b"x" * (count + 1)

        async def write(self, offset: int, data: bytes) -> int:
            return None if data == b"all" else "many"  # type: ignore[return-value]

        def close(self) -> None:
            raise ZeroDivisionError

    class LiarFile(Node):
        def open(self, mode: int) -> Handle:
            return Liar()

    async with (
        FileServer(lambda *who: StaticDirectory("/", [LiarFile("f", 0o666)])) as server,
        dialled(await server.listen(f"unix!{tmp_path}/s")) as wire,
    ):
        await wire.hello("f", mode=m.ORDWR)
        for message in (m.Tread(1, 1, 0, 10), m.Twrite(1, 1, 0, b"x")):
            answer = await wire.ask(message)
            assert isinstance(answer, m.Rerror)
            assert answer.ename.startswith("i/o error: ")
        assert await wire.ask(m.Twrite(1, 1, 0, b"all")) == m.Rwrite(1, 3)
        assert await wire.ask(m.Tclunk(1, 1)) == m.Rclunk(1)


async def test_a_bound_socket_can_be_given(world: World) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    async with FileServer(world.attach) as server, dialled(await server.listen_on(listener)) as wire:
        await wire.hello("status", mode=m.OREAD)


async def test_an_attach_may_take_its_time_and_refuse(world: World, tmp_path: Path) -> None:
    async def attach(uname: str, aname: str, peer: Peer) -> StaticDirectory:
        await world.gate.wait()
        if uname != "glenda":
            raise Refused("this is glenda's")
        return world.root

    async with FileServer(attach) as server, dialled(await server.listen(f"unix!{tmp_path}/s")) as wire:
        await wire.ask(m.Tversion(m.NOTAG, 8192, m.VERSION))
        wire.send(m.Tattach(1, 0, m.NOFID, "glenda", ""), m.Tattach(2, 1, m.NOFID, "bob", ""), m.Tstat(3, 0))
        world.gate.set()
        assert isinstance(await wire.receive(), m.Rattach)
        rest = {answer.tag: answer for answer in [await wire.receive(), await wire.receive()]}
        assert rest[2] == m.Rerror(2, "permission denied: this is glenda's")
        assert isinstance(rest[3], m.Rstat)
