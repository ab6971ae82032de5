"""The synchronous client, against a bridge in another thread."""

from __future__ import annotations

import asyncio
import gc
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bridge_fakes import PATIENCE_S, Running, bridge_in_thread, bridge_of_another_user, deaf_bridge

from llambo.bridge.client import Bridge
from llambo.bridge.client_calls import Token
from llambo.bridge.client_connection import ClientConnection
from llambo.bridge.settings import BridgeSettings
from llambo.core import address
from llambo.core.errors import (
    BadConfig,
    BadModel,
    BadRequest,
    LlamboError,
    NodeLost,
    NoModel,
    NotFound,
    Overloaded,
    Refused,
    TimedOut,
    TooLarge,
    Unreachable,
)
from llambo.core.types import Message


@pytest.fixture
def client(threaded: Running) -> Any:
    with Bridge.connect(str(threaded.path), timeout_s=PATIENCE_S) as bridge:
        yield bridge


def until_inactive(threaded: Running) -> None:

    asyncio.run_coroutine_threadsafe(threaded.door.until_active(0), threaded.loop).result(PATIENCE_S)


def test_every_call_works(client: Bridge) -> None:
    client.ping()
    assert client.get_status()["slots"] == 4
    assert [model["name"] for model in client.models()] == ["fake"]
    assert client.load_model("/m/x.gguf", "second", ctx=64)["name"] == "second"
    client.free_model("second")
    assert client.infer("hello big world") == "hello big world"
    assert client.infer_multi(["a", "b c"]) == ["a", "b c"]
    assert client.tokenize("ab") == [97, 98]
    assert client.embed("ab") == [0.6, 0.8]
    with pytest.raises(NotFound):
        client.cancel("nothing")
    assert client.address.startswith("unix!")


def test_a_completion_has_text_and_counts(client: Bridge) -> None:
    completion = client.complete("hello world", max_tokens=5)
    assert str(completion) == completion.text == "hello world"
    assert (completion.tokens, completion.prompt_tokens, completion.cached_tokens) == (2, 3, 1)
    assert (completion.finish_reason, completion.model, completion.time_ms) == ("stop", "fake", 2.5)


def test_a_stream_ends_with_the_final_token(client: Bridge) -> None:
    tokens = list(client.stream("a b", logprobs=True))
    assert [token.text for token in tokens] == ["a", " b", ""]
    assert [token.final for token in tokens] == [False, False, True]
    assert (tokens[0].ids, tokens[0].logprob) == ((0,), -0.5)
    assert (tokens[-1].finish_reason, tokens[-1].tokens) == ("stop", 2)


def test_a_callback_gets_every_token(client: Bridge) -> None:
    seen: list[Token] = []
    completion = client.infer_stream("a b", seen.append)
    assert completion.text == "a b"
    assert len(seen) == 3
    assert completion.tokens == 2


def test_a_callback_that_fails_cancels(client: Bridge, threaded: Running) -> None:
    def fail(_: Token) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        client.infer_stream("endless", fail)
    until_inactive(threaded)
    client.ping()


def test_closing_a_stream_early_cancels_and_the_connection_goes_on(client: Bridge, threaded: Running) -> None:
    stream = client.stream("endless")
    assert next(stream).text
    client.ping()
    assert next(stream).text, "other calls do not disturb it"
    stream.close()
    until_inactive(threaded)
    assert client.infer("hello") == "hello"


def test_a_stream_that_was_never_begun_costs_nothing(client: Bridge, threaded: Running) -> None:
    client.stream("endless").close()
    client.ping()
    assert not threaded.door.requests


def test_a_prompt_of_many_megabytes_goes_there_and_back(client: Bridge) -> None:
    prompt = "x" * (12 << 20)
    assert client.infer(prompt) == prompt
    with pytest.raises(TooLarge):
        client.infer("x" * (17 << 20))
    client.ping()


def test_messages_make_a_conversation(client: Bridge, threaded: Running) -> None:
    messages = [Message("user", "hi"), Message("assistant", "yes?"), Message("user", "hello world")]
    assert client.infer(messages=messages, system="be kind") == "hello world"
    assert threaded.door.requests[-1].messages == (Message("system", "be kind"), *messages)
    assert client.infer("raw words", raw=True) == "raw words"
    assert threaded.door.requests[-1].raw_prompt == "raw words"


