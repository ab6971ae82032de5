"""The program without a terminal, over real nodes: a private cluster, and the daemon of this home."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from llambo.core import paths
from tests.cli.daemons import cluster
from tests.cli.programs import command, run

REFUSALS = [
    ("echo 'scale 3 4 5' > ctl", 2, "dish: scale has too many arguments; write: scale N [MODEL]\n"),
    ("echo scael > ctl", 2, "dish: unknown command 'scael'; there are spawn, scale,"),
    ("drain n9", 1, "dish: no node is called 'n9'"),
    ("spawn x", 2, "dish: spawn: N is a whole number, not 'x'\n"),
    ("infer temperature=9 hi", 2, "dish: temperature must be between 0.0 and 5.0, not 9.0\n"),
    ("infer model=nope hi", 1, "dish: no model is called 'nope'"),
    ("cat 'x", 2, "dish: the quote ' is not closed; inside it ' is written '' (position 5)\n"),
    ("fusion quorum 1 hi", 2, "dish: fusion takes between 2 and 64 nodes, not 1\n"),
    ("fusion extract=( hi", 2, "dish: "),
    ("exit 9", 9, ""),
]


def test_without_a_daemon_a_private_cluster_answers_and_leaves_nothing() -> None:
    done = run("dish", "-c", "What is a node?")
    assert (done.returncode, done.stderr) == (0, "")
    assert "node" in done.stdout.lower()
    assert done.stdout.endswith("\n")
    assert not list(paths.runtime_dir().glob("dish-*"))


def test_a_private_cluster_is_controlled_by_its_files_and_by_commands() -> None:
    script = """
    echo 'scale 2' > /n/llambo/ctl
    ls /n/llambo/nodes
    kill n1
    ls nodes
    cat nodes/n2/model
    restart n2
    """
    done = run("dish", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("n1/\nn2/\n")
    assert "n2/\nbuilt-in\n" in done.stdout


def test_a_script_stops_at_its_first_failure_and_names_its_line(tmp_path: Path) -> None:
    script = tmp_path / "a.dish"
    script.write_text("#!/usr/bin/env dish\necho one\ncat nope  # is not there\necho two\n")
    done = run("dish", script)
    assert (done.returncode, done.stdout) == (1, "one\n")
    assert done.stderr == f"dish: {script}:3: /n/llambo/nope: file does not exist\n"


def test_a_script_is_read_from_a_pipe_and_input_reaches_commands() -> None:
    assert run("dish", stdin="echo one\nexit 4\n").returncode == 4
    assert run("dish", "-c", "cat | tail -n 1", stdin="a\nb\n").stdout == "b\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("no-such-file",), "dish: cannot read no-such-file: No such file or directory\n"),
        (("-c", "ls", "file"), "dish: give either -c COMMAND or a FILE\n"),
    ],
)
def test_wrong_arguments_are_told(arguments: tuple[str, ...], sentence: str) -> None:
    done = run("dish", *arguments)
    assert (done.returncode, done.stderr) == (2, sentence)


def test_fusion_shows_every_vote_and_exits_with_6_where_there_is_no_quorum(tiny_model: Path) -> None:
    done = run("dish", "-c", "scale 2; fusion majority-vote 2 temperature=0 max_tokens=8 What is a node?")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *votes, blank, answer = done.stdout.splitlines()
    assert (first, second, blank) == ("n1", "n2", "")
    assert len(votes) == 2
    assert all(vote.endswith(f" text='{answer}'") for vote in votes)
    line = "fusion quorum 3 min_consensus=3 temperature=2 max_tokens=8 go on"
    done = run("dish", "-c", line, LLAMBO_MODELS_DEFAULT=str(tiny_model))
    assert (done.returncode, done.stderr) == (6, "dish: no quorum: 1 of 3 nodes agree, 3 are needed\n")
    assert 2 <= len(done.stdout.splitlines()) <= 3


def test_an_interrupt_ends_a_script_with_130_and_its_cluster(tiny_model: Path) -> None:
    process = subprocess.Popen(
        command("dish", "-c", "infer go on"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "LLAMBO_MODELS_DEFAULT": str(tiny_model)},
    )
    assert process.stdout is not None
    assert process.stdout.read(1)
    nodes = psutil.Process(process.pid).children(recursive=True)
    assert nodes
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()
    assert not psutil.wait_procs(nodes, timeout=30)[1]


def test_the_daemon_is_used_where_it_runs_and_lives_on() -> None:
    with cluster() as facts:
        done = run("dish", "-c", "scale 2; cat status; sessions")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"pid {facts['pid']}\n" in done.stdout
        assert done.stdout.startswith("n1\nn2\n")
        assert done.stdout.endswith("no sessions\n")
        address = f"unix!{paths.runtime_dir() / 'styx.sock'}"
        beside = run("dish", "-c", f"mount {address} /n/other; cluster /n/other; scale 1; ls /n/llambo/nodes; cluster")
        assert beside.stderr == ""
        assert "/\n  /n/llambo  state ready" in beside.stdout
        assert "* /n/other  state ready" in beside.stdout
        assert psutil.pid_exists(facts["pid"])


def test_a_refusal_is_shown_as_it_is_and_its_status_is_the_programs() -> None:
    with cluster():
        for line, status, sentence in REFUSALS:
            done = run("dish", "-c", line)
            assert done.stderr.startswith(sentence), line
            assert bool(done.stderr) == bool(sentence), line
            assert (done.returncode, done.stdout) == (status, ""), line
