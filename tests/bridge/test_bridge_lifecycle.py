"""How a bridge begins and ends: the socket file, QUIT, SIGTERM, draining."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bridge_fakes import PATIENCE_S, FakeDoor, Running, running_bridge

from llambo.bridge.server import BridgeServer
from llambo.core import paths, unix_socket
from llambo.core.errors import BadConfig, LlamboError, NameInUse, Refused
from llambo.core.unix_socket import BoundSocket, bind_unix


async def start(path: Path) -> None:
    server = BridgeServer(FakeDoor(), path)
    try:
        await server.start()
    finally:
        await server.stop(0)


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


async def test_the_socket_is_private(bridge: Running) -> None:
    assert stat.S_IMODE(bridge.path.stat().st_mode) == 0o600
    assert bridge.server.addresses == (f"unix!{bridge.path}",)


async def test_the_socket_is_private_from_its_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        bound = bind_unix(path, 1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0) == 0, "the umask is as it was"
        bound.socket.close()
    finally:
        os.umask(before)


async def test_a_live_socket_is_never_replaced(bridge: Running) -> None:
    with pytest.raises(NameInUse, match=r"listens on .*b\.sock already"):
        await start(bridge.path)
    assert (await (await bridge.client()).ask("PING"))["data"] == "pong"


async def test_a_live_socket_with_a_full_backlog_is_never_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(str(path))
        with pytest.raises(NameInUse):
            await start(path)
        waiting.close()


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    stale(path)
    async with running_bridge(path) as bridge:
        assert (await (await bridge.client()).ask("PING"))["data"] == "pong"
    assert not path.exists()


async def test_what_is_no_socket_is_never_touched(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(NameInUse, match="is no socket"):
        await start(path)
    assert path.read_text() == "precious"


async def test_a_link_to_a_socket_is_never_touched(path: Path, tmp_path: Path) -> None:
    stale(tmp_path / "other.sock")
    path.symlink_to(tmp_path / "other.sock")
    with pytest.raises(NameInUse, match="is no socket"):
        await start(path)
    assert path.is_symlink()


async def test_a_path_that_is_too_long_is_told_with_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    with pytest.raises(BadConfig, match=rf"{len(str(path))} bytes: a Unix socket can have 107"):
        await start(path)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="missing does not exist"):
        await start(tmp_path / "missing" / "b.sock")


async def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadConfig, match="file is no directory"):
        await start(tmp_path / "file" / "b.sock")


def test_a_directory_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_socket, "_only_starter", contextlib.nullcontext)  # whose directory is another
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(Refused, match="permission denied"):
            bind_unix(tmp_path / "b.sock", 1)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_lock_that_others_can_take_hinders_nobody(path: Path) -> None:
    with locked(path.parent):
        bind_unix(path, 1).socket.close()
    assert list(paths.runtime_dir().iterdir()) == [], "the lock leaves no file behind"


def test_a_start_that_takes_for_ever_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_socket, "_LOCK_TIMEOUT_S", 0.02)
    with locked(paths.make_private_dir(paths.runtime_dir())), pytest.raises(NameInUse, match=r"starting.*run"):
        bind_unix(path, 1)


def test_of_many_that_find_a_stale_socket_one_replaces_it(path: Path) -> None:
    stale(path)
    bound: list[BoundSocket] = []
    refused: list[NameInUse] = []

    def start_one() -> None:
        try:
            bound.append(bind_unix(path, 16))
        except NameInUse as error:
            refused.append(error)

    threads = [threading.Thread(target=start_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (len(bound), len(refused)) == (1, 7)
    bound[0].socket.close()


def test_an_error_without_a_number_says_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(listener: socket.socket, where: Path) -> None:
        raise OSError("AF_UNIX path too long")  # as Python itself raises it

    monkeypatch.setattr(unix_socket, "_bind_private", fail)
    with pytest.raises(LlamboError, match=r"cannot listen on .*: AF_UNIX path too long"):
        bind_unix(path, 1)


async def test_a_start_waits_for_another_one(path: Path) -> None:
    bound: list[BoundSocket] = []
    directory = os.open(paths.make_private_dir(paths.runtime_dir()), os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    started = threading.Thread(target=lambda: bound.append(bind_unix(path, 1)))
    started.start()
    assert not path.exists()
    os.close(directory)
    started.join(PATIENCE_S)
    assert path.exists()
    bound[0].socket.close()


async def test_a_socket_that_is_not_ours_any_more_is_left_alone(path: Path) -> None:
    async with running_bridge(path):
        path.unlink()
        stale(path)
    assert path.exists()


async def test_quit_says_goodbye_and_stops(bridge: Running) -> None:
    serving = asyncio.create_task(bridge.server.serve())
    client = await bridge.client()
    assert (await client.ask("QUIT"))["message"] == "Goodbye"
    await asyncio.wait_for(serving, PATIENCE_S)
    assert await client.reader.read() == b""
    assert not bridge.path.exists()


async def test_answers_in_flight_finish_before_the_end(bridge: Running) -> None:
    serving = asyncio.create_task(bridge.server.serve())
    busy, other = await bridge.client(), await bridge.client()
    busy.send("INFER_STREAM wait\nPING\n")
    assert (await busy.line())["status"] == "ok"
    assert (await busy.line())["token"] == "waited"
    other.send("QUIT\nPING\nINFER hello\nHELLO 2\n")
    assert (await other.line())["message"] == "Goodbye"
    refused = [await other.line() for _ in range(2)]
    assert [answer["code"] for answer in refused] == ["overloaded"] * 2
    assert "shutting down" in refused[0]["message"]
    assert not serving.done()
    bridge.door.gate.set()
    last = await busy.line()
    assert (last["final"], last["finish_reason"]) == (True, "stop")
    assert (await busy.line())["code"] == "overloaded", "what waited behind it is answered too"
    await asyncio.wait_for(serving, PATIENCE_S)
    assert await busy.reader.read() == b""


async def test_answers_that_take_too_long_end_with_an_error(bridge: Running) -> None:
    stream, whole, frames = [await bridge.client() for _ in range(3)]
    stream.send("INFER_STREAM hold\n")
    whole.send("INFER hold\n")
    await frames.hello()
    frames.send_frame(id=1, op="infer_stream", prompt="hold")
    await bridge.door.until_active(3)
    await asyncio.wait_for(bridge.server.stop(0.01), PATIENCE_S)
    last = (await stream.rest())[-1]
    assert (last["final"], last["code"]) == (True, "overloaded")
    (answer,) = await whole.rest()
    assert (answer["code"], answer["data"]) == ("overloaded", "held")
    while (frame := await frames.frame())["type"] != "error":
        pass
    assert frame["code"] == "overloaded"
    assert bridge.door.active == 0


async def test_sigterm_stops_as_quit_does(bridge: Running) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, bridge.server.request_stop)
    serving = asyncio.create_task(bridge.server.serve())
    client = await bridge.client()
    await client.ask("PING")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, PATIENCE_S)
    assert await client.reader.read() == b""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_cancelling_serve_stops_at_once(bridge: Running) -> None:
    serving = asyncio.create_task(bridge.server.serve())
    client = await bridge.client()
    client.send("INFER hold\n")
    await bridge.door.until_active(1)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not bridge.path.exists()


async def test_stopping_twice_is_no_error(bridge: Running) -> None:
    await bridge.server.stop(0)
    await bridge.server.stop(0)


async def test_nothing_stays_open(path: Path) -> None:
    process, before = psutil.Process(), 0
    for _ in range(2):
        async with running_bridge(path) as bridge:
            for _ in range(3):
                client = await bridge.client()
                await client.ask("PING")
        # The first round does not count: a loop opens files of its own when it first needs them.
        before = before or process.num_fds()
    assert process.num_fds() == before
