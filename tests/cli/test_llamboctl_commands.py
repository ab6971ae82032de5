"""What `llamboctl`'s cluster commands send, print and exit with, before a cluster without nodes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llambo.core import paths
from tests.cli.fake_daemon import fake_daemon
from tests.cli.programs import command, run, start
from tests.namespace.namespace_world import NODE, FakeCluster

NODE_KEYS = {"id", "type", "state", "pid", "epoch", "machine", "model", "slots", "busy", "address", "socket", "sandbox"}
NODE_KEYS |= {"rss_bytes", "uss_bytes", "requests", "errors"}
STATUS_KEYS = {"state", "version", "launcher", "strategy", "uptime_s", "nodes", "slots", "queued", "requests", "pid"}
STATUS_KEYS |= {"tokens_per_s", "models", "http", "styx", "home"}


@pytest.fixture
def control() -> Iterator[FakeCluster]:
    with fake_daemon() as fake:
        yield fake


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("nodes",),
        ("health",),
        ("spawn",),
        ("scale", "2"),
        ("drain", "n1"),
        ("kill", "n1"),
        ("restart", "n1"),
        ("attach", "http://127.0.0.1:1"),
        ("detach", "n1"),
        ("pin", "m"),
        ("balancer", "stats"),
        ("metrics",),
        ("checkpoint", "--show"),
        ("infer", "hello"),
        ("logs",),
        ("shutdown",),
    ],
)
def test_without_a_cluster_each_verb_says_how_to_start_one(arguments: tuple[str, ...]) -> None:
    done = run("llamboctl", *arguments)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "llamboctl: no cluster runs for this home; start one with: llamboctl init\n"


def test_spawn_says_what_it_started(control: FakeCluster) -> None:
    done = run("llamboctl", "spawn", "--count", "3", "--type", "tiny", "--slots", "2", "--model", "m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 nodes started: n1, n2, n3\n", "")
    assert control.calls == [("spawn", 3, "tiny", "m", 2)]
    document = json.loads(run("llamboctl", "spawn", "--json").stdout)
    assert [node["id"] for node in document] == ["n4"]


def test_a_path_is_sent_as_the_daemon_finds_it(control: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    run("llamboctl", "spawn", "--model", tmp_path / "a" / ".." / "x.gguf")
    run("llamboctl", "spawn", "--model", "./y.gguf")
    run("llamboctl", "spawn", "--model", "built-in")
    models = [call[3] for call in control.calls]
    assert models == [f"{tmp_path}/a/../x.gguf", str(Path.cwd() / "y.gguf"), "built-in"]


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("spawn", "--count", "0"), 2, "llamboctl: count must be at least 1, not 0\n"),
        (("spawn", "--count", "-1"), 2, "llamboctl: count must be at least 1, not -1\n"),
        (("spawn", "--count", "many"), 2, "--count"),
        (("drain", "n9"), 1, "llamboctl: no node is called 'n9'\n"),
        (("scale",), 2, "say how many nodes there shall be, once: llamboctl scale 4"),
        (("scale", "2", "--count", "3"), 2, "say how many nodes there shall be, once"),
        (("nodes", "frob"), 2, "nodes has no 'frob'"),
        (("balancer", "frob"), 2, "balancer has no 'frob'"),
        (("metrics", "--export", "xml"), 2, "--export xml: give prometheus or json"),
        (("checkpoint",), 2, "give one of --show, --save and --restore"),
        (("checkpoint", "--show", "--save"), 2, "give one of --show, --save and --restore"),
        (("checkpoint", "--restore"), 1, "which its log tells"),
        (("attach", "http://h", "--api-key-env", "NO_SUCH"), 2, "the environment variable NO_SUCH is not set"),
        (("top",), 2, "top needs a terminal"),
        (("infer", ""), 2, "the prompt is empty"),
        (("infer", "--max-tokens", "0", "x"), 2, "max_tokens must be between 1"),
        (("infer", "x"), 3, "is starting or ending"),
        (("logs", "n9"), 1, "no node is called 'n9'"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    control: FakeCluster, arguments: tuple[str, ...], status: int, complaint: str
) -> None:
    done = run("llamboctl", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_each_verb_reaches_the_cluster(control: FakeCluster) -> None:
    for number in range(1, 5):
        control.by_id[f"n{number}"] = replace(NODE, id=f"n{number}")
    outputs = [
        run("llamboctl", *arguments).stdout
        for arguments in (
            ("drain", "n1"),
            ("kill", "n2"),
            ("detach", "n3"),
            ("restart", "n4"),
            ("pin", "m"),
            ("unpin", "m"),
            ("scale", "--count", "2"),
        )
    ]
    assert outputs == [
        "node n1 is drained\n",
        "node n2 is gone\n",
        "node n3 is detached\n",
        "1 node restarted: n4\n",
        "model m is pinned\n",
        "model m is not pinned any more\n",
        "2 nodes\n",
    ]
    assert ("pin", "m", False) in control.calls


def test_the_key_of_an_attached_server_comes_from_the_environment_of_the_command(control: FakeCluster) -> None:
    done = run("llamboctl", "attach", "http://127.0.0.1:1", "--api-key-env", "MY_KEY", MY_KEY="sesame")
    assert (done.returncode, done.stdout) == (0, "1 node attached: n1\n")
    assert control.calls == [("attach", "http://127.0.0.1:1", "", "sesame", "MY_KEY")]


def test_nodes_are_a_table_for_people_and_a_list_for_programs(control: FakeCluster) -> None:
    assert run("llamboctl", "nodes").stdout == "no nodes; `llamboctl spawn` starts one\n"
    control.by_id["n1"] = replace(NODE, state="dead", reason="it was killed by signal 9 (SIGKILL)", uss_bytes=5 << 20)
    heading, row = run("llamboctl", "nodes", "list").stdout.splitlines()
    assert heading.split()[:5] == ["ID", "TYPE", "STATE", "MODEL", "SLOTS"]
    assert row.split()[:5] == ["n1", "tiny", "dead", "m", "1/4"]
    assert "5.0 MiB" in row
    assert row.endswith("it was killed by signal 9 (SIGKILL)")
    (node,) = json.loads(run("llamboctl", "nodes", "--json").stdout)
    assert set(node) >= NODE_KEYS


def test_status_has_the_promised_keys(control: FakeCluster) -> None:
    document = json.loads(run("llamboctl", "status", "--json").stdout)
    assert set(document) >= STATUS_KEYS
    assert set(document["nodes"]) >= {"total", "ready", "busy", "dead"}
    assert (document["http"], document["styx"]) == (None, [f"unix!{paths.runtime_dir()}/styx.sock"])
    text = run("llamboctl", "status").stdout
    assert "cluster   ready, up 2 s" in text
    assert "requests  3: 1 failed" in text


def test_health_exits_1_when_degraded_and_says_why(control: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    well = run("llamboctl", "health")
    assert (well.returncode, well.stdout) == (0, "ready\n")
    status = replace(control.cluster_status(), state="degraded", problems=("node n2 is suspect: \x1b[2Jgone",))
    monkeypatch.setattr(control, "cluster_status", lambda: status)
    ill = run("llamboctl", "health")
    assert (ill.returncode, ill.stdout) == (1, "degraded\nnode n2 is suspect: [2Jgone\n")
    assert "problem   node n2 is suspect: [2Jgone\n" in run("llamboctl", "status").stdout
    document = json.loads(run("llamboctl", "health", "--json").stdout)
    assert document == {"healthy": False, "state": "degraded", "problems": list(status.problems)}


def test_the_balancer_is_shown_and_changed(control: FakeCluster) -> None:
    shown = run("llamboctl", "balancer", "stats").stdout
    assert "5 of 10 prompt tokens were in a cache (50%)" in shown
    assert run("llamboctl", "balancer", "--strategy", "round-robin").stdout == "strategy  round-robin\n"
    assert control.strategy == "round-robin"
    assert json.loads(run("llamboctl", "balancer", "--json").stdout)["by_node"] == {"n1": 3}


def test_metrics_come_as_prometheus_text_or_json(control: FakeCluster) -> None:
    assert run("llamboctl", "metrics").stdout == control.metrics()
    document = json.loads(run("llamboctl", "metrics", "--export", "json").stdout)
    assert document["llambo_nodes"]["samples"] == [{"name": "llambo_nodes", "labels": {}, "value": 1.0}]


def test_a_checkpoint_is_shown_and_saved_where_it_was_asked_for(control: FakeCluster) -> None:
    assert json.loads(run("llamboctl", "checkpoint", "--show").stdout) == {"version": 1}
    assert run("llamboctl", "checkpoint", "--save").stdout == "/usual\n"
    assert run("llamboctl", "checkpoint", "--save", "here.json").stdout == f"{Path.cwd() / 'here.json'}\n"


def test_a_node_s_log_is_printed(control: FakeCluster, tmp_path: Path) -> None:
    log = tmp_path / "n1.log"
    log.write_text("one\ntwo\nthree\n")
    control.by_id["n1"] = replace(NODE, log=str(log))
    control.by_id["n2"] = replace(NODE, id="n2")
    assert run("llamboctl", "logs", "n1").stdout == "one\ntwo\nthree\n"
    assert run("llamboctl", "logs", "-n", "1", "-f", "n1").stdout == "three\n"  # without a process there is no more
    assert "n2 has no log here" in run("llamboctl", "logs", "n2").stderr


def test_on_a_terminal_the_start_of_nodes_is_drawn(control: FakeCluster) -> None:
    main, other = pty.openpty()
    process = subprocess.Popen(
        command("llamboctl", "spawn", "--count", "2"),
        stdout=subprocess.PIPE,
        stderr=other,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(other)
    drawn = b""
    with contextlib.suppress(OSError):  # which is how the other end of a terminal ends
        while piece := os.read(main, 65536):
            drawn += piece
    output, _ = process.communicate(timeout=60)
    os.close(main)
    assert (process.returncode, output) == (0, b"2 nodes started: n1, n2\n")
    assert b"starting nodes" in drawn
    assert b"2/2" in drawn


def test_a_spawn_that_is_interrupted_is_taken_back(control: FakeCluster) -> None:
    control.hold.clear()
    process = start("llamboctl", "spawn", stdin=subprocess.DEVNULL)
    while not control.calls:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130
    while not control.cancelled.is_set():
        time.sleep(0.01)
    assert control.by_id == {}
