"""Several bridges as one, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from bridge_fakes import PATIENCE_S, Running, bridge_in_thread

from llambo.bridge.client_calls import Token
from llambo.bridge.pool import BridgePool
from llambo.core.errors import BadRequest, NotFound, Overloaded, TimedOut, Unreachable


def asked(running: Running) -> int:
    return len(running.door.requests)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(tmp_path / "b")


@pytest.fixture
def three(base: str) -> object:
    with ExitStack() as stack:
        yield [stack.enter_context(bridge_in_thread(Path(f"{base}-{number}.sock"))) for number in range(3)]


def test_bridges_are_found_by_their_numbers(three: list[Running], base: str, tmp_path: Path) -> None:
    for name in ("b-x.sock", "b-.sock", "bb-1.sock", "b-7.sock"):
        (tmp_path / name).touch()
    with bridge_in_thread(Path(f"{base}-10.sock")), BridgePool.discover(base) as pool:
        assert pool.addresses == tuple(f"{base}-{number}.sock" for number in (0, 1, 2, 10))
    with BridgePool.discover(base, 2) as pool:
        assert pool.addresses == (f"{base}-0.sock", f"{base}-1.sock")


def test_no_bridge_is_an_error_that_names_the_pattern(base: str) -> None:
    with pytest.raises(Unreachable, match=r"b-N\.sock"):
        BridgePool.discover(base)
    with pytest.raises(Unreachable):
        BridgePool.discover("/nonexistent/b")
    with pytest.raises(BadRequest):
        BridgePool([])
    with pytest.raises(BadRequest):
        BridgePool(["x"], size=0)


def test_requests_are_spread(three: list[Running], base: str) -> None:
    with BridgePool.discover(base) as pool:
        for number in range(9):
            assert pool.infer(f"hello {number}") == f"hello {number}"
        assert [asked(running) for running in three] == [3, 3, 3]
        open_streams = [pool.stream("hold") for _ in range(2)]
        for stream in open_streams:
            next(stream)
        idle = min(three, key=lambda running: running.door.active)
        before = asked(idle)
        for _ in range(4):
            pool.infer("hello")
        assert asked(idle) == before + 4, "the least busy one is asked"
        for stream in open_streams:
            stream.close()


def test_every_call_works(three: list[Running], base: str) -> None:
    with BridgePool.discover(base) as pool:
        pool.ping()
        status = pool.get_status()
        assert (len(status["models"]), status["slots"]) == (3, 12)
        assert pool.load_model("/m/x.gguf", "second")["name"] == "second"
        assert len(pool.models()) == 6
        pool.free_model("second")
        assert len(pool.models()) == 3
        assert pool.complete("a b").tokens == 2
        seen: list[Token] = []
        assert pool.infer_stream("a b", seen.append).text == "a b"
        assert seen[-1].final
        assert [token.text for token in pool.stream("a b")] == ["a", " b", ""]
        assert pool.infer_multi(["a", "b"]) == ["a", "b"]
        assert pool.tokenize("a") == [97]
        assert pool.embed("a") == [0.6, 0.8]
        with pytest.raises(NotFound):
            pool.cancel("nothing")


def test_a_bridge_that_was_restarted_is_connected_to_anew(base: str) -> None:
    path = Path(f"{base}-1.sock")
    with bridge_in_thread(path):
        pool = BridgePool.discover(base)
        assert pool.infer("hello") == "hello"
    with bridge_in_thread(path):
        assert pool.infer("hello") == "hello"
        assert "".join(token.text for token in pool.stream("a b")) == "a b"
    with pytest.raises(Unreachable, match=r"b-1\.sock"):
        pool.infer("hello")
    pool.disconnect()


def test_a_bridge_that_is_gone_is_passed_over(base: str) -> None:
    with bridge_in_thread(Path(f"{base}-0.sock")) as stays:
        with bridge_in_thread(Path(f"{base}-1.sock")):
            pool = BridgePool.discover(base)
            for _ in range(4):
                pool.infer("hello")
        for _ in range(4):
            assert pool.infer("hello") == "hello"
        assert asked(stays) == 6
        with pytest.raises(Unreachable, match=r"b-1\.sock"):
            pool.ping()
        pool.disconnect()


def test_an_answer_that_had_begun_is_never_begun_again(base: str) -> None:
    with bridge_in_thread(Path(f"{base}-0.sock")) as running:
        pool = BridgePool.discover(base)
        pool.ping()
        stream = pool.stream("hold")
        next(stream)
        asyncio.run_coroutine_threadsafe(running.server.stop(0), running.loop).result(PATIENCE_S)
        with pytest.raises((Overloaded, Unreachable)):
            next(stream)
        assert asked(running) == 1
        pool.disconnect()


def test_a_full_pool_waits_and_then_gives_up(base: str) -> None:
    with bridge_in_thread(Path(f"{base}-0.sock")), BridgePool.discover(base, size=1, timeout_s=0.2) as pool:
        stream = pool.stream("hold")
        next(stream)
        with pytest.raises(TimedOut):
            pool.infer("hello")
        stream.close()
        assert pool.infer("hello") == "hello"


def test_the_size_comes_from_the_configuration(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_CONNECTION_POOL_SIZE", "1")
    with bridge_in_thread(Path(f"{base}-0.sock")):
        for pool in (BridgePool([f"{base}-0.sock"], timeout_s=0.2), BridgePool.discover(base, timeout_s=0.2)):
            with pool:
                stream = pool.stream("hold")
                next(stream)
                with pytest.raises(TimedOut, match="all 1 connections"):
                    pool.infer("hello")
                stream.close()


def test_many_threads_use_one_pool(three: list[Running], base: str) -> None:
    failures: list[BaseException] = []
    with BridgePool.discover(base, size=2) as pool:

        def work(name: str) -> None:
            try:
                for number in range(10):
                    assert pool.infer(f"{name} {number}") == f"{name} {number}"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not failures
    with pytest.raises(Unreachable, match="pool was closed"):
        pool.infer("hello")
