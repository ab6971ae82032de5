"""The chat on a real terminal with the built-in model, driven as a person would; screens are compared by content."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import psutil

from llambo.core import paths
from llambo.limbot.records import Turn
from llambo.limbot.store import Store
from tests.cli.daemons import cluster
from tests.cli.programs import command
from tests.limbot.chatting import Chatter, limbot
from tests.terminals import ALT_ENTER, CTRL_C, CTRL_D, CTRL_Z, TAB, UP, on_terminal

GREEDY = ("--temperature", "0")
BEGUN = r"> go on\n(?!getting ready|thinking|nothing has come)\S"
"""The first words of an answer stand below the question, and not what is said while it is waited for."""


def stored() -> Store:
    return Store.open(paths.home() / "limbot.db")


def test_a_whole_chat() -> None:
    with limbot(*GREEDY) as person:
        person.expect("^the small built-in model knows only Llambo; for a bigger one: llamboctl pull REF$")
        first = person.ask("What is a node?")
        assert "> What is a node?" in first
        assert "engine" in first
        assert " tokens/s · built-in on n" in first
        second = person.ask("And how do I stop it?")
        assert "drain" in second
        person.enter("/status")
        person.expect(r"last prompt +\d+ tokens, \d+ of them from the cache")
        person.expect(r"in use +\d+ of 1536 tokens, 4 of 4 entries")
        person.enter("/history 2")
        person.expect("3 you\nAnd how do I stop it")
        person.enter("/undo")
        person.expect("are forgotten")
        person.enter("/save nodes")
        person.expect("is called nodes")
        person.enter("/set temperature 9")
        person.expect(r"temperature must be between 0\.0 and 5\.0")
        person.enter("/set temperature 0.5")
        person.expect("temperature is 0.5")
        person.enter("/nope")
        person.expect("/nope is no command; there are /help")
        person.enter("/search engine")
        person.expect("nodes: .*«engine»")
        person.enter("/sessions")
        person.expect("2 entries  nodes: What is a node")
        person.enter("/exit")
        assert person.wait() == 0
        assert "Traceback" not in person.text
        assert person.text.count("This is the small") + person.text.count("knows only Llambo") == 1
    session = stored().last()
    assert session is not None
    assert (session.name, session.turns, session.sampling) == ("nodes", 2, {"temperature": 0.5})


def test_ctrl_c_stops_the_answer_keeps_what_had_arrived_and_what_was_typed(endless_model: Path) -> None:
    with limbot("-m", endless_model, *GREEDY) as person:
        person.enter("go on")
        person.expect("Ctrl-C stops")
        person.expect(BEGUN)
        person.type("typed meanwhile")
        person.expect("^> typed meanwhile", on_screen=True)
        person.type(CTRL_C)
        person.expect("^stopped")
        person.prompt("typed meanwhile")
        person.type(CTRL_C)  # now it drops the line
        person.prompt()
        person.type(CTRL_D)
        assert person.wait() == 0
    store = stored()
    session = store.last()
    assert session is not None
    question, answer = store.turns(session.id)
    assert (question.text, answer.interrupted, answer.finish) == ("go on", True, "cancelled")
    assert answer.text


def test_kill_9_loses_at_most_the_last_second_and_the_chat_goes_on(endless_model: Path) -> None:
    with limbot("-m", endless_model, *GREEDY) as person:
        person.enter("go on")
        store = stored()
        person.until(lambda: any(len(turn.text) > 200 for turn in store.turns(1)), "nothing of the answer is kept")
        kept = store.turns(1)[1]
        children = psutil.Process(person.process.pid).children(recursive=True)
        person.process.kill()
        person.process.wait()
        assert not psutil.wait_procs(children, timeout=30)[1]
    with limbot("-c", "--max-tokens", "8", *GREEDY) as person:
        person.expect("conversation 1 goes on, 2 entries")
        person.expect("^interrupted")
        person.prompt()
        assert store.turns(1)[1].interrupted
        assert store.turns(1)[1].text.startswith(kept.text)
        person.ask("and on")
        person.type(CTRL_D)
        assert person.wait() == 0
    assert [turn.interrupted for turn in stored().turns(1)] == [False, True, False, False]


def test_a_paste_of_500_lines_is_one_message() -> None:
    with limbot(*GREEDY, "--max-tokens", "8", "-s", "You are brief.") as person:
        person.expect("knows only Llambo")
        person.prompt()
        person.paste("\r".join(f"l{number}" for number in range(500)))
        person.expect("^… l499", on_screen=True)
        person.type("\r")
        person.expect(r"> l0\n… l1\n.*\[488 more lines\]\n.*… l499\n")
        person.expect(r"first after|the prompt has \d+ tokens and the context holds 2048")
        person.type(CTRL_D)
        assert person.wait() == 0


def test_enter_and_alt_enter_change_places_with_multi() -> None:
    with limbot(*GREEDY, "--max-tokens", "4") as person:
        person.expect("knows only Llambo")
        person.prompt()
        person.type(f"one{ALT_ENTER}two")
        person.expect("^> one\n… two", on_screen=True)
        person.type("\r")
        person.expect("first after")
        person.enter("/multi")
        person.expect("Alt-Enter sends")
        person.type("three\rfour")
        person.expect("^> three\n… four", on_screen=True)
        person.type(ALT_ENTER)
        person.expect("first after.*first after")
        person.type(CTRL_D)
        assert person.wait() == 0
    assert [turn.text for turn in stored().turns(1) if turn.role == "user"] == ["one\ntwo", "three\nfour"]


def test_tab_completes_commands_parameters_and_sessions_and_up_finds_what_was_asked(tmp_path: Path) -> None:
    store = stored()
    number = store.begin()
    store.change(number, name="older")
    store.add(number, Turn("user", "What is a slot?", 1.0))
    store.close()
    with limbot() as person:
        person.expect("knows only Llambo")
        person.prompt()
        person.type(UP)
        person.prompt("What is a slot?")
        person.type(CTRL_C)
        person.prompt()
        person.type(f"/he{TAB}")
        person.prompt("/help")
        person.type(CTRL_C)
        person.type(f"/set tem{TAB}")
        person.prompt("/set temperature")
        person.type(CTRL_C)
        person.type(f"/load ol{TAB}")
        person.prompt("/load older")
        person.type("\r")
        person.expect(r"conversation 1 \(older\) goes on, 1 entries")
        person.type(CTRL_D)
        assert person.wait() == 0


def test_a_terminal_of_20_columns_is_enough() -> None:
    with limbot(*GREEDY, columns=20, rows=12) as person:
        person.expect("knows")
        person.enter("What is a node?")
        person.expect("first\nafter|first after|· first")
        person.prompt()
        words = " ".join(person.text.split())
        assert "isolate" in words
        person.enter("/help")
        person.expect("/multi")
        person.type(CTRL_D)
        assert person.wait() == 0
        assert "Traceback" not in person.text


def test_the_window_may_change_its_size_while_an_answer_comes(endless_model: Path) -> None:
    with limbot("-m", endless_model, *GREEDY, columns=80, rows=24) as person:
        person.enter("go on")
        person.expect(BEGUN)
        for columns, rows in ((40, 12), (100, 40), (20, 6), (80, 24)):
            person.resize(columns, rows)
            person.read_for(0.3)
        person.type(CTRL_C)
        person.expect("^stopped")
        person.type("still here")
        person.expect("^> still here", on_screen=True)
        person.type(CTRL_C)
        person.type(CTRL_D)
        assert person.wait() == 0
        assert "Traceback" not in person.text


def test_ctrl_z_stops_the_program_and_fg_brings_it_back() -> None:
    with on_terminal(["bash", "--norc", "--noprofile", "-i"], Chatter, PS1="sh$ ") as person:  # a shell that has jobs
        person.expect(r"sh\$")
        person.enter(f"{shlex.join(command('limbot', *GREEDY, '--max-tokens', '8'))}; echo ended $?")
        person.expect("knows only Llambo")
        person.prompt()
        person.type("half a li")
        person.prompt("half a li")
        person.type(CTRL_Z)
        person.expect("Stopped")
        person.enter("fg")
        person.prompt("half a li")
        person.type("ne")
        person.prompt("half a line")
        person.enter("")
        person.expect("first after")
        person.prompt()
        person.type(CTRL_D)
        person.expect(r"cut short\s+sh\$")
        person.enter("exit 0")
        assert person.wait() == 0


def test_what_a_model_says_never_drives_the_terminal(tmp_path: Path) -> None:
    store = stored()
    number = store.begin()
    store.add(number, Turn("user", "\x1b]0;owned\x07q", 1.0))
    store.add(
        number, Turn("assistant", "a\x1b[2Jb \x1b]0;owned\x07 \x9b31m c&#27;[5m &#13;d ```\n```\n\x1b[8m\n```", 2.0)
    )
    store.close()
    for more in ((), ("--raw",)):
        with limbot("-c", *more) as person:
            person.expect("goes on")
            person.expect("b ")
            person.prompt()
            person.type(CTRL_D)
            assert person.wait() == 0
            for attack in (b"\x1b[2J", b"\x1b]0;owned", b"\x9b31m", b"\x1b[5m", b"\x1b[8m"):
                assert attack not in person.raw


def test_the_chat_goes_on_when_the_cluster_comes_and_goes(tmp_path: Path) -> None:
    with limbot(*GREEDY, "--max-tokens", "8") as person:
        person.expect("knows only Llambo")
        person.ask("What is a node?")
        with cluster():
            assert "now on the cluster of this home, model built-in" in person.ask("What is a slot?")
        assert "now on a private node" in person.ask("What is a zygote?")
        with cluster() as facts:
            person.ask("What is the bridge?")
            person.expect("now on the cluster of this home.*now on a private node.*now on the cluster of this home")
            os.kill(facts["pid"], signal.SIGKILL)
            person.ask("What is a quorum?")
            assert person.text.count("now on a private node") == 2
        person.type(CTRL_D)
        assert person.wait() == 0
    turns = stored().turns(1)
    assert len(turns) == 10
    assert not any(turn.interrupted for turn in turns)


def test_a_cluster_that_ends_in_the_middle_of_an_answer_leaves_what_had_arrived(endless_model: Path) -> None:
    with cluster() as facts, limbot("-m", endless_model, *GREEDY) as person:
        person.prompt()
        person.enter("go on")
        person.expect(BEGUN)
        os.kill(facts["pid"], signal.SIGKILL)
        person.expect(r"the bridge at\s.*is gone")
        person.prompt()
        person.enter("/set max_tokens 4")
        person.expect("max_tokens is 4")
        person.enter("/retry")
        person.expect("now on a private node")
        person.expect("cut short")
        person.type(CTRL_D)
        assert person.wait() == 0
    (turn,) = [turn for turn in stored().turns(1) if turn.role == "assistant"]
    assert (turn.finish, turn.tokens) == ("length", 4), "the interrupted answer was replaced"


def test_ctrl_c_at_every_moment_is_survived() -> None:
    with limbot(*GREEDY) as person:
        person.expect("Ctrl-D ends")
        person.read_for(0.3)
        for number in range(12):
            person.enter(f"What is a node {number}?")
            person.read_for(0.02 * number)
            person.type(CTRL_C)
            person.read_for(0.05)
        person.enter("/set seed 5")
        person.expect("seed is 5")
        person.ask("What is a slot?")
        person.type(CTRL_D)
        assert person.wait() == 0
        assert "Traceback" not in person.text
    assert stored().turns(1)[-1].text.startswith("A slot")


def test_two_chats_at_once_on_one_home_are_fine() -> None:
    with limbot(*GREEDY, "--max-tokens", "8") as one, limbot(*GREEDY, "--max-tokens", "8") as other:
        for person in (one, other):
            person.expect("knows only Llambo")
            person.prompt()
        one.enter("What is a node?")
        other.enter("What is a slot?")
        for person in (one, other):
            person.expect("first after")
        one.ask("And how do I stop it?")
        other.enter("/sessions")
        other.expect("4 entries  What is a node")
        for person in (one, other):
            person.type(CTRL_D)
            assert person.wait() == 0
    assert sorted(session.turns for session in stored().sessions()) == [2, 4]


def test_what_has_scrolled_away_is_never_written_again(tmp_path: Path) -> None:
    store = stored()
    number = store.begin()
    code = "\n".join(f"line_{n} = {n}" for n in range(60))
    answer = f"# Title\n\nSome **bold** text 日本語 😀.\n\n```python\n{code}\n```\n\n- one\n- two\n"
    store.add(number, Turn("user", "show", 1.0))
    store.add(number, Turn("assistant", answer, 2.0))
    store.close()
    with limbot("-c", columns=60, rows=12) as person:
        person.expect("• two")
        person.prompt()
        person.type("x")
        person.prompt("x")
        lines = [line for line in person.text.split("\n") if line.startswith("line_")]
        assert lines == code.split("\n")
        assert "Some bold text" in person.text
        assert "**" not in person.text
        person.type(CTRL_C)
        person.type(CTRL_D)
        assert person.wait() == 0


def test_a_signal_ends_the_chat_with_the_terminal_as_it_was_and_the_answer_kept(endless_model: Path) -> None:
    with limbot("-m", endless_model, *GREEDY) as person:
        person.prompt()
        person.enter("go on")
        person.expect(BEGUN)
        children = psutil.Process(person.process.pid).children(recursive=True)
        person.process.send_signal(signal.SIGTERM)
        assert person.wait() == 143
        assert person.raw.rindex(b"\x1b[?2004l") > person.raw.rindex(b"\x1b[?2004h"), "pastes are as before"
        assert person.raw.rindex(b"\x1b[?25h") > person.raw.rindex(b"\x1b[?25l"), "the cursor is shown"
        assert not psutil.wait_procs(children, timeout=30)[1]
        assert "Traceback" not in person.text
    answer = stored().turns(1)[1]
    assert answer.interrupted
    assert answer.text