def test_errors_have_the_classes_of_the_bridge(client: Bridge) -> None:
    with pytest.raises(BadRequest, match="max_tokens"):
        client.infer("x", max_tokens=0)
    with pytest.raises(BadRequest, match="empty"):
        client.infer("")
    with pytest.raises(BadModel):
        client.load_model("/m/bad.gguf")
    with pytest.raises(NodeLost):
        list(client.stream("fail"))
    with pytest.raises(NodeLost, match="prompt 1 of 2"):
        client.infer_multi(["fail", "a"])
    client.free_model()
    with pytest.raises(NoModel):
        client.infer("x")
    client.ping()


def test_an_option_that_does_not_exist_is_a_type_error(client: Bridge) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.infer("x", temprature=1),  # type: ignore[call-arg]
        lambda: next(client.stream("x", temprature=1)),  # type: ignore[call-arg]
        lambda: client.infer_multi(["x"], messages=[]),  # type: ignore[call-arg]
        lambda: client.load_model("x", threds=1),  # type: ignore[call-arg]
        lambda: client.infer("x", messages=[Message("user", "y")]),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


def test_a_call_that_takes_too_long_is_cancelled(client: Bridge, threaded: Running) -> None:
    with pytest.raises(TimedOut):
        client.infer("hold", timeout_s=0.05)
    until_inactive(threaded)
    stream = client.stream("hold", timeout_s=0.05)
    assert next(stream).text == "held"
    with pytest.raises(TimedOut):
        next(stream)
    until_inactive(threaded)
    client.ping()


def test_waiting_for_another_thread_to_send_belongs_to_the_time_of_a_call(path: Path) -> None:
    failures: list[LlamboError] = []

    def fill() -> None:
        try:
            client.infer("x" * (4 << 20), timeout_s=PATIENCE_S)
        except LlamboError as error:
            failures.append(error)

    with deaf_bridge(path):
        client = Bridge.connect(str(path))
        thread = threading.Thread(target=fill)
        thread.start()
        while not client._link._sending.locked():
            time.sleep(0)
        with pytest.raises(TimedOut):
            client.ping(timeout_s=0.05)
    thread.join(PATIENCE_S)
    assert isinstance(failures[0], Unreachable), "the bridge went away before its time was over"
    client.disconnect()


