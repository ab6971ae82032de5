"""`llama-cpp-bridge` and `llamboctl bridge` as processes: start, stop, signals, what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from llambo import Bridge
from llambo.core.errors import LlamboError
from tests.cli.daemons import runs
from tests.cli.programs import run, start


@contextmanager
def bridge(*arguments: str | Path, ignore: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A bridge that listens; ended, if the test has not done so. It inherits the signal `ignore` as nohup does it."""
    before = signal.signal(ignore, signal.SIG_IGN) if ignore else None
    process = start("llama-cpp-bridge", *arguments, stdin=subprocess.DEVNULL, restore_signals=False)
    if ignore:
        signal.signal(ignore, before)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert b"llama-cpp-bridge listens on unix!" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()


def speak(path: Path, *lines: str) -> list[dict[str, object]]:
    """Sends lines, ends the sending side, and reads every answer, as `nc -N` does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall("".join(f"{line}\n" for line in lines).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return [json.loads(line) for line in answers]


def test_it_answers_on_its_socket_as_specified(tmp_path: Path) -> None:
    with bridge("--model", "built-in"):
        ping, status = speak(tmp_path / "bridge.sock", "PING", "STATUS")
    assert ping == {"status": "ok", "message": "pong", "data": "pong"}
    assert str(status["message"]).startswith("Model loaded: /")
    assert str(status["message"]).endswith("built-in.gguf")


def test_netcat_is_a_client(tmp_path: Path) -> None:
    netcat = shutil.which("nc")
    if netcat is None:
        pytest.skip("netcat is not installed (package netcat-openbsd)")
    with bridge():
        done = subprocess.run(
            [netcat, "-NU", str(tmp_path / "bridge.sock")],
            input=b"PING\nSTATUS\n",
            capture_output=True,
            timeout=20,
            check=True,
        )
    ping, status = map(json.loads, done.stdout.splitlines())
    assert (ping["message"], status["message"]) == ("pong", "No model loaded")


def test_sigterm_lets_an_answer_finish(tmp_path: Path, walk_model: Path) -> None:
    with bridge("--model", walk_model) as process, Bridge.connect() as client:
        tokens = client.stream("hello", max_tokens=300, temperature=0)
        texts = [next(tokens).text]
        process.send_signal(signal.SIGTERM)
        texts += [token.text for token in tokens]
        assert len(texts) == 301  # with the final one
        assert process.wait(60) == 0
    assert not (tmp_path / "bridge.sock").exists()


def test_a_second_signal_ends_answers_at_once(walk_model: Path, tmp_path: Path) -> None:
    with bridge("--model", walk_model) as process, Bridge.connect() as client:
        children = psutil.Process(process.pid).children(recursive=True)
        tokens = client.stream("hello", temperature=0)
        next(tokens)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(LlamboError):
            for _ in tokens:
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not (tmp_path / "bridge.sock").exists()


def test_a_download_that_stalls_does_not_keep_it_from_stopping(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, bridge() as process:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "bridge.sock"))
            client.sendall(f"LOAD http://127.0.0.1:{server.getsockname()[1]}/x.gguf\n".encode())
            connection, _ = server.accept()
            connection.recv(1)  # it asks, and nobody answers
        with connection:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_a_bridge_that_is_stopped_while_it_loads_never_says_that_it_is_ready(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reference = f"http://127.0.0.1:{server.getsockname()[1]}/x.gguf"
        process = start("llama-cpp-bridge", "--model", reference, stdin=subprocess.DEVNULL)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0
    assert not (tmp_path / "bridge.sock").exists()


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    with bridge(ignore=signal.SIGHUP) as process:
        process.send_signal(signal.SIGHUP)
        assert speak(tmp_path / "bridge.sock", "PING")[0]["message"] == "pong"
        assert process.poll() is None


def test_quit_stops_it_with_nothing_left(tmp_path: Path) -> None:
    with bridge("--model", "built-in") as process:
        children = psutil.Process(process.pid).children(recursive=True)
        (goodbye,) = speak(tmp_path / "bridge.sock", "QUIT")
        assert goodbye["message"] == "Goodbye"
        assert process.wait(60) == 0
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not (tmp_path / "bridge.sock").exists()
    assert not list((tmp_path / "home" / "run").glob("*"))


def test_after_sigkill_no_node_lives_and_the_next_bridge_takes_over(tmp_path: Path) -> None:
    with bridge("--model", "built-in") as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(60)
        assert not psutil.wait_procs(children, timeout=30)[1]
    assert (tmp_path / "bridge.sock").exists()
    with bridge():
        assert speak(tmp_path / "bridge.sock", "PING")[0]["message"] == "pong"


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        ("missing", "does not exist"),
        ("file", "is no socket"),
        ("long", "a Unix socket can have 107"),
    ],
)
def test_a_place_where_it_cannot_listen_is_named(tmp_path: Path, prepare: str, complaint: str) -> None:
    path = {"missing": tmp_path / "no" / "s", "file": tmp_path / "f", "long": tmp_path / ("x" * 120)}[prepare]
    (tmp_path / "f").write_text("precious")
    done = run("llama-cpp-bridge", "--socket-path", path)
    assert done.returncode in {1, 2}
    assert complaint in done.stderr
    assert (tmp_path / "f").read_text() == "precious"


def test_a_live_socket_is_never_replaced(tmp_path: Path) -> None:
    with bridge():
        done = run("llama-cpp-bridge")
        assert done.returncode == 1
        assert "listens" in done.stderr
        assert speak(tmp_path / "bridge.sock", "PING")[0]["message"] == "pong"


def test_a_model_that_cannot_be_loaded_ends_it_and_leaves_no_socket(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    done = run("llama-cpp-bridge", "--model", tmp_path / "bad.gguf")
    assert done.returncode == 1
    assert "bad.gguf" in done.stderr
    assert not (tmp_path / "bridge.sock").exists()


def test_it_writes_its_log_to_a_file_that_never_holds_prompts(tmp_path: Path) -> None:
    with bridge("--model", "built-in"):
        speak(tmp_path / "bridge.sock", "INFER max_tokens=4 my secret prompt")
    log = (tmp_path / "home" / "logs" / "bridge.log").read_text()
    assert "loaded model built-in" in log
    assert "secret" not in log


def test_tcp_needs_a_token(tmp_path: Path) -> None:
    refused = run("llama-cpp-bridge", "--listen", "tcp!127.0.0.1!0")
    assert refused.returncode == 4
    assert "llamboctl token create" in refused.stderr
    secret = run("llamboctl", "token", "create", "--scope", "infer").stdout.strip()
    with bridge("--model", "built-in", "--listen", "tcp!127.0.0.1!0") as process:
        (address,) = [f"tcp!{c.laddr.ip}!{c.laddr.port}" for c in psutil.Process(process.pid).net_connections("tcp")]
        with pytest.raises(LlamboError, match="token"):
            Bridge.connect(address, token="llb_wrong")
        with Bridge.connect(address, token=secret) as client:
            assert client.infer("What is a node?", max_tokens=4)
    assert secret not in (tmp_path / "home" / "logs" / "bridge.log").read_text()


def test_start_status_test_and_stop_of_llamboctl(tmp_path: Path) -> None:
    assert run("llamboctl", "bridge", "status").returncode == 3
    assert run("llamboctl", "bridge", "stop").returncode == 3
    started = json.loads(run("llamboctl", "bridge", "start", "--json").stdout)
    try:
        assert started["started"] is True
        again = json.loads(run("llamboctl", "bridge", "start", "--json").stdout)
        assert (again["started"], again["pid"]) == (False, started["pid"])
        status = json.loads(run("llamboctl", "bridge", "status", "--json").stdout)
        assert [model["name"] for model in status["models"]] == ["built-in"]
        tested = run("llamboctl", "bridge", "test")
        assert tested.returncode == 0
        assert "all checks passed with built-in" in tested.stdout
    finally:
        stopped = run("llamboctl", "bridge", "stop")
    assert stopped.returncode == 0
    assert not runs(started["pid"])
    assert not list((tmp_path / "home" / "run").glob("*"))


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    done = run("llamboctl", "bridge", "start", "--model", tmp_path / "none.gguf")
    assert done.returncode == 1
    assert "none.gguf" in done.stderr


def test_a_claim_of_a_dead_bridge_is_not_believed(tmp_path: Path) -> None:
    with bridge() as process:
        process.kill()
        process.wait(60)
    assert (tmp_path / "home" / "run" / "bridge.json").exists()
    assert run("llamboctl", "bridge", "status").returncode == 3
    assert os.environ["LLAMBO_HOME"] == str(tmp_path / "home")
