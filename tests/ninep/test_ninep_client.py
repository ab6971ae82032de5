"""Both clients against a real server: what they read, write and list, and what happens to calls that are given up."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ninep_world import WAIT_S, World, serving

from llambo.core.errors import BadConfig, BadRequest, NotFound, Refused, TimedOut, Unreachable
from llambo.ninep import calls
from llambo.ninep import messages as m
from llambo.ninep.address import parse_address
from llambo.ninep.blocking import Client
from llambo.ninep.client import AsyncClient
from llambo.ninep.client_session import ClientSession
from llambo.ninep.errors import FileError, Malformed
from llambo.ninep.wire import encode


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def address(world: World, tmp_path: Path) -> AsyncIterator[str]:
    async with serving(world, tmp_path) as (_, address):
        yield address


Do = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["async", "blocking"])
async def do(request: pytest.FixtureRequest, address: str) -> AsyncIterator[Do]:
    """Calls a method of either client; the blocking one in a thread."""
    if request.param == "async":
        async with await AsyncClient.connect(address, uname="glenda", msize=8192) as client:
            yield lambda name, *arguments: getattr(client, name)(*arguments)
    else:
        blocking = await asyncio.to_thread(Client.connect, address, uname="glenda", msize=8192)
        with blocking:
            yield lambda name, *arguments: asyncio.to_thread(getattr(blocking, name), *arguments)


async def test_a_file_is_read_whole(do: Do) -> None:
    assert await do("read_file", "/status") == b"state ready\n"
    assert await do("read_file", "deep//./deeper/file") == b"deep\n"


async def test_a_stream_is_read_to_its_end(do: Do) -> None:
    assert (await do("read_file", "count")).decode() == "one two dr€i"


async def test_a_write_returns_when_it_has_taken_effect(do: Do, world: World) -> None:
    assert await do("write_file", "ctl", "say hello\n") == 10
    assert world.log == ["hello"]


async def test_a_long_write_goes_in_pieces_at_their_offsets(do: Do, world: World) -> None:
    assert await do("write_file", "notes", "x" * 20_000) == 20_000
    assert [entry.split(":")[0] for entry in world.log] == ["0", "8168", "16336"]


async def test_directories_are_listed_and_files_are_listed_as_themselves(do: Do) -> None:
    assert [entry.name for entry in await do("ls", "/many")] == [f"n{number:03}" for number in range(300)]
    assert [entry.name for entry in await do("ls", "status")] == ["status"]
    assert {entry.name for entry in await do("ls")} >= {"ctl", "status", "many"}
    assert (await do("stat", "/many")).is_directory


async def test_a_file_is_removed(do: Do) -> None:
    await do("remove", "removable")
    with pytest.raises(NotFound, match=r"^removable: file does not exist$"):
        await do("stat", "removable")


async def test_refusals_come_as_the_errors_they_were(do: Do) -> None:
    with pytest.raises(NotFound, match="deep/nothing: file does not exist"):
        await do("read_file", "deep/nothing")
    with pytest.raises(FileError, match="status/x: not a directory"):
        await do("read_file", "status/x")
    with pytest.raises(Refused, match="permission denied"):
        await do("write_file", "status", "x")
    with pytest.raises(BadRequest, match=r"^no such command: dance; there are say and wait$"):
        await do("write_file", "ctl", "dance")
    with pytest.raises(FileError, match="fault of the server"):
        await do("read_file", "broken")
    assert await do("read_file", "status") == b"state ready\n"


async def test_paths_longer_than_a_walk_are_walked_in_parts(do: Do) -> None:
    there_and_back = "deep/../" * 12
    assert await do("read_file", there_and_back + "status") == b"state ready\n"
    with pytest.raises(NotFound, match="nothing"):
        await do("read_file", there_and_back + "nothing")


async def test_no_fid_is_left_behind(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (server, address), await AsyncClient.connect(address) as client:
        (connection,) = server._house.connections
        for path in ("status", "nothing", "deep/nothing", "secret", "deep/../" * 12 + "nothing", "broken"):
            for call in (client.read_file(path), client.stat(path), client.ls(path), client.write_file(path, "x")):
                with contextlib.suppress(NotFound, Refused, FileError):
                    await call
        await client.stat("/")
        await client.request(lambda tag: m.Tstat(tag, client.root))  # after every clunk
        assert connection._session.fid_count == 1
        assert client.session.pending_count == 0


async def test_an_open_file_is_read_in_pieces_and_kept_by_the_context(world: World, address: str) -> None:
    async with await AsyncClient.connect(address) as client:
        async with client.open("count") as file:
            assert [piece async for piece in file.follow()] == [b"one ", b"two ", "dr€i".encode()]
        async with client.open("clone", "rw") as session:
            assert await session.read() == b"0\n"
            assert [entry.name for entry in await client.ls("sessions")] == ["0"]
            await session.write("hi")
        assert world.log == ["stream closed", "2:hi", "session closed"]
        assert await client.ls("sessions") == []


async def test_who_stops_following_a_stream_leaves_no_read_behind(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (server, address), await AsyncClient.connect(address) as client:
        (connection,) = server._house.connections
        for ahead in (1, 2, 8):
            async with client.open("count") as file, aclosing(file.follow(ahead)) as pieces:
                assert await anext(pieces) == b"one "
        await client.stat("/")
        await client.request(lambda tag: m.Tstat(tag, client.root))  # after every clunk
        assert (connection._session.fid_count, client.session.pending_count) == (1, 0)


async def test_following_a_stream_ends_with_the_servers_error(world: World, address: str) -> None:
    async with await AsyncClient.connect(address) as client, client.open("cut") as file:
        pieces = file.follow()
        assert await anext(pieces) == b"one "
        with pytest.raises(BadRequest, match="no more of it"):
            await anext(pieces)
        assert await client.read_file("status") == b"state ready\n"


async def test_calls_of_one_client_do_not_wait_for_each_other(world: World, address: str) -> None:
    async with await AsyncClient.connect(address) as client:
        waiting = [asyncio.ensure_future(client.write_file("ctl", "wait", "a")) for _ in range(50)]
        assert await asyncio.gather(*(client.read_file("status") for _ in range(50))) == [b"state ready\n"] * 50
        assert not any(task.done() for task in waiting)
        world.gate.set()
        assert await asyncio.gather(*waiting) == [4] * 50


async def test_a_cancelled_call_is_flushed(world: World, address: str) -> None:
    async with await AsyncClient.connect(address) as client, client.open("gate") as file:
        reading = asyncio.ensure_future(file.read())
        async with asyncio.timeout(WAIT_S):
            while world.log != ["read"]:
                await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            while client.session.pending_count:
                await asyncio.sleep(0)
        assert world.log == ["read", "cancelled"]
        world.gate.set()
        assert await file.read() == b"through"


@pytest.mark.parametrize("turns", range(0, 24, 1))
async def test_a_call_cancelled_at_any_moment_leaves_nothing_behind(turns: int, world: World, tmp_path: Path) -> None:
    world.gate.set()
    async with serving(world, tmp_path) as (server, address), await AsyncClient.connect(address) as client:
        (connection,) = server._house.connections
        call = asyncio.ensure_future(client.read_file("deep/../clone"))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(WAIT_S):
            while client.session.pending_count:
                await asyncio.sleep(0)
        assert connection._session.fid_count == 1
        assert len(world.sessions._nodes) == 0
        assert await client.read_file("status") == b"state ready\n"


async def test_a_blocking_call_ends_in_time_is_flushed_and_the_client_goes_on(world: World, address: str) -> None:
    def talk() -> None:
        with Client.connect(address) as client, client.open("gate") as file:
            client.timeout_s = 0.05
            with pytest.raises(TimedOut, match=r"does not answer within 0\.05 s"):
                file.read()
            client.timeout_s = WAIT_S
            assert client.read_file("status") == b"state ready\n"

    await asyncio.to_thread(talk)
    assert world.log == ["read", "cancelled", "close"]


async def test_a_blocking_file_is_iterated(world: World, address: str) -> None:
    def talk() -> list[bytes]:
        with Client.connect(address) as client, client.open("count") as file:
            return list(file)

    assert await asyncio.to_thread(talk) == [b"one ", b"two ", "dr€i".encode()]


async def test_who_is_refused_at_the_door_is_told_why(address: str) -> None:
    with pytest.raises(Refused, match="permission denied"):
        await AsyncClient.connect(address, aname="nothing")
    with pytest.raises(Refused, match="permission denied"):
        await asyncio.to_thread(Client.connect, address, aname="nothing")


async def test_a_server_that_goes_away_ends_every_call(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path) as (server, address), await AsyncClient.connect(address) as client:
        waiting = asyncio.ensure_future(client.write_file("ctl", "wait", "a"))
        await client.stat("/")
        await server.close()
        with pytest.raises(Unreachable, match="hung up"):
            await waiting
        with pytest.raises(Unreachable, match="hung up"):
            await client.stat("/")
        with pytest.raises(Unreachable, match="nothing answers"):
            await AsyncClient.connect(address)
        with pytest.raises(Unreachable, match="nothing answers"):
            Client.connect(address)


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """A server that says what it is told to whoever connects."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "liar"))
    listener.listen()
    kept = []

    def lie(answer: bytes) -> str:
        async def serve() -> None:
            connected, _ = await asyncio.get_running_loop().sock_accept(listener)
            kept.append(connected)
            await asyncio.get_running_loop().sock_sendall(connected, answer)

        listener.setblocking(False)
        kept.append(asyncio.ensure_future(serve()))  # type: ignore[arg-type]
        return f"unix!{tmp_path / 'liar'}"

    yield lie
    listener.close()
    for connected in kept:
        if isinstance(connected, socket.socket):
            connected.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        encode(m.Rversion(m.NOTAG, 8192, "unknown")),
        encode(m.Rversion(m.NOTAG, 1 << 30, "9P2000")),
        encode(m.Rversion(m.NOTAG, 8, "9P2000")),
        encode(m.Rversion(3, 8192, "9P2000")),
        encode(m.Rclunk(m.NOTAG)),
    ],
)
async def test_what_is_no_file_server_is_unreachable(answer: bytes, liar: Callable[[bytes], str]) -> None:
    with pytest.raises(Unreachable):
        await AsyncClient.connect(liar(answer))
    address = liar(answer)
    with pytest.raises(Unreachable):
        await asyncio.to_thread(Client.connect, address)


