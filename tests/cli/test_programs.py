"""`llamboctl limbot …` and `llamboctl dish …` are these programs; what `bridge` and `token` say to people."""

from __future__ import annotations

import json
import re

from tests.cli.fake_daemon import fake_daemon
from tests.cli.programs import run


def test_llamboctl_runs_limbot_with_its_own_options() -> None:
    done = run("llamboctl", "-v", "limbot", "--json", "--max-tokens", "3", "-s", "limbot", "What is a node?")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == 3
    wrong = run("llamboctl", "limbot", "--temperature", "9", "hi")
    assert (wrong.returncode, wrong.stderr) == (2, "limbot: temperature must be between 0.0 and 5.0, not 9.0\n")


def test_llamboctl_runs_dish_with_its_own_options_and_status() -> None:
    with fake_daemon():
        done = run("llamboctl", "dish", "-c", "echo one | cat; exit 7")
        assert (done.returncode, done.stdout, done.stderr) == (7, "one\n", "")
        assert "-c COMMAND" in run("llamboctl", "dish", "--help").stdout
        assert {"limbot", "dish"} <= set(run("llamboctl", "--help").stdout.split())


def test_who_looks_for_a_bridge_beside_a_cluster_is_told_where_the_clusters_is() -> None:
    with fake_daemon():
        done = run("llamboctl", "bridge", "status")
    told = "no bridge runs alone for this home; its cluster speaks the protocol on /nowhere"
    assert (done.returncode, done.stderr) == (3, f"llamboctl: {told}\n")


def test_tokens_are_listed_with_the_minute_of_their_end_and_none_is_said_to_be_none() -> None:
    none = run("llamboctl", "token", "list")
    assert none.stdout == "no tokens; `llamboctl token create --scope infer` makes one\n"
    secret = run("llamboctl", "token", "create", "--scope", "read", "--expires", "90m").stdout.strip()
    listed = run("llamboctl", "token", "list").stdout
    assert secret not in listed
    minute = r"\d{4}-\d\d-\d\d \d\d:\d\dZ"
    assert re.fullmatch(rf"[0-9a-f]+  read   created {minute}  expires {minute}\n", listed)
