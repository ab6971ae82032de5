"""The store of chats: searchable, shared, and none the worse for what kills programs and files."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llambo.core.errors import BadRequest, LlamboError, NameInUse, NotFound
from llambo.core.fusion import Fusion, Vote
from llambo.core.fusion_document import fusion_document
from llambo.limbot import schema, transfer
from llambo.limbot.attachments import Attachment, with_files
from llambo.limbot.records import Turn, conversation_of
from llambo.limbot.shelf import Shelf
from llambo.limbot.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "limbot.db"


def user(text: str) -> Turn:
    return Turn("user", text, time.time())


def answer(text: str, **more: object) -> Turn:
    return Turn("assistant", text, time.time(), **more)  # type: ignore[arg-type]


def test_what_was_said_is_there_again_with_all_that_is_known_of_it(path: Path) -> None:
    store = Store.open(path)
    assert (store.notices, store.lasts) == ((), True)
    number = store.begin(system="Be brief.", model="m", sampling={"seed": 7})
    store.add(number, user("hello"))
    turn = store.add(number, answer(""), is_open=True)
    store.grow(turn, "wor")
    store.finish(turn, answer("world", model="m", node="n1", tokens=1, ttft_ms=2.5, finish="stop"))
    store.change(number, first_kept=turn, pin_tokens=9)
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store = Store.open(path)
    session = store.last()
    assert session is not None
    assert (session.system, session.sampling, session.title, session.turns) == ("Be brief.", {"seed": 7}, "hello", 2)
    said = store.turns(number)
    assert [(turn.role, turn.text) for turn in said] == [("user", "hello"), ("assistant", "world")]
    assert (said[1].node, said[1].tokens, said[1].ttft_ms, said[1].interrupted) == ("n1", 1, 2.5, False)
    conversation = conversation_of(session, said)
    assert (conversation.start, conversation.pin_tokens, conversation.kept[0].turn) == (1, 9, turn)
    store.close()


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("What differs?", "What differs?"),
        ("", "File a.py:"),
        ("Why `x`?\n```\ncode\n```", "File a.py:"),
    ],
)
def test_a_conversation_that_begins_with_files_is_called_after_the_question(
    path: Path, prompt: str, title: str
) -> None:
    store = Store.open(path)
    attached = [Attachment("a.py", "x = 1\n" * 500), Attachment("b.py", "y = '```'\n")]
    store.add(store.begin(), user(with_files(prompt, attached)))
    session = store.last()
    assert session is not None
    assert session.title == title
    store.close()


def test_words_are_found_by_their_beginnings_in_any_case_and_without_accents(path: Path) -> None:
    store = Store.open(path)
    number = store.begin()
    store.add(number, user("Où est le PRÉFIXE cache?"))
    turn = store.add(number, answer("first text"))
    store.grow(turn, "second text")
    assert [hit.snippet for hit in store.search("prefi cach")] == ["Où est le «PRÉFIXE» «cache»?"]
    assert store.search("first") == []
    assert len(store.search("second")) == 1
    for query in ("", '"', "NOT", "a OR b", "x*", "(", "-", "col:x", "'; DROP TABLE turns"):
        assert isinstance(store.search(query), list)
    store.remove([turn])
    assert store.search("second") == []
    store.close()


def test_two_programs_write_at_once_and_nothing_is_lost(path: Path) -> None:
    Store.open(path).close()
    code = (
        "import sys, time, pathlib\n"
        "from llambo.limbot.store import Store\n"
        "from llambo.limbot.records import Turn\n"
        "store = Store.open(pathlib.Path(sys.argv[1])); n = store.begin()\n"
        "for i in range(100): store.grow(store.add(n, Turn('user', '', time.time())), f'{n} {i}')\n"
    )
    programs = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [program.wait(60) for program in programs] == [0, 0, 0]
    store = Store.open(path)
    for number in (1, 2, 3):
        assert [turn.text for turn in store.turns(number)] == [f"{number} {i}" for i in range(100)]
    store.close()


def test_a_writer_that_was_killed_leaves_a_turn_that_says_so_and_one_that_lives_does_not(path: Path) -> None:
    code = (
        "import os, sys, time, pathlib\n"
        "from llambo.limbot.store import Store\n"
        "from llambo.limbot.records import Turn\n"
        "store = Store.open(pathlib.Path(sys.argv[1])); n = store.begin()\n"
        "store.grow(store.add(n, Turn('assistant', '', time.time()), is_open=True), 'half an ans')\n"
        "print('there', flush=True); time.sleep(60)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"there\n"
    store = Store.open(path)
    assert [(turn.text, turn.interrupted) for turn in store.turns(1)] == [("half an ans", False)]
    program.kill()
    program.wait()
    program.stdout.close()
    assert [(turn.text, turn.interrupted) for turn in store.turns(1)] == [("half an ans", True)]
    store.close()


@pytest.mark.parametrize("damage", ["garbage", "middle", "empty table"])
def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(path: Path, damage: str) -> None:
    store = Store.open(path)
    number = store.begin()
    for n in range(300):
        store.add(number, user(f"text {n} " * 20))
    store.close()
    data = bytearray(path.read_bytes())
    match damage:
        case "garbage":
            data[:4096] = b"x" * 4096
        case "middle":
            for place in range(8192, len(data), 4096):
                data[place : place + 64] = b"\xff" * 64
        case _:
            connection = sqlite3.connect(path)
            connection.execute("DROP TABLE turns")
            connection.commit()
            connection.close()
            data = bytearray(path.read_bytes())
    path.write_bytes(data)
    store = Store.open(path)
    aside = sorted(path.parent.glob("limbot.db.damaged-*"))
    assert aside[0].read_bytes() == data
    assert len(store.notices) == 1
    assert aside[0].name in store.notices[0]
    assert store.lasts
    assert store.sessions() == []
    store.add(store.begin(), user("on we go"))
    store.close()


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    Store.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    store = Store.open(path)
    assert not store.lasts
    assert "newer Llambo (version 99" in store.notices[0]
    store.add(store.begin(), user("not kept"))
    store.close()
    assert path.read_bytes() == before


def test_where_nothing_can_be_written_the_chat_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file is in the way")
    store = Store.open(tmp_path / "home" / "limbot.db")
    assert not store.lasts
    assert "will not be kept" in store.notices[0]
    number = store.begin()
    store.add(number, user("hello"))
    assert [turn.text for turn in store.turns(number)] == ["hello"]
    store.close()


def test_an_older_version_is_brought_up_once_by_whoever_comes_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(path)
    store.add(store.begin(), user("from before"))
    store.close()
    more = "ALTER TABLE sessions ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue';"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, more))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    Store.open(path).close()
    store = Store.open(path)
    assert store.notices == ()
    assert store.questions() == ["from before"]
    store.close()


def test_names_are_unique_and_numbers_and_names_find_sessions(path: Path) -> None:
    store = Store.open(path)
    first, second = store.begin(), store.begin()
    store.change(first, name="one")
    with pytest.raises(NameInUse, match="another conversation is called 'one'"):
        store.change(second, name="one")
    assert store.session("one").id == store.session(first).id == first
    with pytest.raises(NotFound, match="'two'"):
        store.session("two")
    with pytest.raises(NotFound):
        store.session("9" * 30)
    store.close()


def test_a_full_disk_is_an_error_and_no_crash(path: Path) -> None:
    store = Store.open(path)
    number = store.begin()
    store._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(LlamboError, match="cannot be read or written: database or disk is full"):
        for _ in range(1000):
            store.add(number, user("x" * 1000))
    store.turns(number)
    store.close()


async def test_the_shelf_runs_calls_in_their_order_in_another_thread(path: Path) -> None:
    async with Shelf(path) as shelf:
        number = await shelf(Store.begin, system="s")
        for n in range(20):
            await shelf(Store.add, number, user(str(n)))
        assert [turn.text for turn in await shelf(Store.turns, number)] == [str(n) for n in range(20)]
        with pytest.raises(NotFound):
            await shelf(Store.session, "nope")


def test_an_export_is_read_in_again_as_it_was(path: Path, tmp_path: Path) -> None:
    store = Store.open(path)
    number = store.begin(system="Be brief.", sampling={"temperature": 0.5})
    store.change(number, name="mine")
    store.add(number, user("ask `code`\nmore"))
    store.add(number, answer("tell", model="m", tokens=3, interrupted=True))
    stored = [(store.session(number), store.turns(number))]
    text = transfer.to_json(stored)
    other = Store.open(tmp_path / "other.db")
    assert len(other.take_in(transfer.from_json(text)) + other.take_in(transfer.from_json(text))) == 2
    assert [session.name for session in other.sessions()] == ["mine 2", "mine"]
    copied = [(other.session("mine"), other.turns(other.session("mine").id))]
    assert transfer.to_json(copied) == text
    assert transfer.exported("markdown", stored).startswith("# mine\n")
    assert "## Answer (m, interrupted)\n\ntell\n" in transfer.exported("markdown", stored)
    assert transfer.exported("text", stored) == "System: Be brief.\n\nYou: ask `code`\nmore\n\nAnswer: tell\n"
    store.close()
    other.close()


def test_a_vote_without_a_quorum_is_exported_as_no_answer_with_what_each_said(path: Path) -> None:
    store = Store.open(path)
    number = store.begin()
    votes = (Vote("n1", "m", "four", 1, 1.0, 50.0), Vote("n22", "m", "", 0, 1.0, 60.0, None, "it died"))
    outcome = fusion_document(Fusion("quorum", 0.5, 2, 1, 0, votes))
    store.add(number, user("2 + 2?"))
    store.add(number, answer("", model="m", interrupted=True, fusion=outcome))
    stored = [(store.session(number), store.turns(number))]
    summary = "quorum: 1 of 2 answered, 1 failed, agreement 50 %"
    page = transfer.exported("markdown", stored)
    assert page.endswith(
        f"## No answer (m)\n\n*{summary}*\n\n- n1      0.1 s  four\n- n22     0.1 s  failed: it died\n"
    )
    text = transfer.exported("text", stored)
    assert text.endswith(f"No answer ({summary}):\n  n1      0.1 s  four\n  n22     0.1 s  failed: it died\n")
    store.close()


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no export of limbot"),
        ({"format": "limbot", "version": 2}, "has version 2"),
        ({"format": "limbot", "version": 1}, 'no list "sessions"'),
        ({"format": "limbot", "version": 1, "sessions": [{}]}, "conversation 1 has no list of turns"),
        (
            {"format": "limbot", "version": 1, "sessions": [{"turns": [{"role": "god", "text": ""}]}]},
            "turn 1 needs a role",
        ),
        (
            {
                "format": "limbot",
                "version": 1,
                "sessions": [{"turns": [{"role": "user", "text": "x", "tokens": "many"}]}],
            },
            "conversation 1, turn 1: tokens is str",
        ),
        (
            '{"format": "limbot", "version": 1, "sessions": [{"turns": [], "created": NaN}]}',
            "conversation 1: created is float",
        ),
    ],
)
def test_what_is_no_export_is_refused_with_the_place(document: object, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint.replace("[", r"\[")):
        transfer.from_json(document if isinstance(document, str) else json.dumps(document))


def test_blocks_of_code_are_found_in_an_answer() -> None:
    assert transfer.code_blocks("a\n```py\nx\n\ny\n```\nb\n~~~\nz\n~~~") == ["x\n\ny", "z"]


def test_a_store_of_the_first_version_is_brought_to_this_one_with_all_that_is_in_it(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript(schema.MIGRATIONS[0])
    old.execute("INSERT INTO sessions (id, created, updated, sampling) VALUES (1, 1, 1, '{\"seed\": 7}')")
    old.execute("INSERT INTO turns (session, role, text, at) VALUES (1, 'user', 'an old question', 1)")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    store = Store.open(path)
    assert (store.notices, store.lasts) == ((), True)
    session, (turn,) = store.session(1), store.turns(1)
    assert (session.sampling, session.fusion, turn.text, turn.fusion) == ({"seed": 7}, {}, "an old question", {})
    assert [hit.turn.id for hit in store.search("question")] == [turn.id]
    store.add(1, answer("voted", fusion={"strategy": "quorum"}))
    assert schema.version_of(store._db) == schema.VERSION == 2
    store.close()
    store = Store.open(path)
    assert store.turns(1)[1].fusion == {"strategy": "quorum"}
    store.close()