async def test_a_server_that_says_nothing_is_given_up(liar: Callable[[bytes], str]) -> None:
    with pytest.raises(TimedOut):
        await AsyncClient.connect(liar(b""), timeout_s=0.05)
    address = liar(b"")
    with pytest.raises(TimedOut):
        await asyncio.to_thread(Client.connect, address, timeout_s=0.05)


def test_modes_are_words_or_numbers() -> None:
    assert [calls.mode_of(mode) for mode in ("r", "w", "a", "rw", 0x40)] == [0, 0x11, 1, 2, 0x40]
    with pytest.raises(BadRequest, match="'x' is no mode"):
        calls.mode_of("x")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("unix!/a/b", "unix!/a/b"), ("/a/b", "unix!/a/b"), ("tcp!host", "tcp!host!5640"), ("tcp!::1!7", "tcp!::1!7")],
)
def test_addresses_are_as_plan_9_writes_them(text: str, shown: str) -> None:
    assert str(parse_address(text)) == shown


@pytest.mark.parametrize("text", ["", "tcp!", "tcp!h!x", "tcp!h!65536", "tcp!h!1!2", "udp!h!1", "host:5640"])
def test_what_is_no_address_says_what_would_be_one(text: str) -> None:
    with pytest.raises(BadConfig, match=r"write .*tcp!HOST!PORT, such as tcp!"):
        parse_address(text)


