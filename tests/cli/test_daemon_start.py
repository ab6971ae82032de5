"""How a daemon starts: once for a home, whoever else tries, and with nothing left where it cannot."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llambo.cli import launching
from llambo.core import paths
from tests.cli.daemons import (
    all_gone,
    ask,
    cluster,
    ctl,
    daemon_pid,
    no_daemon_left,
    processes,
    runs,
    sockets_and_files,
)
from tests.cli.programs import run, start
from tests.engine.file_server import Served, serving


def test_of_two_daemons_started_at_once_exactly_one_wins() -> None:
    with no_daemon_left():
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda _: run("llamboctl", "init", "--json"), range(3)))
        assert [result.returncode for result in results] == [0, 0, 0]
        documents = [json.loads(result.stdout) for result in results]
        assert sorted(document["started"] for document in documents) == [False, False, True]
        assert {document["pid"] for document in documents} == {daemon_pid()}
        assert all(document["styx"] and document["http"] for document in documents), "each says where it listens"
        launching.end(daemon_pid(), 30, what="the cluster")


@pytest.mark.parametrize("where", [(), ("--foreground",)])
def test_who_comes_while_it_starts_is_told_when_it_is_ready(where: tuple[str, ...], walk_model: Path) -> None:
    asked, go = threading.Event(), threading.Event()

    def gate() -> None:
        asked.set()
        go.wait(100)

    with serving() as server, no_daemon_left():
        server.files["/walk.gguf"] = Served(walk_model.read_bytes(), gate=gate)
        environment = {**os.environ, "LLAMBO_MODELS_DEFAULT": f"{server.url}/walk.gguf"}
        first = start("llamboctl", "init", stdin=subprocess.DEVNULL, env=environment)
        assert asked.wait(60)  # the first daemon fetches its model, and has no node yet
        second = start("llamboctl", "init", *where, stdin=subprocess.DEVNULL, env=environment)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
        go.set()
        output, errors = second.communicate(timeout=60)
        assert (second.returncode, errors) == (0, b"")
        assert output.startswith(b"the cluster runs already (pid ")
        assert [node["state"] for node in ask("nodes")] == ["ready"]
        assert first.wait(60) == 0
        for stream in (first.stdout, first.stderr):
            assert stream is not None
            stream.close()
        ctl("shutdown")


def test_what_a_killed_daemon_left_is_no_obstacle() -> None:
    directory = paths.make_private_dir(paths.home() / "run")
    (paths.home() / "daemon.lock").write_text(f"{os.getpid()}\n")
    claim = {"pid": os.getpid(), "born": 0.0, "socket": "x", "log": "x", "drain_timeout_s": 1, "styx": "x"}
    (directory / "daemon.json").write_text(json.dumps(claim))
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "styx.sock"))
    with cluster() as facts:
        assert facts["started"] is True
        assert ctl("health") == "ready\n"


def test_two_homes_cannot_share_a_runtime_directory(tmp_path: Path) -> None:
    with cluster():
        done = run(
            "llamboctl",
            "init",
            "--foreground",
            LLAMBO_HOME=str(tmp_path / "other"),
            LLAMBO_RUNTIME_DIR=str(paths.runtime_dir()),
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert f"is used by the home {paths.home()}" in done.stderr
        assert ctl("health") == "ready\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "complaint"),
    [
        (("--launcher", "ray"), {}, 2, "command line: cluster.launcher = 'ray': nodes on other machines"),
        (("--launcher", "ssh"), {}, 2, "command line: cluster.launcher = 'ssh': input should be 'local'"),
        (("--config", "/no/such.yaml"), {}, 2, "/no/such.yaml: no such file"),
        ((), {"LLAMBO_MODELS_DEFAULT": "/no/such.gguf"}, 1, "no such file"),
        ((), {"LLAMBO_HOME": "/proc/home"}, 1, "/proc/home"),
        ((), {"LLAMBO_BRIDGE_LISTEN": "tcp!127.0.0.1!0"}, 4, "llamboctl token create"),
        ((), {"LLAMBO_STYX_LISTEN": "tcp!127.0.0.1!0"}, 4, "llamboctl token create"),
        ((), {"LLAMBO_STYX_LISTEN": "here"}, 2, "'here' is no address: write unix!PATH or tcp!HOST!PORT"),
    ],
)
@pytest.mark.parametrize("where", [(), ("--foreground",)])
def test_a_start_that_cannot_be_is_one_line_and_leaves_nothing(
    where: tuple[str, ...], arguments: tuple[str, ...], environment: dict[str, str], status: int, complaint: str
) -> None:
    with no_daemon_left():
        done = run("llamboctl", "init", *where, *arguments, **environment)
        assert (done.returncode, done.stdout) == (status, "")
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (pid := daemon_pid()) or not runs(pid)
    if paths.runtime_dir().exists():
        assert sockets_and_files() == []


def test_ctrl_c_while_it_starts_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, no_daemon_left():
        reference = f"http://127.0.0.1:{server.getsockname()[1]}/x.gguf"
        process = start(
            "llamboctl", "init", stdin=subprocess.DEVNULL, env={**os.environ, "LLAMBO_MODELS_DEFAULT": reference}
        )
        connection, _ = server.accept()
        with connection:
            connection.recv(1)  # it asks for the model, and nobody answers
            everything = processes(daemon_pid())
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (130, b"", b"")
        assert all_gone(everything)
    assert sockets_and_files() == []
