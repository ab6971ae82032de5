"""Chats as scripts have them, what is kept of them, and `limbot logs`."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llambo.core import paths
from tests.cli.daemons import cluster, ctl
from tests.cli.programs import command, run

QUESTION = "What is a node?"
GREEDY = ("--temperature", "0", "--max-tokens", "24")


def document(*arguments: str | Path, **options: Any) -> Any:
    done = run("limbot", "--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_single_question_is_kept_and_gone_on_with() -> None:
    first = document(*GREEDY, "-s", "Be brief.", QUESTION)
    second = document("-c", "And how do I stop it?")
    assert second["prompt_tokens"] > first["prompt_tokens"] + 24
    assert second["tokens"] <= 24, "the settings of the conversation stay"
    (told,) = json.loads(run("limbot", "logs", "--json").stdout)
    assert (told["title"], told["entries"], told["system"]) == (QUESTION, 4, "Be brief.")
    turns = json.loads(run("limbot", "logs", "--session", "1", "--json").stdout)["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert (turns[1]["text"], turns[1]["tokens"], turns[1]["node"]) == (first["text"], 24, first["node"])


def test_nothing_to_go_on_with_is_told() -> None:
    done = run("limbot", "-c", "and?")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no conversation to go on with yet" in done.stderr


def test_a_chat_without_a_terminal_takes_a_line_for_a_message() -> None:
    lines = f"{QUESTION}\n/status\n/nope\n\n/exit\nnever asked\n"
    done = run("limbot", "-i", *GREEDY, stdin=lines)
    assert done.returncode == 0
    assert done.stdout.startswith("A node")
    assert re.search(r"^model +built-in$", done.stdout, re.MULTILINE)
    assert done.stderr.startswith("limbot: /nope is no command; there are /help,")
    assert done.stderr.count("\n") == 1
    (told,) = json.loads(run("limbot", "logs", "--json").stdout)
    assert told["entries"] == 2


def test_logs_list_search_export_and_import(tmp_path: Path) -> None:
    run("limbot", *GREEDY, QUESTION)
    run("limbot", *GREEDY, "What is a slot?")
    listed = run("limbot", "logs").stdout.splitlines()
    assert [line.split("  ")[-1] for line in listed] == [QUESTION, "What is a slot?"]
    assert run("limbot", "logs", "isola").stdout.startswith("1: ")
    assert run("limbot", "logs", "nowhere", "said").stdout == "nothing that was said has: nowhere said\n"
    markdown = run("limbot", "logs", "--export", "md", "--session", "1").stdout
    assert markdown.startswith(f"# {QUESTION}\n")
    whole = run("limbot", "logs", "--export", "json").stdout
    file = tmp_path / "all.json"
    file.write_text(whole)
    done = run("limbot", "logs", "--import", file, LLAMBO_HOME=str(tmp_path / "other"))
    assert done.stdout == "read in: 2 conversations, 4 entries\n"
    assert run("limbot", "logs", "--export", "json", LLAMBO_HOME=str(tmp_path / "other")).stdout == whole


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("logs", "--session", "7"), "no conversation has the number or name '7'"),
        (("logs", "--export", "pdf"), "'pdf' is no format; there are markdown, text, json"),
        (("logs", "--import", "/nonexistent.json"), "cannot read /nonexistent.json"),
        (("logs", "--import", "/dev/null"), "no JSON"),
        (("--nodes", "3", "hi"), "add --fusion S"),
        (("-i", "--json"), "a chat has many"),
        (("-f", "/nonexistent", "hi"), "cannot read /nonexistent"),
        (("-f", "/tmp", "hi"), "is a directory"),
        (("-f", "/dev/zero", "hi"), "/dev/zero has 8388609 bytes"),
        (("--raw-prompt", "-s", "x", "hi"), "a raw prompt takes no system prompt"),
        (("--connect", "nowhere", "hi"), "write tcp!HOST!PORT"),
        (("--connect", "tcp!127.0.0.1!1", "hi"), "127.0.0.1"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = run("limbot", *arguments)
    assert done.returncode in {1, 2, 3}
    assert done.stdout == ""
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_are_put_before_the_question_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("A `node` is\n```\ncode\n```\n")
    document("-f", tmp_path / "notes.txt", *GREEDY, "What does it say?")
    turns = json.loads(run("limbot", "logs", "--session", "1", "--json").stdout)["turns"]
    assert turns[0]["text"] == "File notes.txt:\n````\nA `node` is\n```\ncode\n```\n````\n\nWhat does it say?"
    (tmp_path / "long.txt").write_text("word " * 5000)
    done = run("limbot", "-f", tmp_path / "long.txt", "And that?")
    assert done.returncode == 2
    assert re.search(r"the prompt has \d+ tokens and the context holds 2048", done.stderr)
    lines = f"/file {tmp_path / 'long.txt'}\n/file {tmp_path / 'notes.txt'}\n/status\n"
    done = run("limbot", "-i", stdin=lines)
    assert re.search(r"long.txt has 5\d\d\d tokens and the context holds 2048", done.stderr)
    assert re.search(r"^attached +notes.txt$", done.stdout, re.MULTILINE)


def test_a_long_chat_is_trimmed_and_summarised_and_goes_on() -> None:
    questions = [f"What is {what}?" for what in ("a node", "a slot", "the bridge", "a zygote", "the namespace")] * 3
    lines = "".join(f"{question}\n/status\n" for question in questions)
    done = run("limbot", "-i", "--temperature", "0", stdin=f"{lines}/history 1\n", LLAMBO_MODELS_CTX="512")
    assert (done.returncode, done.stderr) == (0, "")
    uses = [tuple(map(int, use)) for use in re.findall(r"in use +(\d+) of 384 tokens, (\d+) of (\d+)", done.stdout)]
    assert len(uses) == len(questions)
    assert uses[-1][2] == 2 * len(questions)
    kept = [entries for _, entries, _ in uses]
    trims = [n for n, (before, after) in enumerate(itertools.pairwise(kept)) if after < before]
    assert trims
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(trims)), "trims are rare"
    prompts = re.findall(r"last prompt +(\d+) tokens, (\d+) of them from the cache", done.stdout)
    for turn, (size, cached) in enumerate(prompts):
        if turn and turn - 1 not in trims:
            before = int(prompts[turn - 1][0])
            assert int(cached) >= before - 2, f"turn {turn}: {cached} of {size}, the last one had {before}"
    assert re.search(r"^\(summary of entries 1 to \d+: .{10,}\)$", done.stdout, re.MULTILINE)
    (told,) = json.loads(run("limbot", "logs", "--json").stdout)
    assert told["entries"] == 2 * len(questions), "what is trimmed is kept all the same"


def test_a_home_that_cannot_be_written_is_told_and_the_answer_comes(tmp_path: Path) -> None:
    home = tmp_path / "locked"
    (home / "limbot.db").mkdir(parents=True)  # in the way, for root too
    done = run("limbot", *GREEDY, QUESTION, LLAMBO_HOME=str(home))
    assert done.returncode == 0
    assert done.stdout.startswith("A node")
    assert "will not be kept" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_database_is_kept_aside_and_told() -> None:
    paths.home().mkdir(parents=True)
    (paths.home() / "limbot.db").write_bytes(b"no database at all " * 500)
    done = run("limbot", *GREEDY, QUESTION)
    assert done.returncode == 0
    assert "damaged" in done.stderr
    assert len(list(paths.home().glob("limbot.db.damaged-*"))) == 1
    assert len(json.loads(run("limbot", "logs", "--json").stdout)) == 1


def test_a_chat_with_a_closed_standard_input_is_refused() -> None:
    line = f"{shlex.join(command('limbot', '-i'))} <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (2, "limbot: standard input is closed; a chat needs one\n")


def test_more_input_than_any_context_holds_is_refused_with_the_limit() -> None:
    line = f"head -c 2000000000 /dev/zero | {shlex.join(command('limbot', '-'))}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "standard input has more than 8388608 bytes" in done.stderr


def test_a_cluster_elsewhere_is_reached_over_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMBO_GATEWAY_LISTEN", "127.0.0.1:0")
    with cluster():
        address = json.loads(ctl("status", "--json"))["http"]
        there = document(*GREEDY, "--connect", address, QUESTION, LLAMBO_HOME=str(tmp_path / "mine"))
        here = document(*GREEDY, QUESTION)
        assert there["text"] == here["text"]
        assert (there["model"], there["tokens"], there["prompt_tokens"]) == ("built-in", 24, here["prompt_tokens"])
    assert not list((tmp_path / "mine").glob("run/*"))
