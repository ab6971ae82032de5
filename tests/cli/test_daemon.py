"""The daemon as a process: start, second start, signals, kill, restore, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from llambo import Bridge
from llambo.cli import running
from llambo.core import paths
from llambo.core.errors import Refused, Unreachable
from llambo.ninep.blocking import Client
from tests.cli.daemons import (
    all_gone,
    ask,
    cluster,
    ctl,
    no_daemon_left,
    processes,
    sockets_and_files,
)
from tests.cli.programs import command, run, start
from tests.terminals import Person, on_terminal

QUESTION = "What is distributed computing?"


def node_types() -> list[tuple[str, str, str]]:
    return [(node["id"], node["type"], node["model"]) for node in ask("nodes")]


def test_a_cluster_is_started_used_and_shut_down_with_nothing_left() -> None:
    with cluster() as facts:
        assert (facts["started"], facts["nodes"], facts["problems"]) == (True, 1, [])
        again = ask("init")
        assert (again["started"], again["pid"]) == (False, facts["pid"])
        assert f"runs already (pid {facts['pid']})" in ctl("init")
        assert ctl("spawn", "--count", "2", "--type", "tiny") == "2 nodes started: n2, n3\n"
        assert [kind for _, kind, _ in node_types()] == ["medium", "tiny", "tiny"]
        answer = ask("infer", "--max-tokens", "16", "--temperature", "0", QUESTION)
        assert answer["tokens"] == 16
        assert answer["node"] in {"n1", "n2", "n3"}
        assert (answer["failovers"], answer["fusion"]) == (0, None)
        status = ask("status")
        assert (status["nodes"]["total"], status["requests"]["total"]) == (3, 1)
        assert (status["pid"], status["home"]) == (facts["pid"], str(paths.home()))
        everything = processes(facts["pid"])
        assert ctl("shutdown") == "the cluster is stopped\n"
        assert all_gone(everything, timeout_s=3)
    assert sockets_and_files() == []
    assert ctl("status", status=3) == ""


def test_nodes_come_and_go_as_they_are_told() -> None:
    with cluster():
        assert ctl("scale", "3") == "3 nodes\n"
        assert ctl("drain", "n2") == "node n2 is drained\n"
        assert ctl("kill", "n3") == "node n3 is gone\n"
        assert [node for node, _, _ in node_types()] == ["n1"]
        before = ask("nodes")[0]
        assert ctl("restart", "n1") == "1 node restarted: n1\n"
        after = ask("nodes")[0]
        assert (after["id"], after["epoch"]) == ("n1", before["epoch"] + 1)
        assert after["pid"] != before["pid"]
        assert ctl("health") == "ready\n"


def test_what_cannot_be_is_one_line_and_a_status_and_changes_nothing() -> None:
    cases = [
        (("spawn", "--count", "0"), 2, "must be at least 1, not 0"),
        (("spawn", "--count", "-1"), 2, "must be at least 1, not -1"),
        (("spawn", "--count", "1000000000"), 1, "do not fit"),
        (("spawn", "--type", "huge"), 2, "'huge'; there are tiny, medium, large"),
        (("spawn", "--model", "/no/such.gguf"), 1, "no such file"),
        (("scale", "0"), 2, "at least 1"),
        (("balancer", "--strategy", "best"), 2, "'best'; there are round-robin"),
        (("infer", "--model", "no/where:Q1", "hello"), 1, "no/where"),
        (("kill", "n99"), 1, "'n99'"),
        (("attach", "http://127.0.0.1:1"), 3, "127.0.0.1:1"),
        (("checkpoint", "--save", "/proc/no/where.json"), 1, "cannot write the checkpoint /proc/no/where.json"),
        (("checkpoint", "--restore", "/no/where.json"), 1, "there is no checkpoint at /no/where.json"),
    ]
    with cluster():
        for arguments, status, complaint in cases:
            done = run("llamboctl", *arguments, HF_HUB_OFFLINE="1")
            assert (done.returncode, done.stdout) == (status, ""), arguments
            assert complaint in done.stderr
            assert done.stderr.count("\n") == 1
        assert [node["state"] for node in ask("nodes")] == ["ready"]


def test_a_killed_daemon_leaves_no_node_and_init_restores_what_there_was() -> None:
    with cluster() as facts:
        ctl("spawn", "--count", "2", "--type", "tiny")
        ctl("balancer", "--strategy", "round-robin")
        saved = ctl("checkpoint", "--save").strip()
        assert saved == str(paths.home() / "cluster-state.json")
        before = node_types()
        everything = processes(facts["pid"])
        everything[0].kill()
        assert all_gone(everything)
        assert (paths.runtime_dir() / "styx.sock").exists(), "nobody was left to remove it"
        assert ctl("status", status=3) == ""
        again = ask("init")
        assert (again["started"], again["nodes"], again["problems"]) == (True, 3, [])
        assert node_types() == before
        assert ask("status")["strategy"] == "round-robin"


def test_a_change_is_in_the_checkpoint_without_being_told_to_save() -> None:
    with cluster():
        ctl("spawn", "--type", "tiny")
        ctl("shutdown")
        state = json.loads((paths.home() / "cluster-state.json").read_text())
        assert [node["type"] for node in state["nodes"]] == ["medium", "tiny"]
        assert ask("init")["nodes"] == 2


def test_a_damaged_checkpoint_is_reported_kept_aside_and_does_not_stop_the_start() -> None:
    state = paths.home() / "cluster-state.json"
    state.parent.mkdir(mode=0o700)
    state.write_text('{"version": 1, "nodes": "many"')
    with no_daemon_left():
        done = run("llamboctl", "init")
        assert done.returncode == 0
        assert f"llamboctl: the checkpoint {state} is damaged: " in done.stderr
        assert "with 1 node\n" in done.stdout
        assert state.with_name("cluster-state.json.damaged-1").read_text() == '{"version": 1, "nodes": "many"'
        ctl("shutdown")


def test_a_model_that_is_gone_since_the_checkpoint_is_told(tmp_path: Path, walk_model: Path) -> None:
    moved = tmp_path / "w.gguf"
    moved.write_bytes(walk_model.read_bytes())
    with cluster():
        ctl("spawn", "--model", moved)
        ctl("shutdown")
        moved.unlink()
        again = ask("init")
        assert (again["started"], again["nodes"]) == (True, 1)
        assert "w.gguf" in "; ".join(again["problems"])


def test_sigterm_lets_an_answer_finish(walk_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_DEFAULT", str(walk_model))
    with cluster() as facts, Bridge.connect(facts["bridge"][0]) as client:
        everything = processes(facts["pid"])
        tokens = client.stream("hello", max_tokens=300, temperature=0)
        texts = [next(tokens).text]
        os.kill(facts["pid"], signal.SIGTERM)
        texts += [token.text for token in tokens]
        assert len(texts) == 301  # with the final one
        assert all_gone(everything)
    assert sockets_and_files() == []


def test_in_the_foreground_it_stays_until_it_is_interrupted() -> None:
    process = start("llamboctl", "init", "--foreground", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr, no_daemon_left():
        assert process.stdout.readline() == b"the cluster runs here until Ctrl-C\n"
        assert process.stdout.readline().startswith(b"namespace ")
        assert ctl("health") == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    assert sockets_and_files() == []


def test_a_daemon_that_is_stopped_in_its_tracks_is_told_from_one_that_is_gone() -> None:
    with cluster() as facts:
        os.kill(facts["pid"], signal.SIGSTOP)
        try:
            for asked in (("llamboctl", "status"), ("llamboctl", "infer", QUESTION), ("limbot", QUESTION)):
                done = run(*asked)
                assert (done.returncode, done.stdout) == (5, ""), asked
                assert "does not answer within 10 s" in done.stderr
                assert done.stderr.count("\n") == 1
        finally:
            os.kill(facts["pid"], signal.SIGCONT)
        assert ask("status")["pid"] == facts["pid"]


def test_on_a_terminal_it_is_told_that_a_daemon_is_waited_for() -> None:
    with cluster() as facts:
        os.kill(facts["pid"], signal.SIGSTOP)
        try:
            with on_terminal(command("llamboctl", "infer", QUESTION), Person, columns=160) as person:
                person.expect_next(rf"this home \(pid {facts['pid']}\) does not answer; waiting for 10 s at most")
                os.kill(facts["pid"], signal.SIGCONT)
                assert person.wait() == 0
                assert "computing" in person.text
        finally:
            os.kill(facts["pid"], signal.SIGCONT)


def test_limbot_asks_the_running_cluster_which_loads_what_it_is_asked_for(walk_model: Path) -> None:
    with cluster() as facts:
        greedy = ("--json", "--temperature", "0", "--max-tokens", "8")
        first = json.loads(run("limbot", *greedy, QUESTION).stdout)
        other = json.loads(run("limbot", *greedy, "-m", os.path.relpath(walk_model), "hello").stdout)
        assert (first["model"], other["model"]) == ("built-in", "walk")
        status = ask("status")
        assert [model["name"] for model in status["models"]] == ["built-in", "walk"]
        assert status["requests"]["total"] == 2
        files = psutil.Process(facts["pid"]).rlimit(psutil.RLIMIT_NOFILE)
        assert files == (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2


def test_its_log_is_followed_and_never_holds_prompts() -> None:
    with cluster() as facts:
        follower = start("llamboctl", "logs", "-f", stdin=subprocess.DEVNULL)
        node_follower = start("llamboctl", "logs", "-f", "n1", stdin=subprocess.DEVNULL)
        ask("infer", "--max-tokens", "4", "my secret prompt")
        ctl("shutdown")
        log, errors = follower.communicate(timeout=60)
        assert (follower.returncode, errors) == (0, b"")
        assert b"node_ready" in log
        assert node_follower.communicate(timeout=60)[1] == b""
        assert node_follower.returncode == 0
        assert log.decode() == Path(facts["log"]).read_text()
        assert b"secret" not in log
        assert ctl("logs", "-n", "1") == log.decode().splitlines(keepends=True)[-1]


def test_it_is_known_to_others_only_while_it_lives() -> None:
    assert running.find(running.DAEMON) is None
    with cluster() as facts:
        found = running.find(running.DAEMON)
        assert found is not None
        assert (found.pid, [found.styx]) == (facts["pid"], facts["styx"])
        assert Path(found.styx.removeprefix("unix!")).stat().st_mode & 0o777 == 0o600
    assert running.find(running.DAEMON) is None


def test_without_on_demand_only_what_is_loaded_answers(walk_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_ON_DEMAND", "false")
    with cluster():
        done = run("llamboctl", "infer", "--model", walk_model, "hello")
        assert (done.returncode, done.stdout) == (1, "")
        assert "built-in" in done.stderr, "the error names what is loaded"
        assert ask("infer", "--max-tokens", "4", "--model", "built-in", "hello")["tokens"] == 4
        assert [model["name"] for model in ask("status")["models"]] == ["built-in"]


def test_quit_on_its_bridge_stops_it() -> None:
    with cluster() as facts:
        everything = processes(facts["pid"])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(facts["bridge"][0].removeprefix("unix!"))
            client.sendall(b"QUIT\n")
            assert b"Goodbye" in client.recv(1000)
        assert all_gone(everything)
    assert sockets_and_files() == []


def test_the_stream_of_infer_is_a_line_per_token_and_then_the_document() -> None:
    with cluster():
        done = run("llamboctl", "infer", "--json", "--stream", "--max-tokens", "6", "-", stdin=QUESTION)
        *tokens, document = map(json.loads, done.stdout.splitlines())
        assert {token["type"] for token in tokens} == {"token"}
        assert "".join(token["token"] for token in tokens) == document["text"]
        raw = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        plain = run("llamboctl", "infer", "--max-tokens", "6", "--temperature", "0", "--raw-prompt", raw)
        assert (plain.returncode, plain.stderr) == (0, "")
        assert plain.stdout.endswith("\n")
        quoted = ("llamboctl", "infer", "--max-tokens", "6", "--temperature", "0", "--raw-prompt", json.dumps(raw))
        assert run(*quoted).stdout == plain.stdout


def test_the_namespace_is_served_over_tcp_to_who_has_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = ctl("token", "create", "--scope", "read").split()[-1]
    monkeypatch.setenv("LLAMBO_STYX_LISTEN", "tcp!127.0.0.1!0")
    with cluster() as facts:
        local, remote = facts["styx"]
        assert local == f"unix!{paths.runtime_dir()}/styx.sock"
        assert ask("status")["styx"] == [local, remote]
        with Client.connect(remote, aname=secret) as client:
            assert b"state ready\n" in client.read_file("status")
            origin = b"environment variable LLAMBO_STYX_LISTEN"
            assert b"styx.listen = tcp!127.0.0.1!0  # %s\n" % origin in client.read_file("config")
            assert "ctl" not in [entry.name for entry in client.ls()]
        with pytest.raises(Refused):
            Client.connect(remote)


@pytest.mark.parametrize("is_whole", [False, True])
def test_shutdown_lets_an_answer_of_a_session_finish(
    walk_model: Path, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_DEFAULT", str(walk_model))
    text = b""
    with cluster() as facts, Client.connect(facts["styx"][0]) as client:
        everything = processes(facts["pid"])
        # Once the answer is whole the daemon hangs up, perhaps before its files are closed.
        with contextlib.suppress(Unreachable), client.open("clone", "rw") as clone:
            path = f"sessions/{clone.read().decode().strip()}"
            clone.write("max_tokens 300\ntemperature 0")
            client.write_file(f"{path}/prompt", "hello")
            with client.open(f"{path}/stream") as stream:
                text = stream.read()
                while is_whole and b"done" not in client.read_file(f"{path}/status"):
                    pass
                client.write_file("ctl", "shutdown")
                while piece := stream.read():
                    text += piece
        assert len(text) >= 300, "every token of it has a character at least"
        assert all_gone(everything)
    assert sockets_and_files() == []
