"""Several nodes for one answer, from the command line: real nodes, the built-in model."""

from __future__ import annotations

import json
import sqlite3
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from llambo.cli.switching import PRIVATE, Switching
from llambo.cluster.launch.admission import Admission
from llambo.core import config, paths
from llambo.core.errors import NoMemory
from llambo.core.fusion import ALIASES, STRATEGIES, FusionRequest, VoteCast
from llambo.core.types import Done, GenerateRequest, Sampling
from tests.cli.daemons import cluster, ctl
from tests.cli.programs import on_a_terminal, run

QUESTION = "What is a node?"
UNSURE = "how do I the"
"""Half a question, which the model answers with this or that, where it may."""
SHORT = ("--max-tokens", "16")
GREEDY = ("--temperature", "0", *SHORT)
VARIED = ("--temperature", "1.9", "--seed", "5", *SHORT)
VOTE_KEYS = {"node", "model", "text", "tokens", "weight", "time_ms", "logprob", "error"}


def document(program: str, *arguments: str | Path, **options: Any) -> Any:
    done = run(program, *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_running_cluster_votes_and_tells_how_it_went() -> None:
    with cluster():
        ctl("scale", "3")
        alone = document("llamboctl", "infer", *GREEDY, QUESTION)
        for strategy in ("majority-vote", "weighted-average", "confidence-weighted", "token-average"):
            whole = document("llamboctl", "infer", *GREEDY, "--fusion", strategy, "--nodes", "3", QUESTION)
            fusion = whole["fusion"]
            assert (whole["text"], fusion["strategy"]) == (alone["text"], strategy)
            assert (fusion["asked"], fusion["agreement"]) == (3, 1.0)
            assert all(vote.keys() == VOTE_KEYS for vote in fusion["votes"])
            assert fusion["answered"] + fusion["cancelled"] == 3
        assert alone["fusion"] is None
        configured = document("llamboctl", "infer", *GREEDY, "--fusion", "majority-vote", QUESTION)
        assert configured["fusion"]["asked"] == 3, "cognition.n_nodes"

        done = run("llamboctl", "infer", "--json", "--stream", *GREEDY, "--fusion", "quorum", "--nodes", "2", QUESTION)
        *lines, last = map(json.loads, done.stdout.splitlines())
        kinds = [line["type"] for line in lines]
        votes = kinds.count("vote")
        assert votes == 2
        assert kinds == ["vote"] * votes + ["token"] * (len(kinds) - votes)
        assert lines[0].keys() == VOTE_KEYS | {"type", "asked", "answered", "agreement"}
        assert "".join(line["token"] for line in lines[votes:]) == last["text"] == alone["text"]

        strict = (*VARIED, "--fusion", "quorum", "--nodes", "3", "--min-consensus", "3")
        done = run("llamboctl", "infer", "--json", "--stream", *strict, UNSURE)
        assert {json.loads(line)["type"] for line in done.stdout.splitlines()} == {"vote"}
        assert (done.returncode, done.stderr.count("\n")) == (6, 1), "the votes are told once"
        drawn = on_a_terminal("llamboctl", "infer", *GREEDY, "--fusion", "majority-vote", "--nodes", "2", QUESTION)
        assert "majority-vote: 2 of 2 answered, agreement 100 %" in drawn

        plain = run("llamboctl", "infer", *GREEDY, "--fusion", "raft-consensus", "--nodes", "2", QUESTION)
        assert (plain.returncode, plain.stdout, plain.stderr) == (0, alone["text"] + "\n", "")

        for program, verb in (("llamboctl", ("infer",)), ("limbot", ())):
            quorum = (*VARIED, "--fusion", "quorum", "--nodes", "3", "--min-consensus", "3")
            for more in ((), ("--json",)):
                done = run(program, *verb, *quorum, *more, UNSURE)
                *told, sentence = done.stderr.splitlines()
                assert (done.returncode, done.stdout) == (6, "")
                assert sentence.startswith(f"{program}: no quorum: ")
                assert sentence.endswith("of 3 nodes agree, 3 are needed")
                assert 2 <= len(told) <= 3
                assert all(line.startswith(f"{program}: n") for line in told)
            by_a_letter = document(program, *verb, *quorum, "--extract", "[eE]", UNSURE)
            assert by_a_letter["fusion"]["agreement"] == 1.0


@pytest.mark.parametrize("program", [("limbot",), ("llamboctl", "infer")])
def test_help_names_every_strategy(program: tuple[str, ...]) -> None:
    told = " ".join(run(*program, "--help").stdout.split())
    assert all(name in told for name in (*STRATEGIES, *ALIASES))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--nodes", "3"), "the number of nodes goes with a strategy: add --fusion S, such as --fusion majority-vote"),
        (("--min-consensus", "3"), "the consensus goes with a strategy: add --fusion S"),
        (("--extract", "x"), "what is compared goes with a strategy: add --fusion S"),
        (("--fusion", "best"), "no fusion strategy is called 'best'; there are majority-vote, weighted-average"),
        (("--fusion", "quorum", "--nodes", "1"), "fusion takes between 2 and 64 nodes, not 1"),
        (("--fusion", "quorum", "--nodes", "0"), "the number of nodes must be 1 at least"),
        (("--fusion", "quorum", "--nodes", "-2"), "between 2 and 64 nodes, not -2"),
        (("--fusion", "quorum", "--nodes", "65"), "between 2 and 64 nodes, not 65"),
        (("--fusion", "quorum", "--nodes", "3", "--min-consensus", "4"), "min_consensus must be between 1 and"),
    ],
)
@pytest.mark.parametrize("program", ["limbot", "llamboctl"])
def test_what_cannot_be_meant_is_one_clear_line(program: str, arguments: tuple[str, ...], complaint: str) -> None:
    done = run(program, *(("infer",) if program == "llamboctl" else ()), *arguments, "hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_cluster_as_many_nodes_as_are_asked_for_are_started_and_taken_down() -> None:
    whole = document("limbot", *VARIED, "--fusion", "weighted-average", "--nodes", "4", UNSURE)
    assert len({vote["node"] for vote in whole["fusion"]["votes"]}) == 4
    assert whole["text"] in {vote["text"] for vote in whole["fusion"]["votes"]}
    told = json.loads(run("limbot", "logs", "--session", "1", "--json").stdout)["turns"]
    assert (told[0]["fusion"], told[1]["fusion"]) == (None, whole["fusion"])
    shown = run("limbot", "logs", "--session", "1").stdout
    assert "*weighted-average: 4 of 4 answered, agreement " in shown

    again = document("limbot", "-c", "And a slot?")
    assert (again["fusion"]["asked"], again["fusion"]["strategy"]) == (4, "weighted-average"), "the setting goes on"
    ended = document("limbot", "-c", "--fusion", "off", "And a zygote?")
    assert ended["fusion"] is None
    assert document("limbot", "-c", "And a bridge?")["fusion"] is None


def test_a_seeded_vote_is_the_same_again() -> None:
    asked = (*VARIED, "--fusion", "confidence-weighted", "--nodes", "3", QUESTION)
    texts = [document("limbot", *asked)["text"] for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_chat_without_a_terminal_votes_too_and_shows_the_answer_alone() -> None:
    lines = f"/fusion majority-vote 3\n{QUESTION}\n/fusion quorum 2 x\n/fusion\n/history\n/fusion off\n/exit\n"
    done = run("limbot", "-i", *GREEDY, stdin=lines)
    assert done.returncode == 0
    assert done.stdout.startswith("A node")
    assert "\x1b" not in done.stdout
    assert "answered" not in done.stdout.splitlines()[0]
    assert "fusion is majority-vote of 3 nodes\n" in done.stdout
    assert done.stderr == (
        "limbot: /fusion takes a strategy, how many nodes, and how many of them must agree: /fusion quorum 5 3\n"
    )
    with sqlite3.connect(paths.home() / "limbot.db") as db:
        ((fusion,),) = db.execute("SELECT fusion FROM turns WHERE role = 'assistant'").fetchall()
        ((setting,),) = db.execute("SELECT fusion FROM sessions").fetchall()
    assert json.loads(fusion)["agreement"] == 1.0
    assert json.loads(setting) == {}, "it was ended"


def test_a_chat_over_http_has_the_votes_of_the_cluster_there(tmp_path: Path) -> None:
    with cluster():
        ctl("scale", "2")
        address = json.loads(ctl("status", "--json"))["http"]
        elsewhere = {"LLAMBO_HOME": str(tmp_path / "mine")}
        whole = document(
            "limbot", *GREEDY, "--connect", address, "--fusion", "majority-vote", "--nodes", "2", QUESTION, **elsewhere
        )
        assert whole["text"] == document("limbot", *GREEDY, QUESTION)["text"]
        assert (whole["fusion"]["asked"], whole["fusion"]["agreement"]) == (2, 1.0)
        assert (whole["model"], whole["tokens"]) == ("built-in", 16)
        quorum = ("--fusion", "quorum", "--nodes", "3", "--min-consensus", "3")
        done = run("limbot", *VARIED, "--connect", address, *quorum, UNSURE, **elsewhere)
        assert (done.returncode, done.stdout) == (6, "")
        assert done.stderr.count("limbot: n") >= 3
        assert "of 3 nodes agree, 3 are needed" in done.stderr


async def test_a_private_cluster_grows_to_what_a_vote_needs_and_never_shrinks() -> None:
    def nodes() -> int:
        return len(psutil.Process().children(recursive=True)) - 1  # beside the zygote

    async with Switching(config.load()) as connection:
        assert (await connection.ready("")).where == PRIVATE
        assert nodes() == 1
        served = await connection.ready("", FusionRequest("majority-vote", 2))
        assert nodes() == 2
        assert await connection.ready("", FusionRequest("majority-vote", 2)) is served
        await connection.ready("")
        assert nodes() == 2
        greedy = Sampling(max_tokens=8, temperature=0.0)
        request = replace(GenerateRequest.from_prompt(QUESTION, sampling=greedy), fusion=FusionRequest("quorum", 2, 2))
        async with aclosing(connection.generate(request)) as events:
            seen = [event async for event in events]
        assert len({event.vote.node for event in seen if isinstance(event, VoteCast)}) == 2
        assert isinstance(seen[-1], Done)


async def test_more_nodes_than_fit_in_memory_are_refused_with_how_many_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def room_for_one(_self: Admission, _request: object) -> int:
        return 1

    async with Switching(config.load()) as connection:
        await connection.ready("")
        monkeypatch.setattr(Admission, "room_for", room_for_one)
        with pytest.raises(NoMemory, match=r"a private cluster of 4 nodes does not fit: 3 nodes .*; 1 would"):
            await connection.ready("", FusionRequest("majority-vote", 4))
        assert (await connection.ready("")).where == PRIVATE, "one node goes on answering"


def test_more_nodes_than_are_allowed_are_refused() -> None:
    done = run("limbot", "--fusion", "quorum", "--nodes", "5", "hi", LLAMBO_ORCHESTRATOR_MAX_NODES="3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "limbot: the cluster has at most 3 nodes (orchestrator.max_nodes), so 5 are too many\n"
