"""The daemon's HTTP gateway as others find it: its addresses, what keeps it from starting, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import psutil
import pytest

from llambo import Bridge
from llambo.cli import launching, running
from llambo.core import paths
from tests.cli.daemons import all_gone, ask, cluster, ctl, daemon_pid, no_daemon_left, processes, runs
from tests.cli.programs import run

IDLE_MEMORY_BYTES = 130 * 2**20


def connection_to(url: str) -> HTTPConnection:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return HTTPConnection(host, int(port), timeout=30)


def fetch(url: str, path: str, **headers: str) -> tuple[int, Any]:
    connection = connection_to(url)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def post(connection: HTTPConnection, path: str, document: dict[str, Any]) -> HTTPResponse:
    connection.request("POST", path, json.dumps(document), {"content-type": "application/json"})
    return connection.getresponse()


def test_a_daemon_says_where_it_speaks_http_and_stays_small(tmp_path: Path) -> None:
    with cluster() as facts:
        (url,) = facts["http"]
        assert url.startswith("http://127.0.0.1:")
        assert ask("status")["http"] == url
        assert f"http      {url}\n" in ctl("status")
        with Bridge.connect(facts["bridge"][0]) as bridge:
            assert bridge.get_status()["http"] == url
        assert ask("init")["http"] == [url]
        assert f"http       {url}\n" in ctl("init")
        found = running.find(running.DAEMON)
        assert found is not None
        assert found.http == (url,)
        assert fetch(url, "/health")[0] == 200
        assert fetch(url, "/ready")[0] == 200
        status, models = fetch(url, "/v1/models")
        assert (status, [model["id"] for model in models["data"]]) == (200, ["built-in"])
        connection = connection_to(url)
        question = {"messages": [{"role": "user", "content": "What is a slot?"}], "max_tokens": 8}
        reply = post(connection, "/v1/chat/completions", question)
        assert reply.status == 200
        assert json.loads(reply.read())["usage"]["completion_tokens"] == 8
        connection.close()
        assert psutil.Process(facts["pid"]).memory_info().rss <= IDLE_MEMORY_BYTES
    with pytest.raises(ConnectionRefusedError):
        fetch(url, "/health")


def test_a_daemon_can_do_without_http_or_speak_it_on_a_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMBO_GATEWAY_LISTEN", "off")
    with cluster() as facts:
        assert facts["http"] == []
        assert ask("status")["http"] is None
        assert "http       off\n" in ctl("init")
        ctl("shutdown")
    path = tmp_path / "gateway.sock"
    monkeypatch.setenv("LLAMBO_GATEWAY_LISTEN", f"unix!{path}")
    with cluster() as facts:
        assert facts["http"] == [ask("status")["http"]] == [f"unix!{path}"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert not path.exists()


def test_two_daemons_with_two_homes_have_two_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster() as first:
        with monkeypatch.context() as other:
            other.setenv("LLAMBO_HOME", str(tmp_path / "other"))
            with cluster() as second:
                assert first["http"] != second["http"]
                assert [fetch(facts["http"][0], "/health")[0] for facts in (first, second)] == [200, 200]
        assert fetch(first["http"][0], "/health")[0] == 200
        taken = first["http"][0].removeprefix("http://")
        with monkeypatch.context() as other:
            other.setenv("LLAMBO_HOME", str(tmp_path / "third"))
            with no_daemon_left():
                done = run("llamboctl", "init", LLAMBO_GATEWAY_LISTEN=taken)
                assert (done.returncode, done.stdout) == (1, "")
                assert f"cannot serve HTTP on {taken}: it is in use; set LLAMBO_GATEWAY_LISTEN" in done.stderr
                assert list(paths.runtime_dir().iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "status", "complaint"),
    [
        ({"LISTEN": "0.0.0.0:0"}, 4, "refusing to serve HTTP on 0.0.0.0:0 without a valid token: make one with"),
        ({"LISTEN": "here"}, 2, "LLAMBO_GATEWAY_LISTEN: gateway.listen = 'here': 'here' is no address: expected"),
        ({"LISTEN": "unix!/no/such/g.sock"}, 2, "the directory /no/such does not exist"),
        ({"TLS_CERTIFICATE": "/no/such.pem"}, 2, "gateway.tls_certificate and gateway.tls_key go together"),
        (
            {"TLS_CERTIFICATE": "/no/such.pem", "TLS_KEY": "/no/key.pem"},
            2,
            "gateway.tls_certificate: /no/such.pem cannot be read: No such file or directory",
        ),
    ],
)
def test_http_that_cannot_be_keeps_a_daemon_from_starting(
    environment: dict[str, str], status: int, complaint: str
) -> None:
    with no_daemon_left():
        done = run("llamboctl", "init", **{f"LLAMBO_GATEWAY_{key}": value for key, value in environment.items()})
        assert (done.returncode, done.stdout) == (status, "")
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (pid := daemon_pid()) or not runs(pid)
    assert not paths.runtime_dir().exists() or list(paths.runtime_dir().iterdir()) == []


def test_a_token_that_is_made_or_revoked_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_GATEWAY_REQUIRE_TOKEN", "true")
    with cluster() as facts:
        (url,) = facts["http"]
        assert fetch(url, "/v1/models")[0] == 401
        made = ask("token", "create", "--scope", "read")
        assert fetch(url, "/v1/models", x_api_key=made["token"])[0] == 200
        ctl("token", "revoke", made["id"])
        assert fetch(url, "/v1/models", x_api_key=made["token"])[0] == 401
        assert made["token"] not in Path(facts["log"]).read_text()


@pytest.mark.parametrize("ending", ["signal", "quit on the bridge"])
def test_a_stop_lets_a_stream_finish(walk_model: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_DEFAULT", str(walk_model))
    with cluster() as facts:
        everything = processes(facts["pid"])
        connection = connection_to(facts["http"][0])
        question = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 300, "stream": True}
        reply = post(connection, "/v1/chat/completions", question)
        text = reply.readline()
        if ending == "signal":
            os.kill(facts["pid"], signal.SIGTERM)
        else:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(facts["bridge"][0].removeprefix("unix!"))
                client.sendall(b"QUIT\n")
                client.recv(1000)
        text += reply.read()
        assert text.endswith(b"data: [DONE]\n\n")
        assert text.count(b"data: ") >= 300
        connection.close()
        assert all_gone(everything)
        launching.wait_for_end(facts["pid"], 5, what="the daemon")
    assert list(paths.runtime_dir().iterdir()) == []