@pytest.mark.parametrize("text", ["unix!", "unix!/a\0b", "/" + "x" * 200, "/\ud800"])
def test_a_path_that_no_socket_can_have_is_refused(text: str) -> None:
    with pytest.raises(BadConfig, match="socket"):
        parse_address(text)


def test_a_tag_is_not_used_again_before_its_flush_is_answered() -> None:
    session = ClientSession(8192)
    first = session.start(lambda tag: m.Tread(tag, 1, 0, 10))
    session.flush(first.tag)
    session.receive_data(encode(m.Rread(first.tag, b"late")))
    assert session.next_answer() is None
    second = session.start(lambda tag: m.Tstat(tag, 1))
    assert second.tag not in {first.tag, first.tag + 1}
    session.receive_data(encode(m.Rflush(first.tag + 1)))
    assert session.next_answer() is None
    assert {session.start(lambda tag: m.Tstat(tag, 1)).tag for _ in range(2)} == {first.tag, first.tag + 1}


def test_a_walk_that_was_flushed_too_late_has_its_fid_given_back() -> None:
    session = ClientSession(8192)
    fid = session.new_fid()
    walk = session.start(lambda tag: m.Twalk(tag, 9, fid, ()))
    session.flush(walk.tag)
    session.data_to_send()
    session.receive_data(encode(m.Rwalk(walk.tag, ())))
    assert session.next_answer() is None
    assert session.data_to_send() == encode(m.Tclunk(2, fid))


@given(st.binary(max_size=200))
def test_garbage_from_a_server_is_malformed_or_nothing(garbage: bytes) -> None:
    session = ClientSession(8192)
    session.start(lambda tag: m.Tread(tag, 1, 0, 10))
    session.receive_data(garbage)
    with contextlib.suppress(Malformed):
        assert session.next_answer() is None or garbage[4] in {117, 107}


def test_both_clients_have_the_same_calls() -> None:
    def public(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}

    assert public(AsyncClient) == public(Client)