def test_a_stream_that_the_garbage_collector_closes_during_a_request_is_cancelled(
    client: Bridge, threaded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self
            self.stream = client.stream("hold")

    request = ClientConnection.request

    def request_and_collect(connection: ClientConnection, op: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        if op == "ping":
            gc.collect()  # as any allocation may, while this thread holds the lock for sending
        return request(connection, op, fields)

    assert next(Ring().stream).text == "held"
    monkeypatch.setattr(ClientConnection, "request", request_and_collect)
    thread = threading.Thread(target=client.ping, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    until_inactive(threaded)


def test_a_cancel_that_cannot_be_sent_is_sent_later(client: Bridge, threaded: Running) -> None:
    stream = client.stream("hold")
    next(stream)
    with client._link._sending:
        stream.close()
        assert threaded.door.active == 1
    client.ping()
    until_inactive(threaded)


def test_text_that_is_none_is_told_and_the_connection_goes_on(client: Bridge) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.infer("\ud800"),
        lambda: client.infer("x", system="\ud800"),
        lambda: client.infer("x", model="\ud800"),
        lambda: client.infer(messages=[Message("user", "\ud800")]),
        lambda: client.infer(messages=[Message("\ud800", "x")]),  # type: ignore[arg-type]
        lambda: list(client.stream("\ud800")),
        lambda: client.infer_multi(["x", "\ud800"]),
        lambda: client.load_model("/m/\udcff.gguf"),
        lambda: client.load_model("/m/x", "\ud800"),
        lambda: client.tokenize("\ud800"),
        lambda: client.embed("x", model="\ud800"),
        lambda: client.free_model("\ud800"),
        lambda: client.cancel("\ud800"),
    ]
    for call in calls:
        with pytest.raises(BadRequest, match="is not valid Unicode text"):
            call()
    with pytest.raises(BadRequest, match=r"prompts 2 .*U\+D800"):
        client.infer_multi(["x", "\ud800"])
    client.ping()
    with pytest.raises(BadRequest, match="token is not valid Unicode text"):
        Bridge.connect(client.address, token="\ud800")


@pytest.mark.parametrize("where", ["/\ud800", "unix!/\ud800", "tcp!\ud800!1", "tcp!a..b!1", f"tcp!{'a' * 64}!1"])
def test_an_address_that_is_none_is_told(where: str) -> None:
    with pytest.raises(BadConfig):
        Bridge.connect(where)


def test_another_user_is_told_nothing() -> None:
    with bridge_of_another_user() as (path, told):
        with pytest.raises(Refused, match=rf"{path} .*uid 65534"):
            Bridge.connect(path, timeout_s=PATIENCE_S)
        assert told() == "b''\n"


def test_several_threads_share_a_connection(client: Bridge) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(20):
                assert client.infer(f"{name} {number}") == f"{name} {number}"
                assert "".join(token.text for token in client.stream(f"{name} s")) == f"{name} s"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failures


def test_nothing_listening_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"none\.sock .*llamboctl bridge start"):
        Bridge.connect(str(tmp_path / "none.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "stale.sock"))
    with pytest.raises(Unreachable, match=r"stale\.sock"):
        Bridge.connect(str(tmp_path / "stale.sock"))
    with pytest.raises(Unreachable, match="127"):
        Bridge.connect("tcp!127.0.0.1!1")
    with pytest.raises(BadConfig):
        Bridge.connect("/" + "x" * 200)


def test_the_default_path_comes_from_the_environment(threaded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", str(threaded.path))
    with Bridge.connect() as bridge:
        bridge.ping()


@pytest.mark.parametrize("variable", ["", None])
def test_without_it_the_default_path_comes_from_the_configuration(
    variable: str | None, threaded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is None:
        monkeypatch.delenv("LLAMBO_BRIDGE_SOCKET")
    else:
        monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", variable)
    monkeypatch.setenv("HOME", str(threaded.path.parent))
    file = Path(os.environ["LLAMBO_HOME"]) / "cluster-config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("bridge:\n  socket_path: ~/b.sock\n")
    with Bridge.connect() as bridge:
        assert bridge.address == f"unix!{threaded.path}"
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET_PATH", "/elsewhere/b.sock")
    with pytest.raises(Unreachable, match="/elsewhere/b"):
        Bridge.connect()


def test_the_configuration_is_not_read_where_the_environment_says_it() -> None:
    code = "import sys; from llambo.bridge.dial import default_socket_path as d; d(); print('pydantic' in sys.modules)"
    for variable, wanted in (("/x", "False\n"), ("", "True\n")):
        environment = {**os.environ, "LLAMBO_BRIDGE_SOCKET": variable}
        assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == wanted


def test_a_path_may_be_as_long_as_the_system_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for platform, limit in (("linux", 107), ("darwin", 103), ("freebsd14", 103)):
        monkeypatch.setattr(sys, "platform", platform)
        assert runpy.run_path(str(address.__file__))["MAX_PATH_BYTES"] == limit


def test_a_bridge_that_is_full_says_so(path: Path) -> None:
    with bridge_in_thread(path, settings=BridgeSettings(max_connections=1)), Bridge.connect(str(path)):  # noqa: SIM117
        with pytest.raises(Overloaded, match="limit"):
            Bridge.connect(str(path))


def test_a_bridge_that_vanishes_in_the_middle_is_told(path: Path) -> None:
    with bridge_in_thread(path) as running:
        client = Bridge.connect(str(path))
        stream = client.stream("hold")
        assert next(stream).text == "held"

        asyncio.run_coroutine_threadsafe(running.server.stop(0), running.loop).result(PATIENCE_S)
        with pytest.raises(Overloaded, match="shutting down"):
            next(stream)
        for _ in range(2):
            with pytest.raises(Unreachable, match="gone"):
                client.ping()
        assert not client.is_connected
        client.disconnect()


def test_after_disconnect_a_call_says_so(threaded: Running) -> None:
    client = Bridge.connect(str(threaded.path))
    client.disconnect()
    client.disconnect()
    with pytest.raises(Unreachable, match="closed here"):
        client.ping()


def test_something_else_behind_the_socket_is_told(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LlamboError, match="does not speak the bridge protocol"):
            Bridge.connect(str(path))
        thread.join(PATIENCE_S)


def test_a_silent_peer_is_given_up(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(TimedOut):
            Bridge.connect(str(path), timeout_s=0.05)


def test_a_token_cannot_smuggle_a_line() -> None:
    with pytest.raises(LlamboError, match="white space"):
        ClientConnection("x\nQUIT").opening()


def test_quit_stops_the_bridge(path: Path) -> None:

    with bridge_in_thread(path) as running:
        serving = asyncio.run_coroutine_threadsafe(running.server.serve(), running.loop)
        with Bridge.connect(str(path)) as client:
            client.quit()
            serving.result(PATIENCE_S)
        assert not path.exists()
